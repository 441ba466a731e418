"""Plan and statistics → pivot: the quantized QDQ graphs, and the table of their encodings."""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.encodings import Encoding, EncodingTable, Palette, encoding_for_range
from pocketport.calibration.statistics import Statistics
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.cache.integer_cache import key_ranges, with_integer_cache
from pocketport.compress.executors.ort_executor import Samples
from pocketport.compress.graph import clone_graph, constant
from pocketport.compress.pivot.bias_correction import corrected_bias, mean_output, mean_rounding_error
from pocketport.compress.pivot.input_scaling import input_factors, scale_inputs
from pocketport.compress.pivot.low_rank import LowRank, add_branch, rounded
from pocketport.compress.pivot.qdq import QdqWriter
from pocketport.compress.pivot.ranges import group_encodings
from pocketport.compress.pivot.weight_rounding import WeightRounding
from pocketport.compress.pivot.weights import QuantizedTensor, channel_scales
from pocketport.compress.planning.plan import ComponentPlan, Plan, TensorKind, TensorPlan
from pocketport.errors import InputError, UsageError, VerificationError

LEAST_OPSET = 21  # 16-bit and 4-bit types and blocks in QuantizeLinear
INT32_ROOM = 2**31 - 2**8  # float32 scales are rounded: stay clear of the end


