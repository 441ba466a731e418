"""Reading and writing QuantizeLinear/DequantizeLinear pairs in an `onnx_ir` graph."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.encodings import Encoding
from pocketport.compress.graph import constant, static_shape
from pocketport.compress.passes.rewriting import replace_value


@dataclass(frozen=True)
class Port:
    """A per-tensor encoding: of an activation, or of a graph input or output that is an integer in the context."""

    dtype: str
    scale: float
    zero_point: int

    @property
    def encoding(self) -> Encoding:
        """The same as an Encoding."""
        return Encoding(self.dtype, np.array(self.scale, np.float32), np.array(self.zero_point, np.int32))


def parameters(node: ir.Node) -> Port | None:
    """The encoding of a QuantizeLinear or DequantizeLinear; None if it has none, or more than one scale."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    scale = constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or zero is None or scale.size != 1:
        return None
    return Port(str(zero.dtype), float(scale.reshape(())), int(zero.reshape(())))


def attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def encoding_of(value: ir.Value) -> Port | None:
    """The encoding of a value that a DequantizeLinear gives."""
    node = value.producer()
    return None if node is None or node.op_type != "DequantizeLinear" else parameters(node)


def stored_integers(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The constant integers behind a value that a DequantizeLinear gives; None for an activation."""
    node = None if value is None else value.producer()
    return None if node is None or node.op_type != "DequantizeLinear" else constant(node.inputs[0])


def stored_reals(node: ir.Node) -> NDArray[np.float32]:
    """What a DequantizeLinear of constants gives."""
    integers, scale = constant(node.inputs[0]), constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if integers is None or scale is None:
        raise ValueError(f"{node.name} does not dequantize constants")
    offset = np.zeros(scale.shape, np.int32) if zero is None else zero.astype(np.int32)
    axis = attribute(node, "axis", 1) if scale.size > 1 else None
    encoding = Encoding("int32", scale.astype(np.float32), offset, axis, attribute(node, "block_size", 0))
    return encoding.dequantize(integers.astype(np.int32))


def quantizer_of(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear that alone reads a node's output."""
    users = [user for user, _ in node.outputs[0].uses()]
    return users[0] if len(users) == 1 and users[0].op_type == "QuantizeLinear" else None


def before_rounding(value: ir.Value) -> ir.Value:
    """What a DequantizeLinear and the QuantizeLinear before it were given; a value without them itself."""
    for op in ("DequantizeLinear", "QuantizeLinear"):
        node = value.producer()
        if node is None or node.op_type != op or node.inputs[0] is None:
            return value
        value = node.inputs[0]
    return value


def insert(
    before: ir.Node, op: str, inputs: list[ir.Value], name: str, shape: tuple[int, ...],
    dtype: ir.DataType = ir.DataType.FLOAT, **attributes: int | Sequence[int],
) -> ir.Value:  # fmt: skip
    """A new node in front of another; its output."""
    node = ir.node(op, inputs, attributes=attributes, name=name)
    out = node.outputs[0]
    out.name, out.shape, out.dtype = f"{name}_out", ir.Shape(shape), dtype
    _graph(before).insert_before(before, node)
    return out


def reshaped(before: ir.Node, value: ir.Value, shape: tuple[int, ...], name: str) -> ir.Value:
    """`value` in other dimensions, by a Reshape in front of a node."""
    return insert(before, "Reshape", [value, store(before, f"{name}_shape", np.array(shape, np.int64))], name, shape)


def store(near: ir.Node, name: str, array: NDArray[np.generic]) -> ir.Value:
    """A new initializer in the graph of `near`."""
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    _graph(near).register_initializer(value)
    return value


def requantized(before: ir.Node, value: ir.Value, port: Port, name: str) -> ir.Value:
    """`value` rounded to `port`: a QuantizeLinear and a DequantizeLinear in front of a node."""
    scalars, shape = _scalars(before, port, f"{name}_q"), static_shape(value) or ()
    dtype = ir.DataType[port.dtype.upper()]
    integers = insert(before, "QuantizeLinear", [value, *scalars], f"{name}_quantize", shape, dtype)
    return insert(before, "DequantizeLinear", [integers, *scalars], f"{name}_dequantize", shape)


def dequantized(before: ir.Node, integers: NDArray[np.generic], port: Port, name: str) -> ir.Value:
    """Constant integers as an initializer and its DequantizeLinear in front of a node."""
    inputs = [store(before, name, integers), *_scalars(before, port, name)]
    return insert(before, "DequantizeLinear", inputs, f"{name}_dequantize", integers.shape)


def stored(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The numbers of a constant operand as they are kept: reals, or integers of one scale; None for all others."""
    integers = stored_integers(value)
    if value is None or integers is None:
        return constant(value)
    return integers if encoding_of(value) is not None else None


def restored(before: ir.Node, value: ir.Value, numbers: NDArray[np.generic], name: str) -> ir.Value:
    """A constant operand like `value`, rounded as it is if it is, with other `numbers` kept."""
    port = encoding_of(value)
    return store(before, name, numbers) if port is None else dequantized(before, numbers, port, name)


def substitute(model: ir.Model, node: ir.Node, value: ir.Value) -> None:
    """`value` instead of what a node gives, and the node out of the graph."""
    replace_value(node.outputs[0], value)
    model.graph.remove(node, safe=True)


def _scalars(near: ir.Node, port: Port, name: str) -> list[ir.Value]:
    scale, zero = np.array(port.scale, np.float32), np.array(port.zero_point, port.dtype)
    return [store(near, f"{name}_scale", scale), store(near, f"{name}_zero_point", zero)]


def _graph(node: ir.Node) -> ir.Graph:
    if not isinstance(node.graph, ir.Graph):
        raise ValueError(f"{node.name} is in no graph")
    return node.graph
