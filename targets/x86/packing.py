"""4-bit weights with float activations become MatMulNBits.

onnxruntime dequantizes a blocked int4 weight of a Gemm anew in every run (2.1 ms instead of 0.17 for one token
through 8 layers of 256 × 768), and where it does fuse a MatMul it silently computes with int8 activations. The
explicit ``com.microsoft::MatMulNBits`` at accuracy level 1 keeps the weights packed and computes in float32.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.targets.x86.weights import add_initializer, dequantize_node, symmetric_weight

CONTRIB = "com.microsoft"
FLOAT32_COMPUTE = 1  # MatMulNBits accuracy_level
SIGNED_MIDDLE = 8  # added to int4, it gives the uint4 that MatMulNBits stores
MIN_BLOCK = 16


def pack_int4_layers(model: ir.Model) -> None:
    """Replace in place every linear layer whose weight is int4 and whose input is float."""
    for node in list(model.graph):
        layer = _packed_layer(node)
        if layer is not None:
            _replace(model, node, *layer)
            model.opset_imports[CONTRIB] = 1


def _packed_layer(node: ir.Node) -> tuple[NDArray[np.uint8], NDArray[np.float32], int] | None:
    """Weights [N, K] as 0…15, scales [N, K/block] and the block size, or None when `node` is no such layer."""
    if node.domain or node.op_type not in ("Gemm", "MatMul") or (node.op_type == "Gemm" and not _plain(node)):
        return None
    weight = symmetric_weight(node.inputs[1])
    if weight is None or dequantize_node(node.inputs[0]) is not None:
        return None
    if weight.integers.ndim != 2 or weight.integers.dtype.name != "int4":
        return None
    weights, scales = weight.integers.astype(np.int8) + SIGNED_MIDDLE, weight.scales
    axis, block = weight.axis, weight.block
    if not node.attributes.get_int("transB", 0):  # MatMul and plain Gemm hold [K, N]
        weights, scales, axis = weights.T, scales.T, 1 - axis
    if block:
        fits = axis == 1 and block >= MIN_BLOCK and block & (block - 1) == 0 and weights.shape[1] % block == 0
    else:
        block = _channel_block(weights.shape[1])
        fits = block >= MIN_BLOCK and (axis == 0 or scales.ndim == 0)
        scales = np.broadcast_to(scales.reshape(-1, 1), (weights.shape[0], weights.shape[1] // block))
    return (weights.astype(np.uint8), scales.astype(np.float32), block) if fits else None


def _plain(gemm: ir.Node) -> bool:
    """y = x·W + b with b of rank 1, as MatMulNBits has it."""
    attributes = gemm.attributes
    bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    vector = bias is None or (bias.shape is not None and len(bias.shape) == 1)
    unscaled = attributes.get_float("alpha", 1.0) == 1.0 and attributes.get_float("beta", 1.0) == 1.0
    return unscaled and vector and not attributes.get_int("transA", 0)


def _channel_block(inner: int) -> int:
    """One scale per channel is written once per block: the largest power of two up to 256 that divides K."""
    return min(inner & -inner, 256)


def _replace(
    model: ir.Model, node: ir.Node, weights: NDArray[np.uint8], scales: NDArray[np.float32], block: int
) -> None:
    outer, inner = weights.shape
    blocks = scales.shape[1]
    packed = (weights[:, 0::2] | weights[:, 1::2] << 4).reshape(outer, blocks, block // 2)
    name = node.name or str(node.outputs[0].name)
    inputs: list[ir.Value | None] = [
        node.inputs[0],
        add_initializer(model, f"{name}.packed", packed),
        add_initializer(model, f"{name}.scales", np.ascontiguousarray(scales)),
    ]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        inputs += [None, None, node.inputs[2]]  # no zero points, no group index
    attributes = {"K": inner, "N": outer, "bits": 4, "block_size": block, "accuracy_level": FLOAT32_COMPUTE}
    fused = ir.node("MatMulNBits", inputs, attributes, domain=CONTRIB, name=name)
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [fused], node.outputs, fused.outputs)
