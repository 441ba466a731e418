"""Writing QuantizeLinear and DequantizeLinear into a graph, and palettes."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.encodings import Encoding, Palette
from pocketport.errors import VerificationError

STORAGE: dict[str, type] = {
    "int2": ml_dtypes.int2, "uint2": ml_dtypes.uint2, "int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4, "int8": np.int8,
    "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16, "int32": np.int32,
}  # fmt: skip


def integer_tensor(values: NDArray[np.integer], dtype: str, name: str) -> ir.Tensor[Any]:
    """An ONNX tensor of the integers; sub-byte types are packed two or four to the byte when written."""
    return ir.Tensor(values.astype(STORAGE[dtype], order="C"), name=name)


class QdqWriter:
    """Adds Q/DQ nodes to one graph in place. Everything that belongs to tensor `t` is named ``t/…``."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self._names = {v.name for node in model.graph for v in node.outputs} | set(model.graph.initializers)
        self.count = 0

    def activation(self, value: ir.Value, encoding: Encoding) -> None:
        """Put Q and DQ behind `value`; all that read it read the DQ. A graph output keeps its name on the DQ."""
        name = value.name or ""
        uses = list(value.uses())
        positions = [i for i, v in enumerate(self.graph.outputs) if v is value]
        scale, zero = self._encoding(name, encoding)
        quantized = self._node("QuantizeLinear", [value, scale, zero], f"{name}/q", ir.DataType[encoding.dtype.upper()])
        restored = self._node("DequantizeLinear", [quantized.outputs[0], scale, zero], f"{name}/dq", value.dtype)
        for node in (quantized, restored):
            node.outputs[0].shape = value.shape
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], [quantized, restored])
        else:
            self.graph.insert_after(producer, [quantized, restored])
        for node, index in uses:
            node.replace_input_with(index, restored.outputs[0])
        for i in positions:
            self._rename(value, f"{name}/float")
            restored.outputs[0].name = name
            self.graph.outputs[i] = restored.outputs[0]

    def constant(self, value: ir.Value, integers: NDArray[np.integer], encoding: Encoding) -> None:
        """Store `value` as integers with a DQ; all that read it read the DQ, and the float constant goes."""
        name = value.name or ""
        stored = self._initializer(integer_tensor(integers, encoding.dtype, f"{name}/q"))
        scale, zero = self._encoding(name, encoding)
        attributes: dict[str, int] = {} if encoding.axis is None else {"axis": encoding.axis}
        if encoding.block:
            attributes["block_size"] = encoding.block
        restored = self._node("DequantizeLinear", [stored, scale, zero], f"{name}/dq", value.dtype, **attributes)
        self._replace(value, [restored], integers.shape)

    def palette(self, value: ir.Value, indices: NDArray[np.integer], palette: Palette) -> None:
        """Store `value` as indices; all that read it read what they choose from the tables, which are one behind another.

        Cast, Add of where the channel's table begins (unless there is one table only), Gather: see `compress.pivot.palettes`.
        """
        name = value.name or ""
        dtype = "uint4" if palette.bounds[1] < 16 else "uint8"
        stored = self._initializer(integer_tensor(indices, dtype, f"{name}/q"))
        table = self._initializer(ir.Tensor(palette.table.ravel(), name=f"{name}/table"))
        nodes = [self._node("Cast", [stored], f"{name}/index", ir.DataType.INT32, to=ir.DataType.INT32.value)]
        if len(palette.table) > 1:
            offsets = self._initializer(ir.Tensor(palette.offsets(indices.shape), name=f"{name}/offset"))
            nodes.append(self._node("Add", [nodes[-1].outputs[0], offsets], f"{name}/entry", ir.DataType.INT32))
        nodes.append(self._node("Gather", [table, nodes[-1].outputs[0]], f"{name}/dq", value.dtype, axis=0))
        self._replace(value, nodes, indices.shape)

    def _replace(self, value: ir.Value, nodes: list[ir.Node], shape: tuple[int, ...]) -> None:
        """Put `nodes` in the place of a constant: whatever read it reads the last one's output."""
        name, uses, producer = value.name or "", list(value.uses()), value.producer()
        for node in nodes:
            node.outputs[0].shape = ir.Shape(shape)
        self.graph.insert_before(self.graph[0], nodes)
        for node, index in uses:
            node.replace_input_with(index, nodes[-1].outputs[0])
        if producer is not None:
            self.graph.remove(producer, safe=True)
        elif name in self.graph.initializers:
            del self.graph.initializers[name]

    def _encoding(self, name: str, encoding: Encoding) -> tuple[ir.Value, ir.Value]:
        scale = ir.Tensor(np.asarray(encoding.scale, np.float32), name=f"{name}/scale")
        return self._initializer(scale), self._initializer(
            integer_tensor(encoding.zero_point, encoding.dtype, f"{name}/zero_point")
        )

    def _initializer(self, tensor: ir.Tensor[Any]) -> ir.Value:
        name = self._unused(tensor.name or "")
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def _node(
        self, op: str, inputs: list[ir.Value], name: str, dtype: ir.DataType | None, **attributes: int
    ) -> ir.Node:
        node = ir.node(op, inputs, attributes, name=self._unused(name))
        node.outputs[0].name = name
        if dtype is not None:
            node.outputs[0].type = ir.TensorType(dtype)
        self.count += 1
        return node

    def _rename(self, value: ir.Value, name: str) -> None:
        value.name = self._unused(name)

    def _unused(self, name: str) -> str:
        if name in self._names:
            raise VerificationError(
                f"the graph already has a value {name!r}",
                where=f"tensor {name}",
                fix="quantize the float graph, not a quantized one",
            )
        self._names.add(name)
        return name
