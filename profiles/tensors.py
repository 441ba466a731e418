"""How large a graph's tensors are on a device."""

import math

import onnx_ir as ir

from pocketport.compress.graph import shape_of
from pocketport.compress.pivot.palettes import stored_palettes


class TensorSizes:
    """Sizes of a graph's tensors as a device stores them: a Q/DQ pair is one integer tensor, floats have `float_bits`.

    Of a palette, a device stores packed indices and tables; where each channel's table begins it knows.

    Attributes:
        palettes: weights that are stored as indices.
    """

    def __init__(self, graph: ir.Graph, float_bits: int) -> None:
        self._float_bits = float_bits
        self._constants: set[ir.Value] = set(graph.initializers.values())
        for node in graph:
            if node.op_type in ("Constant", "Shape") or (
                node.inputs and all(v is None or v in self._constants for v in node.inputs)
            ):
                self._constants.update(node.outputs)
        self.palettes = stored_palettes(graph)
        self._indices = {p.indices: p.bits for p in self.palettes.values()}
        self._offsets = {p.offsets for p in self.palettes.values()}

    def is_constant(self, value: ir.Value) -> bool:
        """Whether the value is known before the first run (initializers, and what is computed of them alone)."""
        return value in self._constants

    def bits(self, value: ir.Value) -> int:
        """Bits of one element of `value` as it is stored on the device."""
        if value in self.palettes:
            return self.palettes[value].bits
        producer = value.producer()
        if producer is not None and producer.op_type == "DequantizeLinear" and producer.inputs[0] is not None:
            return self.bits(producer.inputs[0])
        readers = {node.op_type for node, _ in value.uses()}
        if readers == {"QuantizeLinear"} and not value.is_graph_output():
            reader = next(iter(value.uses())).node
            return self.bits(reader.outputs[0])
        return stored_bits(value, self._float_bits)

    def stored_bytes(self, constant: ir.Value) -> int:
        """Bytes of a constant in a device's file; InputError if its shape is not static."""
        if constant in self._offsets:
            return 0
        bits = self._indices.get(constant, stored_bits(constant, self._float_bits))
        return (math.prod(shape_of(constant)) * bits + 7) // 8

    def bytes(self, value: ir.Value) -> int:
        """Bytes of the whole tensor; InputError if its shape is not static."""
        return (math.prod(shape_of(value)) * self.bits(value) + 7) // 8


def stored_bits(value: ir.Value, float_bits: int) -> int:
    """Bits of an element by dtype alone; floats count as `float_bits`, 64-bit indices as 32 (no NPU has 64)."""
    dtype = value.dtype
    if dtype is None or dtype in (
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
    ):
        return float_bits
    return min(dtype.bitwidth, 32)
