"""Quantization, matrix products, convolutions and pooling: what the ONNX ops mean in the primitives of ``emitter``."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.encodings import Encoding
from pocketport.targets.apple.call import Call, NotLowerable, lowering
from pocketport.targets.apple.emitter import Window
from pocketport.targets.apple.weights import CompressedWeight, compress


def _encoding(call: Call, dtype: str) -> Encoding:
    scale = call.array(1, "scale").astype(np.float32)
    zero_point = call.array(2, "zero point").astype(np.int32) if call.has(2) else np.zeros(scale.shape, np.int32)
    if scale.size != 1:
        raise NotLowerable("activations are quantized per tensor only", "quantize this activation with one scale")
    if dtype not in ("int8", "uint8"):
        raise NotLowerable(
            f"activations of type {dtype} are not taken: 8-bit integers or float16",
            "leave this activation in float16 (afp16)",
        )
    return Encoding(dtype, scale.reshape(()), zero_point.reshape(()))


@lowering("QuantizeLinear")
def _quantize(call: Call) -> Any:
    out = call.node.outputs[0].dtype
    dtype = str(call.array(2, "zero point").dtype) if call.has(2) else (out.name.lower() if out else "uint8")
    return call.emit.quantize(call.value(), _encoding(call, dtype))


@lowering("DequantizeLinear")
def _dequantize(call: Call) -> Any:
    integers = call.operands[0]
    if not isinstance(integers, np.ndarray):
        dtype = call.node.inputs[0].dtype  # type: ignore[union-attr]
        return call.emit.dequantize(integers, _encoding(call, dtype.name.lower() if dtype else "int8"))
    scale = call.array(1, "scale").astype(np.float32)
    zero_point = call.array(2, "zero point") if call.has(2) else None
    axis, block = call.integer("axis", 1), call.integer("block_size", 0)
    dtype = str(integers.dtype)
    if dtype == "int32":  # a bias: few numbers, kept as float16
        shape = (
            [-1 if d == axis % integers.ndim else 1 for d in range(integers.ndim)]
            if scale.size > 1
            else [1] * integers.ndim
        )
        return (integers.astype(np.float64) * scale.reshape(shape)).astype(np.float32)
    if dtype not in ("int8", "uint8", "int4", "uint4"):
        raise NotLowerable(f"weights of type {dtype} are not taken", "use 4 or 8 bits")
    return compress(integers, dtype, scale, zero_point, axis, block)


def _bias(call: Call, index: int, channels: int) -> NDArray[np.generic] | None:
    if not call.has(index):
        return None
    return np.ascontiguousarray(np.broadcast_to(call.array(index, "bias").reshape(-1), (channels,)))


def _transposed(weight: Any) -> Any:
    return weight.transposed((1, 0)) if isinstance(weight, CompressedWeight) else np.ascontiguousarray(weight.T)


@lowering("Gemm")
def _gemm(call: Call) -> Any:
    if call.integer("transA", 0) or call.number("alpha", 1.0) != 1.0 or call.number("beta", 1.0) != 1.0:
        raise NotLowerable("only alpha = beta = 1 without transA is taken", "write it as MatMul and Add")
    weight = call.weight(1)
    if weight is None:
        raise NotLowerable("its second operand is computed at run time", "write it as MatMul")
    weight = weight if call.integer("transB", 0) else _transposed(weight)
    return call.emit.linear(call.value(), weight, _bias(call, 2, call.out_shape()[-1]))


@lowering("MatMul")
def _matmul(call: Call) -> Any:
    weight = call.weight(1)
    if weight is not None and len(call.shape(1)) == 2 and len(call.shape(0)) >= 2:
        return call.emit.linear(call.value(), _transposed(weight), None)
    return call.emit.matmul(call.value(0), call.value(1))


def _window(call: Call, kernel: tuple[int, ...]) -> Window:
    if len(kernel) != 2:
        raise NotLowerable(f"{len(kernel)}-dimensional windows are not taken", "use 2-D convolutions and pooling")
    if call.integer("ceil_mode", 0):
        raise NotLowerable("ceil_mode is not taken", "pad the input and use floor mode")
    strides = call.list_of_integers("strides", (1, 1))
    dilations = call.list_of_integers("dilations", (1, 1))
    pads = call.list_of_integers("pads", (0, 0, 0, 0))
    auto = call.text("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = []
        for size, k, stride, dilation in zip(call.shape()[2:], kernel, strides, dilations, strict=True):
            totals.append(max((math.ceil(size / stride) - 1) * stride + dilation * (k - 1) + 1 - size, 0))
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        pads = (*small, *large) if auto == "SAME_UPPER" else (*large, *small)
    return Window(
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        (pads[0], pads[1], pads[2], pads[3]),
        (dilations[0], dilations[1]),
    )


@lowering("Conv")
def _conv(call: Call) -> Any:
    weight = call.weight(1)
    if weight is None:
        raise NotLowerable("its weight is computed at run time", "make the weight a constant")
    bias = _bias(call, 2, call.shape(1)[0])
    return call.emit.conv(call.value(), weight, bias, _window(call, call.shape(1)[2:]), call.integer("group", 1))


@lowering("ConvTranspose")
def _conv_transpose(call: Call) -> Any:
    weight, groups = call.weight(1), call.integer("group", 1)
    if weight is None:
        raise NotLowerable("its weight is computed at run time", "make the weight a constant")
    if call.text("auto_pad", "NOTSET") != "NOTSET" or any(call.list_of_integers("output_padding", (0, 0))):
        raise NotLowerable("auto_pad and output_padding are not taken", "export with explicit pads")
    bias = _bias(call, 2, call.shape(1)[1] * groups)
    window = _window(call, call.shape(1)[2:])
    return call.emit.conv_transpose(call.value(), weight, bias, window, groups, call.out_shape())


@lowering("MaxPool")
def _max_pool(call: Call) -> Any:
    return call.emit.max_pool(call.value(), _window(call, call.list_of_integers("kernel_shape", ())))


@lowering("AveragePool")
def _average_pool(call: Call) -> Any:
    window = _window(call, call.list_of_integers("kernel_shape", ()))
    if window.dilations != (1, 1):
        raise NotLowerable("dilated average pooling is not taken", "use a convolution")
    return call.emit.average_pool(call.value(), window, count_pads=bool(call.integer("count_include_pad", 0)))
