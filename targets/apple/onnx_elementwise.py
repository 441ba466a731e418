"""Element-wise ops, reductions and norms: what the ONNX ops mean in the primitives of ``emitter``."""

import math
from typing import Any

import numpy as np

from pocketport.targets.apple.call import Call, NotLowerable, lowering

_UNARY = {
    "Abs": "abs", "Cos": "cos", "Erf": "erf", "Exp": "exp", "Log": "log", "Relu": "relu", "Sigmoid": "sigmoid", "Sin": "sin",
    "Sqrt": "sqrt", "Tanh": "tanh",
}  # fmt: skip
_BINARY = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Div": "div",
    "Equal": "equal",
    "Greater": "greater",
    "Less": "less",
}


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
    return call.emit.constant(np.array(value, np.float32))


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


def _reduction_axes(call: Call, index: int = 1) -> tuple[int, ...]:
    rank = len(call.shape())
    axes = call.integers(index, "axes") if call.has(index) else call.list_of_integers("axes", ())
    return tuple(sorted(a % rank for a in axes)) or tuple(range(rank))


@lowering("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduce(call: Call) -> Any:
    kind = call.node.op_type.removeprefix("Reduce").lower()
    return call.emit.reduce(kind, call.value(), _reduction_axes(call), keep=bool(call.integer("keepdims", 1)))


@lowering("ArgMax")
def _argmax(call: Call) -> Any:
    if call.integer("select_last_index", 0):
        raise NotLowerable("the last of several greatest is not taken", "take the first one")
    return call.emit.reshape(call.emit.argmax(call.value(), call.axis(0, len(call.shape()))), call.out_shape())


@lowering("ReduceL2")
def _norm(call: Call) -> Any:
    x, keep = call.value(), bool(call.integer("keepdims", 1))
    return call.emit.unary(
        "sqrt", call.emit.reduce("sum", call.emit.binary("mul", x, x), _reduction_axes(call), keep=keep)
    )


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


@lowering("InstanceNormalization")
def _instance_norm(call: Call) -> Any:
    shape = call.shape()
    axes = tuple(range(2, len(shape)))
    ones = np.ones(shape[2:], np.float32)
    x = call.emit.layer_norm(call.value(), axes, ones, None, call.number("epsilon", 1e-5))
    scale, shift = (call.array(i, "scale and shift").reshape(-1, *[1] * len(axes)) for i in (1, 2))
    return call.emit.binary("add", call.emit.binary("mul", x, call.emit.constant(scale)), call.emit.constant(shift))


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
