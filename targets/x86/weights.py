"""Quantized constants of a pivot, as onnxruntime's lowering looks at them."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.graph import constant


@dataclass(frozen=True)
class SymmetricWeight:
    """Integers of any shape, the float32 scales behind DequantizeLinear, and where those belong.

    Attributes:
        node: the DequantizeLinear.
        integers: as stored, int4 or int8.
        scales: shape () or [C] along `axis`, or the integers' shape with `axis` divided by `block`.
        axis: not negative.
        block: 0 when not blocked.
    """

    node: ir.Node
    integers: NDArray[np.generic]
    scales: NDArray[np.float32]
    axis: int
    block: int


def symmetric_weight(value: ir.Value | None) -> SymmetricWeight | None:
    """The weight behind `value`, or None when it is no dequantized constant with zero points of 0."""
    node = dequantize_node(value)
    if node is None:
        return None
    integers, scales, zeros = (constant(v) for v in (*node.inputs, None)[:3])
    if integers is None or scales is None or (zeros is not None and zeros.astype(np.int32).any()):
        return None
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    return SymmetricWeight(node, integers, scales.astype(np.float32), axis % max(integers.ndim, 1), block)


def dequantize_node(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that gives `value`, if one does."""
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def add_initializer(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Register `array` under `name` and give its value."""
    tensor = ir.tensor(array, name=name)
    shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
    model.graph.register_initializer(value)
    return value
