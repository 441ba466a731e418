"""A pivot whose roundings can be turned off one by one, to see what each costs at the outputs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.statistics import side_by_side
from pocketport.compress.diagnosis.samples import Samples, output_noise
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.graph import clone_graph, constant
from pocketport.compress.planning.plan import ComponentPlan, TensorKind, TensorPlan
from pocketport.compress.structure import weight_operand

FLAGS = "switches"  # the graph input that turns roundings on


@dataclass(frozen=True)
class Switch:
    """Tensors that are rounded together or not at all.

    Activations that hold the same data share an encoding, and a bias goes along with its layer's weight. The weights of a
    sum make up for each other's rounding.

    Attributes:
        tensors: their plans, the one that the others follow first.
    """

    tensors: tuple[TensorPlan, ...]

    @property
    def leader(self) -> TensorPlan:
        """The tensor by whose name it goes."""
        return self.tensors[0]

    @property
    def weights(self) -> tuple[str, ...]:
        """Those among them that are weights."""
        return tuple(t.tensor for t in self.tensors if t.kind is TensorKind.WEIGHT)

    @property
    def is_activation(self) -> bool:
        """Whether calibration, and not only the weights, decides about its range."""
        return self.leader.kind is TensorKind.ACTIVATION


def switches_of(plan: ComponentPlan) -> list[Switch]:
    """Every quantized tensor of the component in one switch; constants first, then activations in graph order."""
    groups: dict[str, list[TensorPlan]] = {}
    sums = {t.tensor: side_by_side(t.terms) for t in plan.tensors if t.terms}
    for tensor in plan.tensors:
        if tensor.quantized:
            weight = tensor.partner or tensor.tensor
            groups.setdefault(tensor.group or sums.get(weight, weight), []).append(tensor)
    rank = (TensorKind.ACTIVATION, TensorKind.WEIGHT, TensorKind.TABLE, TensorKind.NORM, TensorKind.CONSTANT)
    leading = {kind: index for index, kind in enumerate(rank)}
    return [Switch(tuple(sorted(g, key=lambda t: leading.get(t.kind, len(rank))))) for g in groups.values()]


def corrected_biases(reference: ir.Model, pivot: ir.Model) -> dict[str, str]:
    """Float bias → weight, of the biases that took back what rounding their weight did."""
    found = {}
    for node in reference.graph:
        operand = weight_operand(node)
        bias = None if operand is None else operand.bias
        other = None if bias is None else pivot.graph.initializers.get(bias.name or "")
        if operand is not None and bias is not None and other is not None:
            before, after = constant(bias), constant(other)
            if before is not None and after is not None and not np.array_equal(before, after):
                found[bias.name or ""] = operand.value.name or ""
    return found


class SwitchedGraph:
    """A pivot with one more input, bool [switches]: where false, the tensors of that switch stay float.

    All on is the pivot, all off the float graph, bit for bit but for onnxruntime's choice of kernels; an integer cache is
    rounded either way.

    Args:
        reference: the float graph.
        pivot: what `apply_plan` made of it.
        plan: by which it was made.
    """

    def __init__(self, reference: ir.Model, pivot: ir.Model, plan: ComponentPlan) -> None:
        self.switches = switches_of(plan)
        copy = clone_graph(pivot)
        self._graph = copy.graph
        self._values = {v.name or "": v for node in copy.graph for v in node.outputs}
        self._values |= {v.name or "": v for v in copy.graph.inputs}
        self._floats = {v.name or "": v for node in reference.graph for v in node.outputs}
        self._floats |= {v.name or "": v for v in reference.graph.initializers.values()}
        flags = ir.Value(name=FLAGS, shape=ir.Shape([len(self.switches)]), type=ir.TensorType(ir.DataType.BOOL))
        copy.graph.inputs.append(flags)
        corrected = corrected_biases(reference, pivot)
        for index, switch in enumerate(self.switches):
            position = self._constant(f"{FLAGS}/{index}", np.array(index, np.int64))
            flag = self._node("Gather", [flags, position], f"{FLAGS}/{index}/on", ir.DataType.BOOL, ir.Shape([]))
            for tensor in switch.tensors:
                if tensor.kind is TensorKind.ACTIVATION:
                    self._activation(tensor.tensor, flag)
                else:
                    self._stored(tensor.tensor, self._values[f"{tensor.tensor}/dq"], flag)
            for bias, weight in corrected.items():
                if weight in switch.weights:
                    self._stored(bias, copy.graph.initializers[bias], flag)
        copy.graph.sort()
        self._executor = OrtExecutor(copy)

    def _activation(self, name: str, flag: ir.Value) -> None:
        restored = self._values.get(f"{name}/dq")
        if restored is None:  # a graph output, whose name went to the DequantizeLinear
            self._choose(name, flag, self._values[name], self._values[f"{name}/float"])
        else:
            self._choose(name, flag, restored, self._values[name])

    def _stored(self, name: str, restored: ir.Value, flag: ir.Value) -> None:
        real = self._constant(f"{name}/real", np.asarray(constant(self._floats[name])))
        self._choose(name, flag, restored, real)

    def _choose(self, name: str, flag: ir.Value, rounded: ir.Value, real: ir.Value) -> None:
        """Whatever reads `rounded` reads either of the two from now on."""
        uses = list(rounded.uses())
        chosen = self._node("Where", [flag, rounded, real], f"{name}/chosen", rounded.dtype, rounded.shape)
        for node, index in uses:
            node.replace_input_with(index, chosen)
        for index, output in enumerate(self._graph.outputs):
            if output is rounded:
                chosen.name, rounded.name = rounded.name, f"{name}/rounded"
                self._graph.outputs[index] = chosen

    def _constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def _node(
        self, op: str, inputs: Sequence[ir.Value], name: str, dtype: ir.DataType | None, shape: ir.Shape | None
    ) -> ir.Value:
        node = ir.node(op, inputs, name=name)
        output = node.outputs[0]
        output.name, output.shape = name, shape
        if dtype is not None:
            output.type = ir.TensorType(dtype)
        self._graph.append(node)
        return output

    def noise(self, samples: Samples, on: Iterable[int]) -> dict[str, float]:
        """Output → relative noise, with the roundings of these switches and no others."""
        flags = np.zeros(len(self.switches), np.bool_)
        flags[list(on)] = True
        return output_noise(samples, [self._executor.run({**feeds, FLAGS: flags}) for feeds in samples.feeds])


@dataclass(frozen=True)
class Influences:
    """What the roundings of one component do to its outputs, relative noise.

    Attributes:
        everything: by output, as the pivot is.
        activations: with the activations' roundings alone.
        constants: with those of weights and other constants alone.
        alone: by switch, at the output where `everything` is worst, with that switch alone.
    """

    everything: dict[str, float]
    activations: dict[str, float]
    constants: dict[str, float]
    alone: tuple[float, ...]

    @property
    def worst(self) -> str:
        """The output whose error is largest."""
        return max(self.everything, key=lambda key: self.everything[key])


def influences(graph: SwitchedGraph, samples: Samples, progress: Callable[[int], None] | None = None) -> Influences:
    """Measure every switch alone.

    Args:
        graph: of the component.
        samples: held-out ones.
        progress: called with the number of switches done.
    """
    indices = range(len(graph.switches))
    everything = graph.noise(samples, indices)
    worst = max(everything, key=lambda key: everything[key])
    alone = []
    for index in indices:
        alone.append(graph.noise(samples, [index])[worst])
        if progress:
            progress(index + 1)
    of_activations = [i for i in indices if graph.switches[i].is_activation]
    of_constants = [i for i in indices if not graph.switches[i].is_activation]
    return Influences(
        everything, graph.noise(samples, of_activations), graph.noise(samples, of_constants), tuple(alone)
    )
