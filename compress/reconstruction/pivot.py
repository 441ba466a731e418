"""Weights and biases of a pivot, to be read as they are and written anew."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.encodings import INTEGER_RANGES, Encoding, EncodingTable
from pocketport.compress.graph import constant
from pocketport.compress.pivot.qdq import integer_tensor
from pocketport.compress.pivot.weights import BLOCK_UNITS, channel_scales
from pocketport.compress.planning.plan import ComponentPlan, TensorKind, TensorPlan
from pocketport.compress.structure import WeightOperand, weight_operand
from pocketport.errors import VerificationError

INT32_ROOM = 2**31 - 2**8  # float32 scales are rounded: stay clear of the end


@dataclass
class PivotWeights:
    """The layers of one component whose weights are rounded on samples.

    Args:
        plan: of the component.
        float_graph: that the pivot was made from.
        pivot: changed in place.
        table: encodings by ``component/tensor``, changed in place.
    """

    plan: ComponentPlan
    float_graph: ir.Model
    pivot: ir.Model
    table: EncodingTable
    _plans: dict[str, TensorPlan] = field(init=False)

    def __post_init__(self) -> None:
        self._plans = {t.tensor: t for t in self.plan.tensors}

    def layers_named(self, tensor: str) -> list[ir.Node]:
        """The node that computes with a weight of this name, if there is one."""
        return planned_layers(self.float_graph, {tensor: self._plans[tensor]}) if tensor in self._plans else []

    @property
    def encodings(self) -> Mapping[str, Encoding]:
        """Of all tensors of the component, by name; follows what is written."""
        return _Encodings(self.plan.component, self.table)

    def plan_of(self, node: ir.Node) -> TensorPlan:
        """The plan of a layer's weight."""
        return self._plans[_operand(node).value.name or ""]

    def weight(self, node: ir.Node) -> NDArray[np.float32]:
        """The float weight, in the graph's layout."""
        return np.asarray(constant(_operand(node).value), np.float32)

    def integers(self, node: ir.Node) -> NDArray[np.int32]:
        """A weight's integers as they stand, in the graph's layout."""
        stored = self.pivot.graph.initializers[f"{_operand(node).value.name}/q"].const_value
        assert stored is not None
        return np.asarray(stored.numpy()).astype(np.int32)

    def encoding(self, node: ir.Node) -> Encoding:
        """A weight's encoding as it stands."""
        return self.table[self._key(_operand(node).value)]

    def bias(self, node: ir.Node) -> NDArray[np.float32] | None:
        """The float bias of a layer, None where there is none that is its own."""
        value = self._bias_value(node)
        return None if value is None else np.asarray(constant(value), np.float32)

    def least_scale(self, node: ir.Node) -> NDArray[np.float64] | None:
        """Scales of the weight under which an int32 bias would overflow, [N]; None where it is float."""
        value = _operand(node).bias
        if value is None or self._key(value) not in self.table:
            return None
        least = np.abs(np.asarray(constant(value), np.float64)) / (self._input_scale(node) * INT32_ROOM)
        return least * BLOCK_UNITS if self.encoding(node).block else least

    def write_weight(self, node: ir.Node, integers: NDArray[np.int32], encoding: Encoding) -> None:
        """Other integers, in the graph's layout, and the scale that they have."""
        value = _operand(node).value
        key, name, initializers = self._key(value), value.name or "", self.pivot.graph.initializers
        initializers[f"{name}/q"].const_value = integer_tensor(integers, encoding.dtype, f"{name}/q")
        scale = ir.Tensor(np.asarray(encoding.scale, np.float32), name=f"{name}/scale")
        initializers[f"{name}/scale"].const_value = scale
        self.table.encodings[key] = encoding

    def write_bias(self, node: ir.Node, bias: NDArray[np.float32] | None) -> None:
        """Another bias, None: the one that the pivot has; as int32 at s_x · s_w where the pivot has it so.

        A bias that fills int32 leaves no room and stays the float model's.
        """
        value = _operand(node).bias
        if value is None:
            return
        name, initializers = value.name or "", self.pivot.graph.initializers
        if self._key(value) not in self.table:
            if bias is not None:
                initializers[name].const_value = ir.tensor(bias, name=name)
            return
        before = self.table[self._key(value)]
        stored = initializers[f"{name}/q"].const_value
        assert stored is not None
        if bias is None:
            bias = before.dequantize(np.asarray(stored.numpy()))
        operand, weights = _operand(node), channel_scales(self.encoding(node), _operand(node).channel_axis)
        scale = np.asarray(self._input_scale(node) * weights, np.float32)
        reach = np.abs(np.asarray(constant(operand.bias), np.float64)) / scale
        bias = np.where(reach > INT32_ROOM / 2, np.asarray(constant(operand.bias), np.float32), bias)
        integers = np.rint(bias.astype(np.float64) / scale)
        low, high = INTEGER_RANGES["int32"]
        if integers.size and not (low <= integers.min() and integers.max() <= high):
            raise VerificationError(
                "its int32 integers at s_x · s_w overflow", where=f"tensor {self._key(value)}",
                fix="leave its node float",
            )  # fmt: skip
        initializers[f"{name}/q"].const_value = integer_tensor(integers.astype(np.int32), "int32", f"{name}/q")
        initializers[f"{name}/scale"].const_value = ir.Tensor(scale, name=f"{name}/scale")
        self.table.encodings[self._key(value)] = Encoding("int32", scale, np.zeros(scale.shape, np.int32), before.axis)

    def _key(self, value: ir.Value) -> str:
        return f"{self.plan.component}/{value.name}"

    def _input_scale(self, node: ir.Node) -> float:
        activation = _operand(node).activation
        assert activation is not None
        return float(self.table[self._key(activation)].scale)

    def _bias_value(self, node: ir.Node) -> ir.Value | None:
        operand = _operand(node)
        alone = operand.bias is not None and operand.bias.is_initializer() and len(operand.bias.uses()) == 1
        return operand.bias if alone and len(operand.value.uses()) == 1 else None


class _Encodings(Mapping[str, Encoding]):
    """One component's part of a table."""

    def __init__(self, component: str, table: EncodingTable) -> None:
        self._prefix, self._table = f"{component}/", table

    def __getitem__(self, name: str) -> Encoding:
        return self._table.encodings[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix(self._prefix) for key in self._table if key.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _operand(node: ir.Node) -> WeightOperand:
    operand = weight_operand(node)
    assert operand is not None
    return operand


def planned_layers(graph: ir.Model, plans: Mapping[str, TensorPlan]) -> list[ir.Node]:
    """The nodes of a float graph that compute with these weights; of a weight with several nodes the first."""
    found: dict[str, ir.Node] = {}
    for node in graph.graph:
        operand = weight_operand(node)
        name = "" if operand is None else operand.value.name or ""
        if name in plans and plans[name].kind is TensorKind.WEIGHT and name not in found:
            found[name] = node
    return list(found.values())
