"""How a plan is made: the schemes that were settled for the nodes decide about every tensor."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import onnx_ir as ir

from pocketport.calibration.capture import MOVEMENT_OPS
from pocketport.calibration.encodings import INTEGER_RANGES
from pocketport.compress.algorithms import ALGORITHMS, PALETTE_ALGORITHMS
from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.graph import clone_graph
from pocketport.compress.pivot.input_scaling import insert_scaling, scalable_inputs
from pocketport.compress.pivot.low_rank import planned
from pocketport.compress.planning.legality import Legality, WeightRule
from pocketport.compress.planning.plan import ComponentPlan, TensorKind, TensorPlan
from pocketport.compress.planning.regions import Groups, Regions, find_regions, join_moved
from pocketport.compress.planning.settling import LANGUAGE_ROLES, Settled, Settler
from pocketport.compress.planning.summed_layers import rounded_together
from pocketport.compress.recipe import Recipe, Rule
from pocketport.compress.reconstruction.options import OPTIONS, read_options, rounds_on_samples
from pocketport.compress.schemes import Granularity
from pocketport.compress.structure import (
    DATA_CONSTANT_OPS,
    NORM_OPS,
    UNIT_RANGE_OPS,
    WeightOperand,
    activations_read,
    is_constant,
    is_float,
    is_product_of_rows,
    is_rotation,
    weight_operand,
)
from pocketport.errors import UsageError

GPTQ_BITS = 4  # at most: above, least squared error per weight loses nothing that matters
TABLE_ENTRY_BYTES = 2  # of a palette: float16
SCALED_BITS = 8  # of activations: 16 bits have steps to spare for wide channels
DEFAULT_OBSERVER = "min_max"  # what clipping gains in its own tensor the layers behind lose: docs/quantization.md


def plan_components(bundle: ModelBundle, recipe: Recipe, target: str, legality: Legality) -> tuple[ComponentPlan, ...]:
    """One plan a component; activations that components share are in one group."""
    planners = [_ComponentPlanner(c, recipe.rules_for(target), target, legality) for c in bundle]
    groups = Groups()
    quantized = {f"{p.name}/{name}" for p in planners for name in p.regions.quantized}
    for names in bundle.shared:
        alike: dict[int | None, str] = {}
        for name in (n for n in names if n in quantized):
            component, _, tensor = name.partition("/")
            bits = next(p for p in planners if p.name == component).activation_bits(tensor)
            groups.join(alike.setdefault(bits, name), name)
    while any([join_moved(groups, p.graph, p.name, p.regions.quantized) for p in planners]):
        pass
    return tuple(p.plan(groups) for p in planners)


class _ComponentPlanner:
    """Plans one component."""

    def __init__(self, component: Component, rules: Sequence[Rule], target: str, legality: Legality) -> None:
        self.name = component.name
        self.graph = component.graph
        self._scaled: dict[str, str] = {}
        self._target = target
        self._legality = legality
        settler = Settler(self.name, rules, target, legality)
        self._legal = settler.legal
        self._default = settler.settle("", "")
        if legality.scaled_inputs and self.name not in LANGUAGE_ROLES:
            self._scale_inputs(settler)
        self._settled = {node: settler.settle(node.op_type, node.name or "") for node in self.graph.graph}
        self._values = {v.name or "": v for node in self.graph.graph for v in node.outputs}
        self._values.update({v.name or "": v for v in self.graph.graph.inputs})
        self.regions = self._regions()

    def _scale_inputs(self, settler: Settler) -> None:
        """Work on a copy in which 8-bit inputs of layers are divided by a factor a channel first."""
        integer_ops = self._legality.integer_ops

        def takes(node: ir.Node) -> bool:
            scheme = settler.settle(node.op_type, node.name or "").scheme
            integer = not integer_ops or node.op_type in integer_ops
            eight = integer and scheme.activation_bits == SCALED_BITS and scheme.weight_bits is not None
            return eight and not is_rotation(node)

        inputs = scalable_inputs(self.graph, takes, integer_ops | MOVEMENT_OPS)
        self.graph = clone_graph(self.graph)
        nodes = {node.name: node for node in self.graph.graph}
        self._scaled = insert_scaling(self.graph, {t: [nodes[n.name] for n in read] for t, read in inputs.items()})

    # Activations

    def _regions(self) -> Regions:
        float_nodes = {
            node: f"{s.scheme}: {s.why}" for node, s in self._settled.items() if s.scheme.activation_bits is None
        }
        for node in self.graph.graph:
            if node.op_type in self._legality.float_ops:
                float_nodes[node] = f"{node.op_type} stays float on {self._target}"
        regions = find_regions(self.graph, float_nodes, self._legality.integer_ops)
        if self._default.scheme.activation_bits is not None:
            return regions
        inputs = {v.name or "" for v in self.graph.graph.inputs} & regions.quantized
        why = f"{self._default.scheme}: {self._default.why}"
        return Regions(regions.quantized - inputs, {**regions.kept_float, **dict.fromkeys(inputs, why)})

    def _producer(self, tensor: str) -> tuple[ir.Node | None, Settled]:
        node = self._values[tensor].producer()
        return node, self._default if node is None else self._settled[node]

    def activation_bits(self, tensor: str) -> int | None:
        """Width of a tensor's integers by the scheme at its producer."""
        return self._producer(tensor)[1].scheme.activation_bits

    def _activation(self, tensor: str, groups: Groups) -> TensorPlan:
        node, settled = self._producer(tensor)
        op, name = (node.op_type, node.name or "") if node is not None else ("", "")
        common = {
            "tensor": tensor,
            "kind": TensorKind.ACTIVATION,
            "node": name,
            "op": op,
            "scheme": str(settled.scheme),
        }
        elements = _elements(self._values[tensor])
        if tensor in self.regions.kept_float:
            return TensorPlan(**common, dtype="float", why=self.regions.kept_float[tensor], elements=elements)  # type: ignore[arg-type]
        bits = settled.scheme.activation_bits or 0
        rule = self._legality.activations[str(bits)]
        fixed: tuple[float, float] | None = None
        algorithm, options = settled.observer or DEFAULT_OBSERVER, settled.observer_options or {}
        why = settled.why
        if op == "Softmax" and rule.softmax is not None:
            algorithm, fixed, why = "fixed", rule.softmax, f"{self._target} fixes the output of Softmax"
        elif op in UNIT_RANGE_OPS:
            algorithm, fixed, why = "range", (0.0, 1.0), f"{op} gives numbers in [0, 1]"
        group = groups.find(f"{self.name}/{tensor}")
        if group != f"{self.name}/{tensor}":
            why = f"holds the data of {group}"
        return TensorPlan(
            **common, dtype=rule.dtype, symmetric=rule.symmetric, algorithm=algorithm, options=options,  # type: ignore[arg-type]
            fixed=fixed, group=group, why=why, elements=elements, scaled=self._scaled.get(tensor, ""),
        )  # fmt: skip

    # Constants

    def _constants(self, groups: Groups) -> Iterator[TensorPlan]:
        seen: set[str] = set()
        for node in self.graph.graph:
            operand = weight_operand(node)
            for plan in self._constants_of(node, operand, groups):
                if plan.tensor not in seen:
                    seen.add(plan.tensor)
                    yield plan

    def _constants_of(self, node: ir.Node, operand: WeightOperand | None, groups: Groups) -> Iterator[TensorPlan]:
        weight = None
        if operand is not None:
            weight = planned(self._weight(node, operand, groups), node, operand, self._settled[node].low_rank)
            yield weight
        for position, value in enumerate(node.inputs):
            if value is None or not is_float(value) or not is_constant(value) or (operand and value is operand.value):
                continue
            if operand is not None and value is operand.bias and weight is not None:
                yield self._bias(node, operand, weight)
            elif node.op_type in NORM_OPS and position in (1, 2):
                yield self._norm(node, value, position)
            else:
                yield self._data(node, value)

    def _weight(self, node: ir.Node, operand: WeightOperand, groups: Groups) -> TensorPlan:
        settled = self._settled[node]
        scheme, shape = settled.scheme, _shape(operand.value)
        if scheme.weight_bits is None:
            return self._kept_float(node, operand.value, TensorKind.WEIGHT, settled.why)
        if self._legality.online_rotations and is_rotation(node):
            return self._kept_float(node, operand.value, TensorKind.WEIGHT, "it rotates what is rounded behind it")
        if operand.kind == "table":
            return self._table(node, operand, settled, groups)
        if scheme.granularity is Granularity.PALETTE:
            return self._palette(node, operand, settled)
        granularity, why = scheme.granularity, settled.why
        if granularity is Granularity.BLOCK and operand.input_axis is None:
            granularity, why = (
                Granularity.CHANNEL,
                f"{why}; blocks are for linear layers, a {node.op_type} has channels",
            )
        block = scheme.block if granularity is Granularity.BLOCK else 0
        if block and shape[operand.input_axis or 0] % block:
            raise UsageError(
                f"its input dimension {shape[operand.input_axis or 0]} does not divide into blocks of {block}",
                where=f"{self.name}, {operand.value.name}", fix="add a rule for it with another block, or w4c",
            )  # fmt: skip
        rule = self._legality.weights[str(scheme.weight_bits)]
        axis = {"t": None, "c": operand.channel_axis, "b": operand.input_axis}[granularity.value]
        known = {**ALGORITHMS, **OPTIONS}
        algorithm, why = self._algorithm(node, operand, replace(settled, why=why), known, "mse")
        options = settled.algorithm_options or {} if algorithm == (settled.algorithm or algorithm) else {}
        return self._stored(
            node, operand.value, TensorKind.WEIGHT, rule, granularity.value, why,
            axis=axis, channel_axis=operand.channel_axis, block=block, algorithm=algorithm,
            options=options, activation=_name(operand.activation), scheme=str(scheme),
        )  # fmt: skip

    def _algorithm(
        self, node: ir.Node, operand: WeightOperand, settled: Settled, known: Collection[str], plain: str
    ) -> tuple[str, str]:
        """How a weight is rounded, and why: `plain` is what takes any weight."""
        matrix, bits = _is_matrix(node, operand, _shape(operand.value)), settled.scheme.weight_bits or 0
        algorithm = settled.algorithm or ("gptq" if matrix and bits <= GPTQ_BITS else plain)
        if algorithm not in known:
            raise UsageError(
                f"the algorithm {algorithm!r} is not for weights in {settled.scheme} on targets",
                where=f"{self.name}, {operand.value.name}", fix=f"use one of {', '.join(known)}",
            )  # fmt: skip
        options = settled.algorithm_options or {}
        if rounds_on_samples(algorithm, options) and settled.scheme.granularity is not Granularity.PALETTE:
            read_options(algorithm, options)
            levels = self._legality.weights[str(bits)].block_scale_levels
            if algorithm == "sequential_mse" and levels and settled.scheme.granularity is Granularity.BLOCK:
                return plain, f"{settled.why}; sequential_mse chooses scales freely, which blocks here must not"
            if not is_product_of_rows(node):
                return plain, f"{settled.why}; {algorithm} is for linear layers and convolutions"
        elif algorithm == "gptq" and not matrix:
            return plain, f"{settled.why}; gptq is for linear layers and 1×1 convolutions"
        return algorithm, settled.why

    def _palette(self, node: ir.Node, operand: WeightOperand, settled: Settled) -> TensorPlan:
        scheme, shape, elements = settled.scheme, _shape(operand.value), _elements(operand.value)
        channels, bits = shape[operand.channel_axis], scheme.weight_bits or 0
        group = scheme.group or channels
        if channels % group:
            raise UsageError(
                f"its {channels} output channels do not divide into groups of {group}",
                where=f"{self.name}, {operand.value.name}", fix=f"add a rule for it with another group, or w{bits}p",
            )  # fmt: skip
        size = math.ceil(elements * bits / 8) + channels // group * TABLE_ENTRY_BYTES * 2**bits
        if size >= elements * TABLE_ENTRY_BYTES:
            return self._kept_float(node, operand.value, TensorKind.WEIGHT, f"{scheme} would be larger than float16")
        algorithm, why = self._algorithm(node, operand, settled, PALETTE_ALGORITHMS, "kmeans")
        return TensorPlan(
            operand.value.name or "", TensorKind.WEIGHT, node.name or "", node.op_type, str(scheme), f"uint{bits}", why,
            granularity=Granularity.PALETTE.value, axis=operand.channel_axis, channel_axis=operand.channel_axis, block=group,
            algorithm=algorithm, options=settled.algorithm_options or {}, activation=_name(operand.activation),
            elements=elements, bytes_before=_bytes(operand.value), bytes_after=size,
        )  # fmt: skip

    def _table(self, node: ir.Node, operand: WeightOperand, settled: Settled, groups: Groups) -> TensorPlan:
        tables = self._legality.tables
        output = node.outputs[0].name or ""
        if tables.dtype == "activation":
            if output not in self.regions.quantized:
                return self._kept_float(node, operand.value, TensorKind.TABLE, f"{output} is float")
            return self._stored(
                node, operand.value, TensorKind.CONSTANT, self._activation_format(settled), "t", f"tables take the activations' format on {self._target}", scheme=str(settled.scheme),
                algorithm="min_max", group=groups.find(f"{self.name}/{output}"),
            )  # fmt: skip
        rule = WeightRule(dtype=tables.dtype, granularities=(tables.granularity,))
        axis = 0 if tables.granularity == "c" else None
        return self._stored(
            node, operand.value, TensorKind.TABLE, rule, tables.granularity, f"tables on {self._target}",
            axis=axis, channel_axis=0, algorithm="mse", scheme=str(settled.scheme),
        )  # fmt: skip

    def _bias(self, node: ir.Node, operand: WeightOperand, weight: TensorPlan) -> TensorPlan:
        assert operand.bias is not None
        activation = _name(operand.activation)
        if activation not in self.regions.quantized or not weight.quantized:
            return self._kept_float(node, operand.bias, TensorKind.BIAS, "its layer computes in float")
        if weight.granularity == Granularity.PALETTE:
            return self._kept_float(node, operand.bias, TensorKind.BIAS, "a palette has no scale that it could share")
        per_channel = weight.granularity != "t"
        elements = _elements(operand.bias)
        return TensorPlan(
            operand.bias.name or "", TensorKind.BIAS, node.name or "", node.op_type, weight.scheme, "int32",
            "its scale is that of the products", granularity="c" if per_channel else "t", axis=0 if per_channel else None,
            algorithm="product", activation=activation, partner=weight.tensor, elements=elements,
            bytes_before=_bytes(operand.bias), bytes_after=4 * elements,
        )  # fmt: skip

    def _norm(self, node: ir.Node, value: ir.Value, position: int) -> TensorPlan:
        legality, activation = self._legality, _name(node.inputs[0])
        dtype = legality.norm_scale_dtype if position == 1 else legality.norm_bias_dtype
        scheme = str(self._settled[node].scheme)
        if dtype == "float" or activation not in self.regions.quantized:
            why = f"norms are float on {self._target}" if dtype == "float" else f"{activation} is float"
            return self._kept_float(node, value, TensorKind.NORM, why)
        product = dtype == "int32"
        elements = _elements(value)
        return TensorPlan(
            value.name or "", TensorKind.NORM, node.name or "", node.op_type, scheme, dtype, f"norms on {self._target}",
            symmetric=product or dtype.startswith("int"), algorithm="product" if product else "min_max",
            activation=activation, partner=_name(node.inputs[1]) if product else "", elements=elements,
            bytes_before=_bytes(value), bytes_after=elements * _bits(dtype) // 8,
        )  # fmt: skip

    def _data(self, node: ir.Node, value: ir.Value) -> TensorPlan:
        """A constant among activations takes their format, where they are integers."""
        settled = self._settled[node]
        others = activations_read(node)
        if node.op_type not in DATA_CONSTANT_OPS:
            return self._kept_float(node, value, TensorKind.CONSTANT, f"a parameter of {node.op_type}")
        if not others or any((v.name or "") not in self.regions.quantized for v in others):
            return self._kept_float(node, value, TensorKind.CONSTANT, "the op computes in float")
        return self._stored(
            node, value, TensorKind.CONSTANT, self._activation_format(settled), "t", settled.why, algorithm="min_max", scheme=str(settled.scheme),
        )  # fmt: skip

    def _activation_format(self, settled: Settled) -> WeightRule:
        """The activations' integer format, for constants that are stored in it."""
        rule = self._legality.activations[str(settled.scheme.activation_bits)]
        return WeightRule(dtype=rule.dtype, granularities=("t",), symmetric=rule.symmetric)

    def _stored(
        self, node: ir.Node, value: ir.Value, kind: TensorKind, rule: WeightRule, granularity: str, why: str, *, scheme: str,
        algorithm: str, axis: int | None = None, channel_axis: int | None = None, block: int = 0,
        options: dict[str, float] | None = None, activation: str = "", group: str = "",
    ) -> TensorPlan:  # fmt: skip
        shape, elements, bits = _shape(value), _elements(value), _bits(rule.dtype)
        scales = {"t": 1, "c": shape[axis or 0] if shape else 1, "b": elements // (block or 1)}[granularity]
        return TensorPlan(
            value.name or "", kind, node.name or "", node.op_type, scheme, rule.dtype, why, symmetric=rule.symmetric,
            granularity=granularity, axis=axis, channel_axis=channel_axis, block=block,
            block_scale_levels=rule.block_scale_levels if block else 0, algorithm=algorithm, options=options or {},
            activation=activation, group=group, elements=elements, bytes_before=_bytes(value),
            bytes_after=math.ceil(elements * bits / 8) + scales * 4 + math.ceil(scales * bits / 8),
        )  # fmt: skip

    def _kept_float(self, node: ir.Node, value: ir.Value, kind: TensorKind, why: str) -> TensorPlan:
        return TensorPlan(
            value.name or "", kind, node.name or "", node.op_type, str(self._settled[node].scheme), "float", why,
            elements=_elements(value), bytes_before=_bytes(value), bytes_after=_bytes(value),
        )  # fmt: skip

    def plan(self, groups: Groups) -> ComponentPlan:
        """Everything about this component."""
        activations = [
            self._activation(name, groups)
            for name in self._values if name in self.regions.quantized or name in self.regions.kept_float
        ]  # fmt: skip
        self._check_integers(activations)
        constants = rounded_together(self.graph, list(self._constants(groups)))
        return ComponentPlan(self.name, str(self._default.scheme), (*constants, *activations))

    def _check_integers(self, activations: Sequence[TensorPlan]) -> None:
        """A scheme with integer activations that leaves them all float would be a silent no-op."""
        bits = self._default.scheme.activation_bits
        computing = [n for n in self.graph.graph if (w := weight_operand(n)) is not None and w.kind != "table"]
        if bits is None or not computing or any(t.quantized for t in activations):
            return
        reasons = "; ".join(sorted({t.why for t in activations})[:3])
        raise UsageError(
            f"{self._default.scheme} asks for {bits}-bit activations, but none can be: {reasons}",
            where=f"{self._target}, component {self.name}",
            fix="choose a scheme with fp16 or fp32 activations",
        )


def _is_matrix(node: ir.Node, operand: WeightOperand, shape: tuple[int, ...]) -> bool:
    """Whether a layer multiplies its input's channels by one matrix: so do convolutions whose kernel is one position."""
    if operand.kind == "linear":
        return len(shape) == 2
    pointwise = node.op_type == "Conv" and all(d == 1 for d in shape[2:])
    return pointwise and (node.attributes.get_int("group", 1) or 1) == 1


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""


def _shape(value: ir.Value) -> tuple[int, ...]:
    tensor = ir.convenience.get_const_tensor(value)
    return () if tensor is None else tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]


def _elements(value: ir.Value) -> int:
    shape = () if value.shape is None else tuple(value.shape)
    known = [d for d in shape if isinstance(d, int)]
    return math.prod(known) if value.shape is not None and len(known) == len(shape) else 0


def _bytes(value: ir.Value) -> int:
    tensor = ir.convenience.get_const_tensor(value)
    return 0 if tensor is None else tensor.nbytes


def _bits(dtype: str) -> int:
    first, last = INTEGER_RANGES[dtype]
    return (last - first).bit_length()
