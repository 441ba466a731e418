"""Lowering for onnxruntime: what its optimizer does not do with quantized constants by itself.

OpenVINO reads the pivot as it is: it recognises these patterns and keeps the integers.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pocketport.targets.x86.packing import pack_int4_layers
from pocketport.targets.x86.weights import SymmetricWeight, add_initializer, dequantize_node, symmetric_weight

PRODUCTS = ("Conv", "Gemm", "MatMul")
CLAMPS = ("Relu", "Clip")


MIDDLE = 128  # what signed 8-bit weights are raised by


def lower_graph(model: ir.Model, *, saturating: bool) -> None:
    """Rewrite the pivot in place; the results stay the same to float32 rounding.

    Args:
        model: the pivot.
        saturating: whether the CPU sums products of u8 and s8 in 16 bits (every one without VNNI).
    """
    pack_int4_layers(model)
    look_up_integers(model)
    unfold_float_products(model)
    if saturating:
        raise_weights(model)
    RemoveUnusedNodesPass()(model)


def raise_weights(model: ir.Model) -> None:
    """Signed 8-bit weights of integer products become unsigned, with a zero point of 128.

    Without VNNI, onnxruntime multiplies u8 by s8 with an instruction (vpmaddubsw) whose 16-bit sums saturate; its
    kernels for u8 by u8 do not.
    """
    for node in list(model.graph):
        if node.op_type not in PRODUCTS or dequantize_node(node.inputs[0]) is None:
            continue
        weight = symmetric_weight(node.inputs[1])
        if weight is None or weight.block or weight.integers.dtype != np.int8:
            continue
        name = weight.node.name
        raised = add_initializer(model, f"{name}.raised", (weight.integers.astype(np.int16) + MIDDLE).astype(np.uint8))
        zeros = add_initializer(model, f"{name}.middle", np.full(weight.scales.shape, MIDDLE, np.uint8))
        inputs = [raised, weight.node.inputs[1], zeros]
        _swap(model, weight.node, [ir.node("DequantizeLinear", inputs, {"axis": weight.axis}, name=name)])


def look_up_integers(model: ir.Model) -> None:
    """Gather rows first and dequantize those: otherwise the whole table is dequantized in every run."""
    for node in list(model.graph):
        if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
            continue
        table, indices = symmetric_weight(node.inputs[0]), node.inputs[1]
        rows = indices is not None and indices.shape is not None and len(indices.shape) == 1
        if table is None or table.block or table.integers.dtype != np.int8 or not rows:
            continue
        if table.scales.ndim and table.axis != 0:
            continue
        integers, scales, *_ = table.node.inputs
        added = [ir.node("Gather", [integers, indices], {"axis": 0}, name=f"{node.name}.integers")]
        picked = scales
        if table.scales.ndim:
            added.append(ir.node("Gather", [scales, indices], {"axis": 0}, name=f"{node.name}.scales"))
            picked = added[-1].outputs[0]
        read = ir.node("DequantizeLinear", [added[0].outputs[0], picked], {"axis": 0}, name=node.name)
        _swap(model, node, [*added, read])


def unfold_float_products(model: ir.Model) -> None:
    """8-bit constants of layers that compute in float: DequantizeLinear becomes Cast · Mul.

    onnxruntime folds those when it loads the model, and would repeat a DequantizeLinear in every run. The file keeps
    the integers. (Its 8-bit MatMulNBits in float32 takes 15 times as long as the float product.)
    """
    for node in list(model.graph):
        weight = symmetric_weight(node.outputs[0]) if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.block or weight.integers.dtype not in (np.int8, np.int32):
            continue
        if not all(index > 0 and _computes_in_float(user) for user, index in node.outputs[0].uses()):
            continue
        scales = add_initializer(model, f"{node.name}.factors", _aligned(weight))
        cast = ir.node("Cast", [node.inputs[0]], {"to": ir.DataType.FLOAT}, name=f"{node.name}.cast")
        _swap(model, node, [cast, ir.node("Mul", [cast.outputs[0], scales], name=node.name)])


def _computes_in_float(node: ir.Node) -> bool:
    """Whether onnxruntime runs this layer in float: its input is, or it is a Conv whose result is not quantized."""
    if node.op_type not in PRODUCTS:
        return False
    if dequantize_node(node.inputs[0]) is None:
        return True
    return node.op_type == "Conv" and not _is_quantized(node.outputs[0])


def _is_quantized(value: ir.Value) -> bool:
    """Whether the one reader of `value`, behind a clamp perhaps, is QuantizeLinear."""
    readers = value.consumers()
    if len(readers) == 1 and readers[0].op_type in CLAMPS:
        return _is_quantized(readers[0].outputs[0])
    return len(readers) == 1 and readers[0].op_type == "QuantizeLinear"


def _aligned(weight: SymmetricWeight) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Scales in a shape that broadcasts against the integers."""
    if weight.scales.ndim == 0:
        return weight.scales
    return weight.scales.reshape([-1 if d == weight.axis else 1 for d in range(weight.integers.ndim)])


def _swap(model: ir.Model, old: ir.Node, new: list[ir.Node]) -> None:
    """Put `new` in the place of `old`; the last one gives its result."""
    ir.convenience.replace_nodes_and_values(model.graph, old, [old], new, old.outputs, new[-1].outputs)
