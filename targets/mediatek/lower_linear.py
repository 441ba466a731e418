"""Gemm and MatMul: FULLY_CONNECTED against constants, BATCH_MATMUL between activations."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.encodings import Encoding
from pocketport.targets.mediatek.activation import fused_activation
from pocketport.targets.mediatek.emit import Tensor
from pocketport.targets.mediatek.lowering import Lowering, Refused, Weight, attribute, identity
from pocketport.targets.mediatek.registry import lowers

_WEIGHT_TYPES = ("int8", "int4")


def with_axis(encoding: Encoding, axis: int) -> Encoding:
    """The encoding of a tensor whose channel dimension moved to `axis`."""
    return encoding if encoding.axis is None else Encoding(encoding.dtype, encoding.scale, encoding.zero_point, axis)


def weight_tensor(
    context: Lowering, weight: Weight, array: NDArray[np.generic], axis: int, name: str, *, integer: bool
) -> Tensor:
    """Emit weights (laid out by the caller as `array`, channels on `axis`).

    Quantized weights of an op computed in float stay small in the file, behind a DEQUANTIZE: LiteRT's own
    float-by-int8 kernels would quantize the activations behind the caller's back.
    """
    encoding = weight.encoding
    if encoding is None:
        return context.emitter.constant(array.astype(np.float32, copy=False), name=name)
    if encoding.dtype not in _WEIGHT_TYPES:
        raise Refused(f"weights of type {encoding.dtype} are not taken", "use int8 or int4 weights (w8, w4)")
    if np.any(encoding.zero_point):
        raise Refused("asymmetric weights are not taken", "quantize weights symmetrically")
    moved = with_axis(encoding, axis)
    stored = context.emitter.constant(
        array.astype(np.int8, copy=False), name=name, dtype=encoding.dtype, encoding=moved
    )
    if integer:
        return stored
    made = context.emitter.tensor(f"{name}.float", stored.shape, "float32")
    context.emitter.operator("DEQUANTIZE", [stored], [made], table="DequantizeOptions")
    return made


def bias_tensor(
    context: Lowering, bias: ir.Value | None, channels: int, source: Encoding | None, weight: Encoding | None
) -> Tensor | None:
    """The bias at scale s_x·s_w: int64 beside int16 activations, int32 beside int8; float for a float op."""
    held, name = context.weight(bias), "bias" if bias is None else str(bias.name)
    if bias is not None and held is None:
        raise Refused("its bias is not a constant", "make the bias an initializer")
    if source is None or weight is None:
        return None if held is None else context.emitter.constant(held.real().reshape(-1), name=name)
    scale = np.broadcast_to(np.float64(source.scale) * weight.scale.astype(np.float64), (channels,))
    real = np.zeros(channels) if held is None else _exact(held).reshape(-1)
    dtype = "int64" if source.dtype == "int16" else "int32"
    integers = np.rint(real / scale)
    if np.abs(integers).max() > np.iinfo(np.int32).max:  # the plugin casts int64 biases to int32
        raise Refused("its bias does not fit 32 bits at the scale of its products", "widen the scale of its weights")
    encoding = Encoding(dtype, scale.astype(np.float32), np.zeros(channels, np.int32), 0)
    return context.emitter.constant(integers.astype(dtype), name=name, dtype=dtype, encoding=encoding)


def _exact(weight: Weight) -> NDArray[np.float64]:
    """A bias in float64: float32 would lose the low bits of an int32."""
    if weight.encoding is None:
        return weight.array.astype(np.float64)
    return weight.array.astype(np.float64) * weight.encoding.scale.astype(np.float64)


def computes_in_integers(weight: Weight, x: Tensor, output: Encoding | None) -> bool:
    """Whether weights, input and output are all quantized, the two activations in one type."""
    return weight.encoding is not None and x.encoding is not None and output is not None and output.dtype == x.dtype


@lowers("Gemm")
def gemm(context: Lowering, node: ir.Node) -> None:
    """y = x·W (+ b) with constant W is FULLY_CONNECTED; with an activation W it is a BATCH_MATMUL."""
    if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0 or attribute(node, "transA", 0):
        raise Refused("alpha, beta or transA differ from their defaults", "fold them into the weights")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if context.weight(node.inputs[1]) is not None:
        _fully_connected(context, node, bias, transposed=bool(attribute(node, "transB", 0)))
    elif bias is not None:
        raise Refused("a Gemm of two activations with a bias is not taken", "write it as MatMul and Add")
    else:
        _batch_matmul(context, node, transposed=bool(attribute(node, "transB", 0)))


@lowers("MatMul")
def matmul(context: Lowering, node: ir.Node) -> None:
    """FULLY_CONNECTED when the right operand is a constant matrix of weights, else BATCH_MATMUL."""
    weight = context.weight(node.inputs[1])
    is_activation = weight is None or (weight.encoding is not None and weight.encoding.dtype == "int16")
    if not is_activation and weight is not None and weight.array.ndim == 2:
        _fully_connected(context, node, None, transposed=False)
    else:
        _batch_matmul(context, node, transposed=False)


def _fully_connected(context: Lowering, node: ir.Node, bias: ir.Value | None, *, transposed: bool) -> None:
    source, matrix = node.inputs[0], node.inputs[1]
    weight = context.weight(matrix)
    assert source is not None and matrix is not None and weight is not None
    x = context.read(source)
    activation, output = fused_activation(context, node)
    encoding = context.encoding(output)
    integer = computes_in_integers(weight, x, encoding)
    array = weight.array if transposed else weight.array.T
    channel_axis = 0 if transposed else 1
    if weight.encoding is not None and weight.encoding.axis not in (None, channel_axis):
        raise Refused("its weights are quantized along the input dimension", "quantize them per output channel")
    w = weight_tensor(context, weight, array, 0, str(matrix.name), integer=integer)
    b = bias_tensor(
        context, bias, array.shape[0], x.encoding if integer else None, weight.encoding if integer else None
    )
    context.emit(
        "FULLY_CONNECTED", [x if integer else context.as_float(x), w, b], output, encoding if integer else None,
        table="FullyConnectedOptions", fusedActivationFunction=activation, keepNumDims=len(x.shape) != 2,
    )  # fmt: skip


def _batch_matmul(context: Lowering, node: ir.Node, *, transposed: bool) -> None:
    """A pending transposition of an operand's two last dimensions becomes the op's adj flag."""
    left, right = node.inputs[0], node.inputs[1]
    assert left is not None and right is not None
    x, adjoint_x = _matrix(context, left)
    y, adjoint_y = _matrix(context, right)
    (x, y), encoding = context.settle([x, y], node.outputs[0])
    context.emit(
        "BATCH_MATMUL", [x, y], node.outputs[0], encoding,
        table="BatchMatMulOptions", adjX=adjoint_x, adjY=adjoint_y != transposed,
    )  # fmt: skip


def _matrix(context: Lowering, value: ir.Value) -> tuple[Tensor, bool]:
    held = context.value(value)
    rank = len(held.order)
    if rank < 2:
        raise Refused("a product with a vector is not taken", "reshape it to a matrix")
    swapped = (*identity(rank - 2), rank - 1, rank - 2)
    if held.order == swapped:
        return held.tensor, True
    return context.reordered(held, identity(rank)), False
