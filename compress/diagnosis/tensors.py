"""Every quantized tensor by itself: how far its own rounding takes it from float, and how its range fits its values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.encodings import Encoding, EncodingTable, Palette
from pocketport.calibration.metrics import EXACT_DB, decibels
from pocketport.compress.diagnosis.compare import compare_graphs
from pocketport.compress.diagnosis.switches import Switch, corrected_biases, switches_of
from pocketport.compress.executors.ort_executor import Arrays, OrtExecutor
from pocketport.compress.graph import clone_graph, constant
from pocketport.compress.planning.plan import ComponentPlan, TensorKind, TensorPlan

BINS = 64


@dataclass(frozen=True)
class TensorError:
    """One quantized tensor.

    Attributes:
        plan: what was done to it.
        switch: index of its switch in `switches_of` the component.
        local_db: SQNR of its own rounding, given float inputs. Of an activation: of itself. Of a weight, with its bias:
            of what its node makes of float inputs when nothing else is rounded; of the weights of a sum: of their sum.
        cumulative_db: SQNR in the pivot, with all roundings before it and its own. Of a weight: of what its node makes.
    """

    plan: TensorPlan
    switch: int
    local_db: float
    cumulative_db: float


@dataclass(frozen=True)
class Fit:
    """How a tensor's range fits its values.

    Attributes:
        low, high: extremes of the values.
        chosen_low, chosen_high: what its integers reach; of several scales, the widest.
        clipped: share of the values that the range cuts off.
        levels: how many of the integers are used.
        of_levels: how many there are.
        edges: of the histograms' bins, [bins + 1].
        before: values a bin in float.
        after: the same once rounded.
    """

    low: float
    high: float
    chosen_low: float
    chosen_high: float
    clipped: float
    levels: int
    of_levels: int
    edges: NDArray[np.float64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]


class FloatProbe:
    """The float graph giving its tensors, and what its nodes make when one constant of theirs is rounded.

    Args:
        reference: the float graph.
        pivot: what `apply_plan` made of it.
        plan: by which it was made.
        encodings: of the run, by ``component/tensor``.
    """

    def __init__(self, reference: ir.Model, pivot: ir.Model, plan: ComponentPlan, encodings: EncodingTable) -> None:
        self.switches = switches_of(plan)
        self._component = plan.component
        self._encodings = encodings
        self.pivot = pivot
        self.reference = reference
        self._corrected = corrected_biases(reference, pivot)
        self.activations = [t for s in self.switches for t in s.tensors if t.kind is TensorKind.ACTIVATION]
        self.constants = [s for s in self.switches if not s.is_activation]
        copy = clone_graph(reference)
        made = {v.name or "": v for node in copy.graph for v in node.outputs}
        inputs = {v.name for v in copy.graph.inputs}
        self.results: dict[str, str] = {}  # constant → what its node makes; weights of a sum: what adds up the last one
        self.pairs: dict[str, tuple[str, str]] = {}  # constant → that, and the same where it alone is rounded
        outputs = {t.tensor: made[t.tensor] for t in self.activations if t.tensor not in inputs}
        for switch in self.constants:
            leader, nodes = switch.leader.tensor, self._nodes(copy, switch)
            result, alone = nodes[0].outputs[0], self._alone(copy, switch, nodes[0])
            self.results[leader] = result.name or ""
            if len(nodes) > 1:
                twins = [alone, *(self._alone(copy, switch, node) for node in nodes[1:])]
                self.results[leader] = next(iter(nodes[-1].outputs[0].uses())).node.outputs[0].name or ""
                result, alone = (
                    _added(copy, values, f"{leader}/{kind}")
                    for kind, values in (("sum", [node.outputs[0] for node in nodes]), ("alone sum", twins))
                )
            self.pairs[leader] = result.name or "", alone.name or ""
            outputs |= {value.name or "": value for value in (result, alone)}
        copy.graph.outputs[:] = list(outputs.values())
        copy.graph.sort()
        self._executor = OrtExecutor(copy)

    def encoding(self, tensor: str) -> Encoding:
        """An activation's encoding."""
        return self._encodings[f"{self._component}/{tensor}"]

    def written(self, tensor: str) -> Encoding | Palette:
        """How a constant is written."""
        return self._encodings.constant(f"{self._component}/{tensor}")

    def real(self, tensor: str) -> NDArray[np.generic]:
        """A float constant."""
        values = {v.name: v for node in self.reference.graph for v in node.outputs}
        return np.asarray(constant(self.reference.graph.initializers.get(tensor) or values[tensor]))

    def rounded(self, tensor: str) -> NDArray[np.generic]:
        """A constant as the pivot has it."""
        stored = constant(self.pivot.graph.initializers.get(f"{tensor}/q"))
        if stored is None:  # a float bias that took something back
            return np.asarray(constant(self.pivot.graph.initializers[tensor]))
        return self.written(tensor).dequantize(stored.astype(np.int32))

    @staticmethod
    def _nodes(copy: ir.Model, switch: Switch) -> list[ir.Node]:
        """The first node that reads a constant; of the weights of a sum that of each."""
        wanted = switch.weights if len(switch.weights) > 1 else (switch.leader.tensor,)
        return [next(n for n in copy.graph if any(v is not None and v.name == w for v in n.inputs)) for w in wanted]

    def _alone(self, copy: ir.Model, switch: Switch, node: ir.Node) -> ir.Value:
        """What a twin of the node makes that reads what is rounded together."""
        leader = switch.leader.tensor
        names = {t.tensor for t in switch.tensors} | {b for b, w in self._corrected.items() if w in switch.weights}
        prefix = f"{leader}/alone/{node.name}"
        inputs: list[ir.Value | None] = []
        for value in node.inputs:
            if value is None or value.name not in names:
                inputs.append(value)
                continue
            array = self.rounded(value.name or "").astype(np.asarray(constant(value)).dtype)
            tensor = ir.tensor(array, name=f"{prefix}/{value.name}")
            stored = ir.Value(name=tensor.name, shape=value.shape, type=value.type, const_value=tensor)
            copy.graph.register_initializer(stored)
            inputs.append(stored)
        twin = ir.Node(
            node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs), name=prefix
        )
        for output, own in zip(twin.outputs, node.outputs, strict=True):
            output.name = f"{prefix}/{own.name}"
            output.shape, output.type = own.shape, own.type
        copy.graph.append(twin)
        return twin.outputs[0]

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Tensors by name; graph inputs among them."""
        wanted = {name: value for name, value in feeds.items() if name in self._executor.inputs}
        return {**{k: np.asarray(v) for k, v in feeds.items()}, **self._executor.run(wanted)}


def _added(copy: ir.Model, values: Sequence[ir.Value], name: str) -> ir.Value:
    node = ir.node("Sum", values, name=name)
    total = node.outputs[0]
    total.name, total.shape, total.type = name, values[0].shape, values[0].type
    copy.graph.append(node)
    return total


def tensor_errors(probe: FloatProbe, pivot: ir.Model, feeds: Sequence[Arrays]) -> list[TensorError]:
    """Local and cumulative SQNR of every quantized tensor but those that only move data; biases go with their weight.

    Args:
        probe: of the float graph.
        pivot: the quantized graph.
        feeds: inputs by name, one mapping a sample.
    """
    compared = {c.tensor: c.cumulative_db for c in compare_graphs(probe.reference, pivot, feeds)}
    inputs = {v.name for v in probe.reference.graph.inputs}
    sums: dict[str, NDArray[np.float64]] = {}

    def add(name: str, real: NDArray[np.generic], other: NDArray[np.generic]) -> None:
        r = np.asarray(real, np.float64)
        energies = np.array([np.square(r).sum(), np.square(r - np.asarray(other, np.float64)).sum()])
        sums[name] = sums.get(name, np.zeros(2)) + energies

    for values in feeds:
        tensors = probe.run(values)
        for plan in probe.activations:
            if plan.tensor in compared or plan.tensor in inputs:
                real = np.asarray(tensors[plan.tensor], np.float32)
                encoding = probe.encoding(plan.tensor)
                add(plan.tensor, real, encoding.dequantize(encoding.quantize(real)))
        for constant_name, (result, alone) in probe.pairs.items():
            add(constant_name, tensors[result], tensors[alone])
    found = []
    for index, switch in enumerate(probe.switches):
        for plan in switch.tensors if switch.is_activation else switch.tensors[:1]:
            if plan.tensor in sums:
                signal, noise = (float(v) for v in sums[plan.tensor])
                local = decibels(signal, noise, EXACT_DB)
                cumulative = compared.get(probe.results.get(plan.tensor, plan.tensor), local)
                found.append(TensorError(plan, index, local, cumulative))
    return found


def fits(probe: FloatProbe, plans: Iterable[TensorPlan], feeds: Sequence[Arrays]) -> Mapping[str, Fit]:
    """How the ranges of some tensors fit: of activations on `feeds`, of constants once and for all."""
    wanted = list(plans)
    values: dict[str, list[NDArray[np.float32]]] = {p.tensor: [] for p in wanted}
    moving = [p for p in wanted if p.kind is TensorKind.ACTIVATION]
    for sample in feeds if moving else ():
        tensors = probe.run(sample)
        for plan in moving:
            values[plan.tensor].append(np.asarray(tensors[plan.tensor], np.float32).ravel())
    found = {}
    for plan in wanted:
        if plan.kind is TensorKind.ACTIVATION:
            encoding = probe.encoding(plan.tensor)
            real = np.concatenate(values[plan.tensor])
            found[plan.tensor] = fit(real, encoding.quantize(real), encoding)
        else:
            real = np.asarray(probe.real(plan.tensor), np.float32)
            stored = np.asarray(constant(probe.pivot.graph.initializers[f"{plan.tensor}/q"])).astype(np.int32)
            found[plan.tensor] = fit(real, stored, probe.written(plan.tensor))
    return found


def fit(real: NDArray[np.float32], integers: NDArray[np.int32], encoding: Encoding | Palette) -> Fit:
    """How `encoding` fits `real`, which was rounded to `integers` of the same shape."""
    first, last = encoding.bounds
    ends = [encoding.dequantize(np.full(real.shape, bound, np.int32)) for bound in (first, last)]
    half = (ends[1] - ends[0]) / np.float32(2 * (last - first))
    clipped = (real < ends[0] - half) | (real > ends[1] + half)
    low, high = float(real.min()), float(real.max())
    rounded = encoding.dequantize(integers)
    edges = np.linspace(min(low, float(rounded.min())), max(high, float(rounded.max())), BINS + 1)
    if edges[0] == edges[-1]:
        edges = np.linspace(edges[0] - 0.5, edges[0] + 0.5, BINS + 1)
    return Fit(
        low, high, float(ends[0].min()), float(ends[1].max()), float(clipped.mean()), len(np.unique(integers)), last - first + 1,
        edges, np.histogram(real, edges)[0], np.histogram(rounded, edges)[0],
    )  # fmt: skip