def apply_plan(
    bundle: ModelBundle,
    plan: Plan,
    statistics: Statistics,
    *,
    samples: Samples | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[ModelBundle, EncodingTable]:
    """Quantize every component as `plan` says; `bundle` is unchanged.

    Args:
        bundle: float graphs.
        plan: made from this bundle.
        statistics: of this bundle's calibration.
        samples: makes what was calibrated on anew, for plans that round on it; see `reconstruct`.
        progress: called with the number of tensors done.

    Returns:
        The bundle with pivots as graphs, and encodings by ``component/tensor``.

    Raises:
        InputError: calibration never saw a tensor that needs a range, or a graph's opset is under 21.
        UsageError: the plan rounds on samples, and there are none.
        VerificationError: nothing is quantized although a scheme other than ``float`` is in force.
    """
    if plan.on_samples and samples is None:
        raise _without_samples(plan)
    tensors = [t for component in plan for t in component.tensors]
    if any(t.scheme != "float" for t in tensors) and not any(t.quantized for t in tensors):
        raise VerificationError(
            "quantizing would change nothing: no tensor of the model can take the scheme",
            where=f"plan for {plan.target}",
            fix="see the plan for the reasons, or choose the scheme `float`",
        )
    applier = _Applier(bundle, plan, statistics, progress)
    graphs = {component.component: applier.component(component) for component in plan}
    _round_on_samples(applier, plan, graphs, samples)
    pivot = bundle.with_graphs(graphs)
    if plan.cache is not None:
        pivot = with_integer_cache(pivot, key_ranges(statistics), plan.cache.bits)
    return pivot, applier.table


def apply_component(
    bundle: ModelBundle, plan: Plan, statistics: Statistics, component: str, known: MutableMapping[str, QuantizedTensor],
    *, samples: Samples | None = None,
) -> ir.Model:  # fmt: skip
    """The pivot of one component alone, as `apply_plan` makes it, its cache float.

    Args:
        bundle: float graphs.
        plan: of the whole bundle.
        statistics: of this bundle's calibration.
        component: which one.
        known: remembers weights that are rounded without samples from one plan to the next, which shares most of them.
        samples: see `apply_plan`. A weight that several components share is rounded on this one's alone.

    Raises:
        UsageError: the component is rounded on samples, and there are none.
    """
    alone = replace(plan, components=(plan[component],))
    if alone.on_samples and samples is None:
        raise _without_samples(alone)
    applier = _Applier(bundle, plan, statistics, None, known)
    pivot = applier.component(plan[component])
    _round_on_samples(applier, alone, {component: pivot}, samples)
    return pivot


def _round_on_samples(applier: "_Applier", plan: Plan, pivots: Mapping[str, ir.Model], samples: Samples | None) -> None:
    if samples is not None and plan.on_samples:
        from pocketport.compress.reconstruction.reconstruct import reconstruct  # needs torch

        reconstruct(applier.bundle, plan, pivots, applier.table, samples)


def _without_samples(plan: Plan) -> UsageError:
    tensor = next(t for c in plan for t in c.tensors if t.on_samples)
    return UsageError(
        f"{tensor.algorithm} rounds on samples, of which there are none here", where=f"tensor {tensor.tensor}",
        fix="give samples, or use mse, or gptq without propagation and sweeps",
    )  # fmt: skip


def float_graph(bundle: ModelBundle, plan: Plan, statistics: Statistics, component: str) -> ir.Model:
    """The float graph that a component's pivot rounds: with inputs of layers scaled, where the plan has it so."""
    scaled, _ = scale_inputs(bundle, plan, statistics, input_factors(bundle, plan, statistics))
    return scaled[component].graph


class _Applier:
    def __init__(
        self,
        bundle: ModelBundle,
        plan: Plan,
        statistics: Statistics,
        progress: Callable[[int], None] | None,
        known: MutableMapping[str, QuantizedTensor] | None = None,
    ) -> None:
        factors = input_factors(bundle, plan, statistics)
        bundle, statistics = scale_inputs(bundle, plan, statistics, factors)
        self.bundle = bundle
        self._plan = plan
        self._statistics = statistics
        self._progress = progress
        self._done = 0
        self._weights = WeightRounding(bundle, plan, statistics, factors, known)
        self.table = EncodingTable()
        self._ranges = group_encodings(bundle, plan, statistics)

    def component(self, plan: ComponentPlan) -> ir.Model:
        """One component's pivot."""
        graph = clone_graph(self.bundle[plan.component].graph)
        if (graph.graph.opset_imports.get("") or 0) < LEAST_OPSET:
            raise InputError(
                f"its opset is under {LEAST_OPSET}",
                where=f"component {plan.component}",
                fix="ingest the model again, which raises it",
            )
        writer = QdqWriter(graph)
        values = {v.name: v for node in graph.graph for v in node.outputs}
        values.update({v.name: v for v in (*graph.graph.inputs, *graph.graph.initializers.values())})
        tensors = [t for t in plan.tensors if t.quantized]
        if unknown := [t.tensor for t in tensors if t.tensor not in values]:
            raise InputError(
                f"it has no tensor {unknown[0]!r}",
                where=f"component {plan.component}",
                fix="apply a plan to the float bundle that it was made from",
            )
        # A weight's scale may depend on its bias and a bias's on its weight: activations, weights, the rest.
        rank = {TensorKind.ACTIVATION: 0, TensorKind.BIAS: 2}
        constants = {t.tensor: constant(values[t.tensor]) for t in tensors if t.kind is not TensorKind.ACTIVATION}
        biases = {t.partner: t for t in tensors if t.kind is TensorKind.BIAS}
        tensors.sort(key=lambda t: rank.get(t.kind, 1) + (t.algorithm == "product"))
        for tensor in self._weights.ordered(plan.component, tensors):
            self._tensor(plan.component, tensor, values[tensor.tensor], constants, biases, writer)
            self._done += 1
            if self._progress:
                self._progress(self._done)
        graph.graph.sort()
        return graph

    def _tensor(
        self, component: str, tensor: TensorPlan, value: ir.Value, constants: dict[str, NDArray[np.generic] | None],
        biases: Mapping[str, TensorPlan], writer: QdqWriter,
    ) -> None:  # fmt: skip
        key = f"{component}/{tensor.tensor}"
        if tensor.kind is TensorKind.ACTIVATION:
            self.table.encodings[key] = self._ranges[tensor.group]
            writer.activation(value, self._ranges[tensor.group])
            return
        real = np.asarray(constants[tensor.tensor], np.float32)
        if tensor.kind in (TensorKind.WEIGHT, TensorKind.TABLE):
            bias = biases.get(tensor.tensor)
            least = None if bias is None else self._least_scale(component, bias, constants)
            done = self._weights.round(component, tensor, real, least)
            self._correct_bias(component, tensor, value, real, done, least, constants)
        elif tensor.algorithm == "product":
            done = self._product(component, tensor, real)
        else:
            encoding = self._ranges.get(tensor.group) or encoding_for_range(
                float(real.min()), float(real.max()), tensor.dtype, symmetric=tensor.symmetric
            )
            done = QuantizedTensor(encoding.quantize(real), encoding)
        if done.correction is not None:
            self._add_correction(component, tensor, value, done.correction, writer)
        if isinstance(done.encoding, Palette):
            self.table.palettes[key] = done.encoding
            writer.palette(value, done.integers, done.encoding)
        else:
            self.table.encodings[key] = done.encoding
            writer.constant(value, done.integers, done.encoding)

    def _add_correction(
        self, component: str, tensor: TensorPlan, value: ir.Value, correction: LowRank, writer: QdqWriter
    ) -> None:
        """Beside the one layer that reads a weight."""
        node = next(iter(value.uses())).node
        for factor in add_branch(writer.graph, node, correction):
            integers, encoding = rounded(np.asarray(constant(factor), np.float32), tensor.channel_axis or 0)
            self.table.encodings[f"{component}/{factor.name}"] = encoding
            writer.constant(factor, integers, encoding)

    def _correct_bias(
        self, component: str, tensor: TensorPlan, value: ir.Value, real: NDArray[np.float32], done: QuantizedTensor,
        least: NDArray[np.float64] | None, constants: dict[str, NDArray[np.generic] | None],
    ) -> None:  # fmt: skip
        """Let a layer's bias take back what rounding its weight and its input does to its mean output."""
        bias = _own_bias(value)
        if bias is None:
            return
        old = np.asarray(constant(bias), np.float32)
        new = old
        taps = self._statistics.taps.get(f"{component}/{tensor.tensor}")
        if taps is not None:
            mean = taps / self._statistics.samples[component]
            new = corrected_bias(old, real, done.encoding.dequantize(done.integers), mean)
        source = f"{component}/{tensor.activation}"
        rows = self._statistics.rows.get(source)
        if rows is not None and source in self.table and not any(self._weights.twins(component, tensor, real)):
            error = mean_rounding_error(rows, self.table[source])
            new = (new - mean_output(next(iter(value.uses())).node, real, error)).astype(np.float32)
        if new is old:
            return
        if least is not None and isinstance(done.encoding, Encoding):  # such a bias fills int32, and there is no room
            new = np.where(channel_scales(done.encoding, tensor.channel_axis or 0) < 2 * least, old, new)
        bias.const_value = ir.tensor(new, name=bias.name)
        if bias.name in constants:
            constants[bias.name] = new

    def _least_scale(
        self, component: str, bias: TensorPlan, constants: Mapping[str, NDArray[np.generic] | None]
    ) -> NDArray[np.float64]:
        """Weight scales under which the int32 bias would overflow, [channels]."""
        activation = self.table[f"{component}/{bias.activation}"]
        real = np.abs(np.asarray(constants[bias.tensor], np.float64))
        return real / (float(activation.scale) * INT32_ROOM)

    def _product(self, component: str, tensor: TensorPlan, real: NDArray[np.float32]) -> QuantizedTensor:
        """int32 at s_x · s_w."""
        weight = self.table[f"{component}/{tensor.partner}"]
        channel = next((t.channel_axis or 0 for t in self._plan[component].tensors if t.tensor == tensor.partner), 0)
        scale = np.asarray(
            self.table[f"{component}/{tensor.activation}"].scale * channel_scales(weight, channel), np.float32
        )
        encoding = Encoding("int32", scale, np.zeros(scale.shape, np.int32), axis=0 if scale.ndim else None)
        integers = np.rint(real.astype(np.float64) / scale.astype(np.float64))
        if np.abs(integers).max(initial=0.0) > 2**31 - 1:
            raise VerificationError(
                "its int32 integers at s_x · s_w overflow",
                where=f"tensor {component}/{tensor.tensor}",
                fix="leave its node float",
            )
        return QuantizedTensor(integers.astype(np.int32), encoding)


def _own_bias(weight: ir.Value) -> ir.Value | None:
    """The bias beside a weight, where no other node reads either of them."""
    uses = list(weight.uses())
    if len(uses) != 1 or len(uses[0].node.inputs) < 3:
        return None
    bias = uses[0].node.inputs[2]
    return bias if bias is not None and bias.is_initializer() and len(bias.uses()) == 1 else None
