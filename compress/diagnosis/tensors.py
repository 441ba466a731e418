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
            of what its node makes of float inputs when nothing else is rounded.
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
        self.results: dict[str, str] = {}  # constant → what its node makes
        outputs = {t.tensor: made[t.tensor] for t in self.activations if t.tensor not in inputs}
        for switch in self.constants:
            node, alone = self._alone(copy, switch)
            result = node.outputs[0]
            self.results[switch.leader.tensor] = result.name or ""
            outputs[result.name or ""] = result
            outputs[_alone_name(switch.leader.tensor)] = alone
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

    def _alone(self, copy: ir.Model, switch: Switch) -> tuple[ir.Node, ir.Value]:
        """The first node that reads a constant, and a twin of it that reads the rounded one (and the bias with it)."""
        leader = switch.leader.tensor
        node = next(n for n in copy.graph if any(v is not None and v.name == leader for v in n.inputs))
        names = {t.tensor for t in switch.tensors} | {b for b, w in self._corrected.items() if w == leader}
        inputs: list[ir.Value | None] = []
        for value in node.inputs:
            if value is None or value.name not in names:
                inputs.append(value)
                continue
            array = self.rounded(value.name or "").astype(np.asarray(constant(value)).dtype)
            tensor = ir.tensor(array, name=f"{leader}/alone/{value.name}")
            stored = ir.Value(name=tensor.name, shape=value.shape, type=value.type, const_value=tensor)
            copy.graph.register_initializer(stored)
            inputs.append(stored)
        twin = ir.Node(
            node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs),
            name=_alone_name(leader),
        )  # fmt: skip
        for output, own in zip(twin.outputs, node.outputs, strict=True):
            output.name = _alone_name(leader) if own is node.outputs[0] else f"{_alone_name(leader)}/{own.name}"
            output.shape, output.type = own.shape, own.type
        copy.graph.append(twin)
        return node, twin.outputs[0]

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Tensors by name; graph inputs among them."""
        wanted = {name: value for name, value in feeds.items() if name in self._executor.inputs}
        return {**{k: np.asarray(v) for k, v in feeds.items()}, **self._executor.run(wanted)}


def _alone_name(tensor: str) -> str:
    return f"{tensor}/alone"


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
        for constant_name, result in probe.results.items():
            add(constant_name, tensors[result], tensors[_alone_name(constant_name)])
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
