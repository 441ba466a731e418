"""What every ONNX op means in the primitives of ``emitter``: the op table of both Apple formats (opset 21 to 23)."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pocketport.calibration.encodings import Encoding
from pocketport.targets.apple.emitter import Window
from pocketport.targets.apple.lowering import Call, Lowering, NotLowerable
from pocketport.targets.apple.weights import CompressedWeight, compress

TABLE: dict[str, Lowering] = {}


def lowering(*op_types: str) -> Callable[[Lowering], Lowering]:
    """Register the decorated function for these ONNX op types."""

    def register(function: Lowering) -> Lowering:
        TABLE.update(dict.fromkeys(op_types, function))
        return function

    return register


# --- quantization ------------------------------------------------------------------------------------------------


def _encoding(call: Call, dtype: str) -> Encoding:
    scale = call.array(1, "scale").astype(np.float32)
    zero_point = call.array(2, "zero point").astype(np.int32) if call.has(2) else np.zeros(scale.shape, np.int32)
    if scale.size != 1:
        raise NotLowerable("activations are quantized per tensor only", "quantize this activation with one scale")
    if dtype not in ("int8", "uint8"):
        raise NotLowerable(
            f"activations of type {dtype} are not taken: 8-bit integers or float16", "leave this activation in float16 (afp16)"
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
        shape = [-1 if d == axis % integers.ndim else 1 for d in range(integers.ndim)] if scale.size > 1 else [1] * integers.ndim
        return (integers.astype(np.float64) * scale.reshape(shape)).astype(np.float32)
    if dtype not in ("int8", "uint8", "int4", "uint4"):
        raise NotLowerable(f"weights of type {dtype} are not taken", "use 4 or 8 bits")
    return compress(integers, dtype, scale, zero_point, axis, block)


# --- linear algebra ----------------------------------------------------------------------------------------------


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
    return Window((kernel[0], kernel[1]), (strides[0], strides[1]), (pads[0], pads[1], pads[2], pads[3]), (dilations[0], dilations[1]))


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


# --- element by element ------------------------------------------------------------------------------------------

_UNARY = {
    "Abs": "abs", "Cos": "cos", "Erf": "erf", "Exp": "exp", "Log": "log", "Relu": "relu", "Sigmoid": "sigmoid", "Sin": "sin",
    "Sqrt": "sqrt", "Tanh": "tanh",
}  # fmt: skip
_BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Equal": "equal", "Greater": "greater", "Less": "less"}


@lowering(*_UNARY)
def _unary(call: Call) -> Any:
    return call.emit.unary(_UNARY[call.node.op_type], call.value())


@lowering(*_BINARY)
def _binary(call: Call) -> Any:
    return call.emit.binary(_BINARY[call.node.op_type], call.value(0), call.value(1))


@lowering("Max", "Min")
def _extremum(call: Call) -> Any:
    result = call.value(0)
    for index in range(1, len(call.node.inputs)):
        result = call.emit.binary(call.node.op_type.lower(), result, call.value(index))
    return result


def _scalar(call: Call, value: float) -> Any:
    return call.emit.constant(np.float32(value).reshape(()))


@lowering("Neg")
def _negate(call: Call) -> Any:
    return call.emit.binary("mul", call.value(), _scalar(call, -1.0))


@lowering("Reciprocal")
def _reciprocal(call: Call) -> Any:
    return call.emit.binary("div", _scalar(call, 1.0), call.value())


@lowering("Pow")
def _power(call: Call) -> Any:
    exponent = call.weight(1)
    if isinstance(exponent, np.ndarray) and exponent.size == 1:
        power = float(exponent.reshape(-1)[0])
        if power == 2.0:
            x = call.value()
            return call.emit.binary("mul", x, x)
        if power == 0.5:
            return call.emit.unary("sqrt", call.value())
    return call.emit.binary("pow", call.value(0), call.value(1))


@lowering("Gelu")
def _gelu(call: Call) -> Any:
    return call.emit.unary("gelu_tanh" if call.text("approximate", "none") == "tanh" else "gelu", call.value())


def _hard_sigmoid_of(call: Call, x: Any, alpha: float, beta: float) -> Any:
    line = call.emit.binary("add", call.emit.binary("mul", x, _scalar(call, alpha)), _scalar(call, beta))
    return call.emit.clip(line, 0.0, 1.0)


@lowering("HardSigmoid")
def _hard_sigmoid(call: Call) -> Any:
    return _hard_sigmoid_of(call, call.value(), call.number("alpha", 0.2), call.number("beta", 0.5))


@lowering("HardSwish")
def _hard_swish(call: Call) -> Any:
    x = call.value()
    return call.emit.binary("mul", x, _hard_sigmoid_of(call, x, 1 / 6, 0.5))


@lowering("LeakyRelu")
def _leaky_relu(call: Call) -> Any:
    x, slope = call.value(), call.number("alpha", 0.01)
    if not 0 <= slope <= 1:
        raise NotLowerable(f"a slope of {slope} is not taken", "use a slope between 0 and 1")
    return call.emit.binary("max", x, call.emit.binary("mul", x, _scalar(call, slope)))


@lowering("Clip")
def _clip(call: Call) -> Any:
    low = float(call.array(1, "lower bound").reshape(-1)[0]) if call.has(1) else -math.inf
    high = float(call.array(2, "upper bound").reshape(-1)[0]) if call.has(2) else math.inf
    return call.emit.clip(call.value(), low, high)


@lowering("Where")
def _where(call: Call) -> Any:
    return call.emit.select(call.value(0), call.value(1), call.value(2))


@lowering("Cast")
def _cast(call: Call) -> Any:
    out = call.node.outputs[0].dtype
    name = out.name if out else "?"
    kinds = {"FLOAT": "float", "FLOAT16": "float", "DOUBLE": "float", "INT32": "int", "INT64": "int", "BOOL": "bool"}
    if name not in kinds:
        raise NotLowerable(f"a cast to {name} is not taken", "cast to float, int32 or bool")
    return call.emit.cast(call.value(), kinds[name])


@lowering("Identity", "Dropout")
def _identity(call: Call) -> Any:
    return call.operands[0]


# --- reductions and norms ----------------------------------------------------------------------------------------


def _reduction_axes(call: Call, index: int = 1) -> tuple[int, ...]:
    rank = len(call.shape())
    axes = call.integers(index, "axes") if call.has(index) else call.list_of_integers("axes", ())
    return tuple(sorted(a % rank for a in axes)) or tuple(range(rank))


@lowering("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduce(call: Call) -> Any:
    kind = call.node.op_type.removeprefix("Reduce").lower()
    return call.emit.reduce(kind, call.value(), _reduction_axes(call), keep=bool(call.integer("keepdims", 1)))


@lowering("ReduceL2")
def _norm(call: Call) -> Any:
    x, keep = call.value(), bool(call.integer("keepdims", 1))
    return call.emit.unary("sqrt", call.emit.reduce("sum", call.emit.binary("mul", x, x), _reduction_axes(call), keep=keep))


@lowering("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(call: Call) -> Any:
    kind = "mean" if call.node.op_type == "GlobalAveragePool" else "max"
    return call.emit.reduce(kind, call.value(), tuple(range(2, len(call.shape()))), keep=True)


@lowering("Softmax")
def _softmax(call: Call) -> Any:
    return call.emit.softmax(call.value(), call.axis(-1, len(call.shape())))


@lowering("LayerNormalization")
def _layer_norm(call: Call) -> Any:
    rank = len(call.shape())
    axes = tuple(range(call.axis(-1, rank), rank))
    beta = call.array(2, "bias") if call.has(2) else None
    return call.emit.layer_norm(call.value(), axes, call.array(1, "scale"), beta, call.number("epsilon", 1e-5))


@lowering("RMSNormalization")
def _rms_norm(call: Call) -> Any:
    rank = len(call.shape())
    axes = tuple(range(call.axis(-1, rank), rank))
    return call.emit.rms_norm(call.value(), axes, call.array(1, "scale"), call.number("epsilon", 1e-5))


@lowering("BatchNormalization")
def _batch_norm(call: Call) -> Any:
    scale, bias, mean, variance = (call.array(i, "statistics").astype(np.float64) for i in range(1, 5))
    factor = scale / np.sqrt(variance + call.number("epsilon", 1e-5))
    shape = [-1 if d == 1 else 1 for d in range(len(call.shape()))]
    scaled = call.emit.binary("mul", call.value(), call.emit.constant(factor.astype(np.float32).reshape(shape)))
    return call.emit.binary("add", scaled, call.emit.constant((bias - mean * factor).astype(np.float32).reshape(shape)))


# --- data movement -----------------------------------------------------------------------------------------------


@lowering("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(call: Call) -> Any:
    return call.emit.reshape(call.value(), call.out_shape())


@lowering("Transpose")
def _transpose(call: Call) -> Any:
    rank = len(call.shape())
    return call.emit.transpose(call.value(), call.list_of_integers("perm", tuple(reversed(range(rank)))))


@lowering("Concat")
def _concat(call: Call) -> Any:
    values = [call.value(i) for i in range(len(call.node.inputs))]
    return call.emit.concat(values, call.axis(0, len(call.out_shape())))


@lowering("Split")
def _split(call: Call) -> Any:
    shape, x = call.shape(), call.value()
    axis = call.axis(0, len(shape))
    results, start = [], 0
    for index in range(len(call.node.outputs)):
        size = call.out_shape(index)[axis]
        begin = tuple(start if d == axis else 0 for d in range(len(shape)))
        end = tuple(start + size if d == axis else n for d, n in enumerate(shape))
        call.emit.begin(str(call.node.outputs[index].name))
        results.append(call.emit.slice(x, begin, end, (1,) * len(shape)))
        start += size
    return results


@lowering("Slice")
def _slice(call: Call) -> Any:
    shape = call.shape()
    starts, ends = call.integers(1, "starts"), call.integers(2, "ends")
    axes = call.integers(3, "axes") if call.has(3) else tuple(range(len(starts)))
    steps = call.integers(4, "steps") if call.has(4) else (1,) * len(starts)
    begin, end, step = [0] * len(shape), list(shape), [1] * len(shape)
    for first, last, axis, stride in zip(starts, ends, axes, steps, strict=True):
        if stride < 1:
            raise NotLowerable("negative steps are not taken", "reverse with Gather and constant indices")
        begin[axis], end[axis], _ = slice(first, last).indices(shape[axis])
        step[axis] = stride
    return call.emit.slice(call.value(), tuple(begin), tuple(end), tuple(step))


@lowering("Gather")
def _gather(call: Call) -> Any:
    shape = call.shape()
    axis, indices = call.axis(0, len(shape)), call.weight(1)
    if isinstance(indices, np.ndarray):
        rows = np.where(indices < 0, indices + shape[axis], indices).astype(np.int32)
        if rows.size and np.array_equal(rows.reshape(-1), np.arange(rows.size) + rows.reshape(-1)[0]):
            first = int(rows.reshape(-1)[0])
            begin = tuple(first if d == axis else 0 for d in range(len(shape)))
            end = tuple(first + rows.size if d == axis else n for d, n in enumerate(shape))
            return call.emit.reshape(call.emit.slice(call.value(), begin, end, (1,) * len(shape)), call.out_shape())
        return call.emit.gather(call.value(), call.emit.constant(rows), axis, call.out_shape())
    return call.emit.gather(call.value(), call.value(1), axis, call.out_shape())


@lowering("Expand")
def _expand(call: Call) -> Any:
    shape, target = call.shape(), call.out_shape()
    x = call.value() if len(shape) == len(target) else call.emit.reshape(call.value(), (1,) * (len(target) - len(shape)) + shape)
    return call.emit.expand(x, target)


@lowering("Pad")
def _pad(call: Call) -> Any:
    if call.text("mode", "constant") != "constant" or call.has(3):
        raise NotLowerable("only constant padding of all axes is taken", "use mode=constant without axes")
    pads = call.integers(1, "pads")
    if min(pads) < 0:
        raise NotLowerable("negative pads are not taken", "use Slice")
    value = float(call.array(2, "padding value").reshape(-1)[0]) if call.has(2) else 0.0
    return call.emit.pad(call.value(), pads[: len(pads) // 2], pads[len(pads) // 2 :], value)


@lowering("Resize")
def _resize(call: Call) -> Any:
    shape, out = call.shape(), call.out_shape()
    whole = len(shape) == 4 and shape[:2] == out[:2] and all(o % s == 0 for s, o in zip(shape[2:], out[2:], strict=True))
    rule = (call.text("coordinate_transformation_mode", "half_pixel"), call.text("nearest_mode", "round_prefer_floor"))
    repeats = rule in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil"))
    if call.text("mode", "nearest") != "nearest" or not (whole and repeats):
        raise NotLowerable("only nearest-neighbour enlargement of H and W by whole factors is taken", "resize by a whole factor")
    return call.emit.upsample(call.value(), (out[2] // shape[2], out[3] // shape[3]))
