"""Dividing a layer's input by a factor a channel before it is rounded, and multiplying the layer's weight by the same.

An activation has one scale for all its channels, and a few wide channels make it too coarse for the others: in 8 bits the
inputs of a transformer's layers keep 20 to 30 dB, and would keep 45 with a scale a channel. What the layer computes stays
the same: (x / s) · (s · W). The factors come from what calibration saw of each channel, so no further pass over the data is
needed. The division is free where what makes the input can take it (the gain of a norm, constants that are multiplied or
added); elsewhere it is one float multiplication, for targets that compute in float between layers. Same idea as SmoothQuant
(Xiao et al. 2022, arXiv 2211.10438), whose exponent is searched here for each tensor against the expected error.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.encodings import INTEGER_RANGES
from pocketport.calibration.observers import Histogram
from pocketport.calibration.statistics import ChannelRange, SecondMoment, Statistics, side_by_side
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.graph import clone_graph, constant
from pocketport.compress.planning.plan import ComponentPlan, Plan, TensorKind, TensorPlan
from pocketport.compress.structure import is_constant, is_float, weight_operand
from pocketport.errors import InputError

Numbers = NDArray[np.float64]

EXPONENTS = np.linspace(0.0, 1.0, 9)
LEAST = 0.01  # of the widest channel: a channel that calibration hardly saw may be wider on other data
INPUT_LEVELS = 255
MARGIN = 1.1
"""Of a scaled tensor's range over what calibration saw: there every channel is as wide as all that was seen of it, and of 32
samples the next one goes beyond in one channel of 32."""


@dataclass(frozen=True)
class Layer:
    """What one layer makes of its input.

    Attributes:
        weight: [groups, outputs a group, inputs a group, taps of the kernel].
        levels: greatest integer of a weight.
    """

    weight: NDArray[np.float32]
    levels: int


def scalable_inputs(
    graph: ir.Model, takes: Callable[[ir.Node], bool], integer_ops: frozenset[str]
) -> dict[str, list[ir.Node]]:
    """Tensor → the layers that read it, where all that read it as integers are layers whose weights can be multiplied.

    Args:
        graph: a float graph.
        takes: whether a node's input shall be integers of 8 bits and its weight integers too.
        integer_ops: the op types that compute in integers, and those that hand integers on.
    """
    found: dict[str, list[ir.Node]] = {}
    values: dict[str, ir.Value] = {}
    for node in graph.graph:
        operand = weight_operand(node)
        x = None if operand is None or operand.kind == "table" else operand.activation
        if x is None or x.producer() is None or not takes(node) or not _own_weight(node):
            continue
        found.setdefault(x.name or "", []).append(node)
        values[x.name or ""] = x
    return {
        name: nodes
        for name, nodes in found.items()
        if all(n in nodes or n.op_type not in integer_ops for n, _ in values[name].uses())
    }


def _own_weight(node: ir.Node) -> bool:
    weight = node.inputs[1]
    if weight is None or not weight.is_initializer() or not is_float(weight) or len(weight.uses()) != 1:
        return False
    return not node.attributes.get_int("transA", 0)


def insert_scaling(graph: ir.Model, inputs: Mapping[str, Sequence[ir.Node]]) -> dict[str, str]:
    """Put a multiplication by ones in front of these layers, in place.

    Returns:
        The new tensors, ``t/scaled`` → ``t``; the factors are initializers ``t/factors``.
    """
    inserted = {}
    for name, layers in inputs.items():
        source = layers[0].inputs[0]
        assert source is not None and source.producer() is not None
        weight = layers[0].inputs[1]
        channels = _channels(layers[0])
        convolution = layers[0].op_type in ("Conv", "ConvTranspose")
        shape = (1, channels, *(1,) * (len(weight.shape or ()) - 2)) if convolution else (channels,)  # type: ignore[union-attr]
        ones = ir.Tensor(np.ones(shape, np.float32), name=f"{name}/factors")
        factors = ir.Value(name=ones.name, shape=ir.Shape(shape), type=ir.TensorType(ones.dtype), const_value=ones)
        graph.graph.register_initializer(factors)
        product = ir.node("Mul", [source, factors], name=f"{name}/scaled")
        product.outputs[0].name = f"{name}/scaled"
        product.outputs[0].shape, product.outputs[0].type = source.shape, source.type
        graph.graph.insert_after(source.producer(), product)  # type: ignore[arg-type]
        for layer in layers:
            layer.replace_input_with(0, product.outputs[0])
        inserted[f"{name}/scaled"] = name
    return inserted


def _channels(layer: ir.Node) -> int:
    """Input channels of a layer, from its weight's shape alone."""
    operand = weight_operand(layer)
    assert operand is not None
    shape = [int(d) for d in operand.value.shape or ()]  # type: ignore[arg-type]
    if operand.kind == "linear":
        return shape[operand.input_axis or 0]
    return shape[0] if layer.op_type == "ConvTranspose" else shape[1] * (layer.attributes.get_int("group", 1) or 1)


def as_layer(node: ir.Node, weight: NDArray[np.floating], levels: int) -> Layer:
    """A node's weight in the form that factors are chosen in."""
    operand = weight_operand(node)
    assert operand is not None
    w = np.asarray(weight, np.float32)
    groups = node.attributes.get_int("group", 1) or 1
    if operand.kind == "linear":
        w = np.moveaxis(w, (operand.channel_axis, operand.input_axis or 0), (0, 1))
        w = w.reshape(1, *w.shape[:2], -1)
    elif node.op_type == "ConvTranspose":
        w = w.reshape(groups, w.shape[0] // groups, w.shape[1], -1).swapaxes(1, 2)
    else:
        w = w.reshape(groups, w.shape[0] // groups, w.shape[1], -1)
    return Layer(w, levels)


def choose_factors(channels: ChannelRange, squares: Numbers, layers: Iterable[Layer]) -> Numbers:
    """s = range^α of each channel [C], with the α in [0, 1] that has the least expected error of the layers' outputs.

    With steps Δ of the input and δ of an output channel's weights, rounding makes Δ²/12·Σ (s·W)² + δ²/12·Σ E[x²]/s² of
    noise, which is taken relative to the layer's output Σ E[x²]·W². α = 0 changes nothing.

    Args:
        channels: extremes of the input's channels.
        squares: [C], mean square of each channel.
        layers: those that read the input.
    """
    low, high = np.minimum(channels.low, 0.0).astype(np.float64), np.maximum(channels.high, 0.0).astype(np.float64)
    reach = high - low
    reach = np.maximum(reach / (reach.max() or 1.0), LEAST)
    candidates = np.stack([reach**exponent for exponent in EXPONENTS])
    steps = MARGIN * ((high / candidates).max(axis=1) - (low / candidates).min(axis=1)) / INPUT_LEVELS
    noise = sum(_relative_noise(layer, squares, candidates, steps) for layer in layers)
    best: Numbers = candidates[np.argmin(noise)]
    return best


def input_factors(bundle: ModelBundle, plan: Plan, statistics: Statistics) -> dict[str, Numbers]:
    """Factors [C] of every scaled tensor of a plan, ``component/t/scaled`` → what it is divided by.

    Raises:
        InputError: calibration saw nothing of a tensor's channels, or the plan is of another bundle.
    """
    found = {}
    for component in plan:
        graph = bundle[component.component].graph
        sources = component.sources
        for name, weights in scaled_layers(component).items():
            source = f"{component.component}/{sources[name]}"
            if source not in statistics.channels:
                raise InputError(
                    "calibration saw nothing of its channels", where=f"tensor {source}",
                    fix="calibrate this bundle's graphs again",
                )  # fmt: skip
            layers = []
            for weight in weights:
                value = graph.graph.initializers.get(weight.tensor)
                if value is None:
                    raise InputError(
                        f"it has no tensor {weight.tensor!r}", where=f"component {component.component}",
                        fix="apply a plan to the float bundle that it was made from",
                    )  # fmt: skip
                low, high = INTEGER_RANGES.get(weight.dtype, INTEGER_RANGES["int32"])  # a float weight is not rounded
                layers.append(as_layer(_reader(value), np.asarray(constant(value), np.float32), (high - low) // 2))
            moment = statistics.moments[source].mean()
            found[f"{component.component}/{name}"] = choose_factors(
                statistics.channels[source], moment.diagonal, layers
            )
    return found


def _reader(weight: ir.Value) -> ir.Node:
    return next(iter(weight.uses())).node


def _relative_noise(layer: Layer, squares: Numbers, candidates: Numbers, steps: Numbers) -> Numbers:
    """The expected noise of a layer's output over its signal, of factors [n, C] and the steps [n] that they give the input."""
    groups, _, width, taps = layer.weight.shape
    weight = np.abs(layer.weight)
    greatest = weight.max(axis=3) if taps > 1 else weight[..., 0]  # [groups, outputs, inputs]
    energy = np.square(weight).sum(axis=(1, 3), dtype=np.float64).reshape(-1)  # of each input channel
    s, x = candidates.reshape(-1, groups, 1, width), squares.reshape(groups, 1, width)
    of_weights = np.stack([(greatest * one).max(axis=2) for one in s.astype(np.float32)]) / layer.levels
    inputs = taps * (x / np.square(s)).sum(axis=3)
    noise = np.square(steps) * (np.square(candidates) @ energy)
    noise += (np.square(of_weights, dtype=np.float64) * inputs).sum(axis=(1, 2))
    relative: Numbers = noise / (12.0 * float(squares @ energy) or 1.0)
    return relative


def scale_weight(node: ir.Node, weight: NDArray[np.float32], factors: Numbers) -> NDArray[np.float32]:
    """A layer's weight with its input channels multiplied by `factors` [C]."""
    operand = weight_operand(node)
    assert operand is not None
    s = factors.astype(np.float32)
    if operand.kind == "linear":
        shape = [1] * weight.ndim
        shape[operand.input_axis or 0] = -1
        return weight * s.reshape(shape)
    if node.op_type == "ConvTranspose":
        return weight * s.reshape(-1, *(1,) * (weight.ndim - 1))
    groups = node.attributes.get_int("group", 1) or 1
    per_output = np.repeat(s.reshape(groups, -1), len(weight) // groups, axis=0)
    return weight * per_output.reshape(*per_output.shape, *(1,) * (weight.ndim - 2))


def scale_inputs(
    bundle: ModelBundle, plan: Plan, statistics: Statistics, factors: Mapping[str, Numbers]
) -> tuple[ModelBundle, Statistics]:
    """The float bundle that a plan's pivot is written from, and what calibration would have seen of it.

    Args:
        bundle: float graphs, unchanged.
        plan: names the scaled tensors.
        statistics: of the bundle's calibration.
        factors: of `input_factors`.
    """
    graphs = {c.component: _scaled_graph(bundle, c, factors) for c in plan if any(t.scaled for t in c.tensors)}
    return bundle.with_graphs(graphs), _scaled_statistics(statistics, plan, factors)


def _scaled_graph(bundle: ModelBundle, plan: ComponentPlan, factors: Mapping[str, Numbers]) -> ir.Model:
    graph = clone_graph(bundle[plan.component].graph)
    quantized = frozenset(t.tensor for t in plan.tensors if t.quantized and t.kind is not TensorKind.ACTIVATION)
    sources = plan.sources
    for name, layers in scaled_layers(plan).items():
        weights = [graph.graph.initializers[t.tensor] for t in layers]
        insert_scaling(graph, {sources[name]: [_reader(w) for w in weights]})
        scale = factors[f"{plan.component}/{name}"]
        for weight in weights:
            product = scale_weight(_reader(weight), np.asarray(constant(weight), np.float32), scale)
            weight.const_value = ir.Tensor(product, name=weight.name)
        fill_factors(graph, name, scale, quantized)
    return graph


def _scaled_statistics(statistics: Statistics, plan: Plan, factors: Mapping[str, Numbers]) -> Statistics:
    """What calibration would have seen behind the multiplications; only extremes are known of their histograms."""
    made = replace(
        statistics, histograms=dict(statistics.histograms), moments=dict(statistics.moments), taps=dict(statistics.taps),
        rows=dict(statistics.rows),
    )  # fmt: skip
    for component in plan:
        for tensor in component.tensors:
            key = f"{component.component}/{tensor.tensor}"
            if key in factors:
                s, source = factors[key], f"{component.component}/{tensor.scaled}"
                seen = statistics.channels[source]
                made.histograms[key] = Histogram()
                extremes = np.array([(seen.low / s).min(), (seen.high / s).max()])
                made.histograms[key].update((MARGIN * extremes).astype(np.float32))
                made.moments[key] = _scaled_moment(statistics.moments[source], s)
                if source in statistics.rows:
                    made.rows[key] = (statistics.rows[source] / s).astype(np.float32)
            source = f"{component.component}/{tensor.activation}"
            if tensor.kind is TensorKind.WEIGHT and source in factors and key in made.taps:
                taps = made.taps[key]
                made.taps[key] = taps / factors[source].reshape(-1, *(1,) * (taps.ndim - 1))
        for terms in {t.terms for t in component.tensors if t.terms}:
            _scale_together(made, component, terms, factors)
    return made


def _scale_together(
    statistics: Statistics, plan: ComponentPlan, terms: Sequence[str], factors: Mapping[str, Numbers]
) -> None:
    """Add the moments of inputs side by side of which some are scaled."""
    sources = plan.sources
    unscaled = f"{plan.component}/{side_by_side(sources.get(x, x) for x in terms)}"
    if sources.keys().isdisjoint(terms) or unscaled not in statistics.moments:
        return
    keys = [f"{plan.component}/{x}" for x in terms]
    s = np.concatenate([factors.get(key, np.ones_like(statistics.moments[key].diagonal)) for key in keys])
    key = f"{plan.component}/{side_by_side(terms)}"
    statistics.moments[key] = _scaled_moment(statistics.moments[unscaled], s)


def _scaled_moment(moment: SecondMoment, factors: Numbers) -> SecondMoment:
    full = None if moment.full is None else (moment.full / np.outer(factors, factors)).astype(np.float32)
    return SecondMoment(moment.diagonal / np.square(factors), moment.rows, full)


def scaled_layers(component: ComponentPlan) -> dict[str, list[TensorPlan]]:
    """``t/scaled`` → plans of the weights that it meets."""
    found: dict[str, list[TensorPlan]] = {t.tensor: [] for t in component.tensors if t.scaled}
    for tensor in component.tensors:
        if tensor.kind is TensorKind.WEIGHT and tensor.activation in found:
            found[tensor.activation].append(tensor)
    return found


def fill_factors(graph: ir.Model, scaled: str, factors: Numbers, quantized: frozenset[str]) -> None:
    """Give a multiplication of `insert_scaling` its factors, or take it out where what is before it can divide instead.

    Args:
        graph: changed in place.
        scaled: ``t/scaled``.
        factors: [C], what the input is divided by.
        quantized: constants that will be integers, which are left alone.
    """
    product = next(node for node in graph.graph if node.outputs[0].name == scaled)
    source, ones = product.inputs
    assert source is not None and ones is not None
    inverse = (1.0 / factors).astype(np.float32).reshape([d if isinstance(d, int) else -1 for d in ones.shape or ()])
    if _divide(source, inverse, quantized, graph, change=False):
        _divide(source, inverse, quantized, graph, change=True)
        ir.convenience.replace_all_uses_with(product.outputs[0], source)
        graph.graph.remove(product, safe=True)
        del graph.graph.initializers[ones.name or ""]
        source.name = scaled
        return
    ones.const_value = ir.Tensor(inverse, name=ones.name)


def _divide(
    value: ir.Value, inverse: NDArray[np.float32], quantized: frozenset[str], graph: ir.Model, *, change: bool
) -> bool:
    """Whether constants before `value`, which nothing else reads, can be multiplied by `inverse` in its place."""
    node = value.producer()
    if node is None or len(value.uses()) != 1 or value in graph.graph.outputs:
        return False
    if node.op_type == "LayerNormalization" and inverse.ndim == 1:
        return all(_multiply(v, inverse, quantized, change) for v in node.inputs[1:] if v is not None)
    if node.op_type not in ("Mul", "Add") or len(node.inputs) != 2:
        return False
    fixed = [v for v in node.inputs if v is not None and is_constant(v)]
    if len(fixed) != 1 or not _multiply(fixed[0], inverse, quantized, change):
        return False
    other = next(v for v in node.inputs if v is not fixed[0])
    return node.op_type == "Mul" or (other is not None and _divide(other, inverse, quantized, graph, change=change))


def _multiply(value: ir.Value, inverse: NDArray[np.float32], quantized: frozenset[str], change: bool) -> bool:
    if not value.is_initializer() or len(value.uses()) != 1 or value.name in quantized:
        return False
    if change:
        product = np.asarray(constant(value), np.float32) * inverse
        value.const_value = ir.Tensor(product, name=value.name)
        value.shape = ir.Shape(product.shape)
    return True
