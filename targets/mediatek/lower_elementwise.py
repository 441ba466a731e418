"""Arithmetic and activations. They keep whatever order of dimensions their operands already have."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from pocketport.calibration.encodings import Encoding, encoding_for_range
from pocketport.targets.mediatek.activation import RELU, fused_activation, interval
from pocketport.targets.mediatek.emit import Tensor
from pocketport.targets.mediatek.lowering import Lowering, Order, Refused, attribute, identity
from pocketport.targets.mediatek.registry import lowers

# Kernels that demand one output encoding: (scale, zero point) by dtype.
FIXED: dict[str, dict[str, tuple[float, int]]] = {
    "LOGISTIC": {"int16": (1 / 32768, 0), "int8": (1 / 256, -128)},
    "SOFTMAX": {"int16": (1 / 32768, 0), "int8": (1 / 256, -128)},
    "TANH": {"int16": (1 / 32768, 0), "int8": (1 / 128, 0)},
}

# LiteRT's int16 SOFTMAX clamps exponents at −10, so each masked or far-off entry still adds e^−10 to the sum.
# Up to this many entries that is at most 2^−8 of the result; longer rows compute in float.
WIDEST_INT16_SOFTMAX = int(2**-8 * math.exp(10))


def fixed_encoding(code: str, dtype: str) -> Encoding:
    """The encoding in which LiteRT's integer kernel of `code` writes."""
    scale, zero_point = FIXED[code][dtype]
    return Encoding(dtype, np.array(scale, np.float32), np.array(zero_point, np.int32))


def emit_fixed(context: Lowering, code: str, x: Tensor, output: ir.Value, order: Order, **options: Any) -> None:
    """Emit an op whose integer kernel writes in one encoding; requantize if the pivot wants another."""
    (x,), wanted = context.settle([x], output)
    written = fixed_encoding(code, wanted.dtype) if wanted is not None else None
    made = context.emit(code, [x], output, written, order=order, **options)
    if wanted is not None:
        context.define(output, context.quantized(made, wanted), order)


def aligned(context: Lowering, values: Sequence[ir.Value], output: ir.Value) -> tuple[list[Tensor], Order]:
    """Operands in one common order of dimensions, which is that of the largest activation of full rank."""
    rank = len(context.shape(output))
    held = [context.value(v) for v in values]
    full = [h for h in held if len(h.order) == rank and h.tensor.data is None]
    order = max(full, key=lambda h: int(np.prod(h.tensor.shape))).order if full else identity(rank)
    tensors = []
    for value, h in zip(values, held, strict=True):
        if len(h.order) == rank:
            tensors.append(context.reordered(h, order))
        elif order == identity(rank) or int(np.prod(h.tensor.shape)) == 1:
            tensors.append(context.read(value))
        else:
            plain = context.read(value)
            lifted = context.reshaped(plain, (1,) * (rank - len(plain.shape)) + plain.shape)
            tensors.append(context.reordered(type(h)(lifted, identity(rank)), order))
    return tensors, order


def inputs_of(node: ir.Node) -> list[ir.Value]:
    """The node's inputs that are present."""
    return [v for v in node.inputs if v is not None]


def kind_of(tensors: Sequence[Tensor]) -> str:
    """What arithmetic without an encoding computes in: whole numbers if all operands are, else floats."""
    return "int32" if all(t.dtype == "int32" and t.encoding is None for t in tensors) else "float32"


@lowers("Add", "Sub", "Mul")
def arithmetic(context: Lowering, node: ir.Node) -> None:
    """ADD, SUB and MUL in integers with rescaling, or in float; a following Relu/Clip goes inside."""
    activation, output = fused_activation(context, node)
    tensors, order = aligned(context, inputs_of(node), output)
    dtype = kind_of(tensors)
    tensors, encoding = context.settle(tensors, output)
    table = f"{node.op_type}Options"
    general = {} if node.op_type == "Mul" else {"potScaleInt16": False}  # scales here aren't powers of two
    context.emit(
        node.op_type.upper(), tensors, output, encoding,
        order=order, dtype=dtype, table=table, fusedActivationFunction=activation, **general,
    )  # fmt: skip


@lowers("Div")
def div(context: Lowering, node: ir.Node) -> None:
    """MUL by the reciprocal of a constant; DIV in float otherwise (there is no int16 DIV)."""
    numerator, divisor = inputs_of(node)
    output = node.outputs[0]
    weight = context.weight(divisor)
    tensors, order = aligned(context, [numerator, divisor], output)
    if weight is None:
        context.emit("DIV", [context.as_float(t) for t in tensors], output, order=order, table="DivOptions")
        return
    x, constant = tensors
    reciprocal = context.emitter.constant(1.0 / context.as_float(constant).data.astype(np.float32))  # type: ignore[union-attr]
    encoding = context.encoding(output)
    if encoding is not None and x.encoding is not None and x.dtype == encoding.dtype:
        peak = float(np.abs(reciprocal.data).max())  # type: ignore[arg-type]
        factor = context.quantized(reciprocal, encoding_for_range(-peak, peak, encoding.dtype, symmetric=True))
        context.emit("MUL", [x, factor], output, encoding, order=order, table="MulOptions")
        return
    context.emit("MUL", [context.as_float(x), reciprocal], output, order=order, table="MulOptions")


@lowers("Relu", "Clip")
def clip(context: Lowering, node: ir.Node) -> None:
    """A Relu or Clip that was not computed inside the op before it: RELU, or MAXIMUM and MINIMUM."""
    source, output = node.inputs[0], node.outputs[0]
    kept = interval(context, node)
    if kept is None or source is None:
        raise Refused("its bounds are computed at run time", "use constant bounds")
    held = context.value(source)
    (x,), encoding = context.settle([held.tensor], output)
    if kept == (0.0, float("inf")):
        context.emit("RELU", [x], output, encoding, order=held.order)
        return
    if encoding is not None:
        x = context.quantized(x, encoding)  # MAXIMUM and MINIMUM compare integers: one scale on both sides
    for code, bound in (("MAXIMUM", kept[0]), ("MINIMUM", kept[1])):
        if np.isinf(bound):
            continue
        limit = context.emitter.scalar(bound)
        limit = context.quantized(limit, encoding) if encoding is not None else limit
        x = context.emit(code, [x, limit], output, encoding, order=held.order, table="MaximumMinimumOptions")
    if x is held.tensor:
        context.define(output, x, held.order)


@lowers("Max", "Min")
def extremum(context: Lowering, node: ir.Node) -> None:
    """MAXIMUM/MINIMUM of two; integers need one scale on both sides."""
    values = inputs_of(node)
    if len(values) != 2:
        raise Refused(f"{node.op_type} of {len(values)} inputs is not taken", "chain it in pairs")
    tensors, order = aligned(context, values, node.outputs[0])
    dtype = kind_of(tensors)
    tensors, encoding = context.settle(tensors, node.outputs[0])
    if encoding is not None:
        tensors = [context.quantized(t, encoding) for t in tensors]
    code = {"Max": "MAXIMUM", "Min": "MINIMUM"}[node.op_type]
    context.emit(code, tensors, node.outputs[0], encoding, order=order, dtype=dtype, table="MaximumMinimumOptions")


@lowers("Sigmoid", "Tanh")
def squash(context: Lowering, node: ir.Node) -> None:
    """LOGISTIC and TANH, whose integer kernels write in a fixed encoding."""
    held = context.value(inputs_of(node)[0])
    code = {"Sigmoid": "LOGISTIC", "Tanh": "TANH"}[node.op_type]
    emit_fixed(context, code, held.tensor, node.outputs[0], held.order)


@lowers("Softmax")
def softmax(context: Lowering, node: ir.Node) -> None:
    """SOFTMAX over the last dimension; another axis is moved there first."""
    source, output = inputs_of(node)[0], node.outputs[0]
    held = context.value(source)
    rank = len(held.order)
    axis = int(attribute(node, "axis", -1)) % rank
    order = held.order if held.order[-1] == axis else (*(d for d in range(rank) if d != axis), axis)
    x = context.reordered(held, order)
    if x.dtype == "int16" and x.shape[-1] > WIDEST_INT16_SOFTMAX:
        x = context.as_float(x)
    emit_fixed(context, "SOFTMAX", x, output, order, table="SoftmaxOptions", beta=1.0)


@lowers("LeakyRelu")
def leaky_relu(context: Lowering, node: ir.Node) -> None:
    """LEAKY_RELU."""
    held = context.value(inputs_of(node)[0])
    (x,), encoding = context.settle([held.tensor], node.outputs[0])
    alpha = float(attribute(node, "alpha", 0.01))
    context.emit("LEAKY_RELU", [x], node.outputs[0], encoding, order=held.order, table="LeakyReluOptions", alpha=alpha)


@lowers("Gelu", "HardSwish")
def float_or_int8(context: Lowering, node: ir.Node) -> None:
    """GELU and HARD_SWISH have int8 and float kernels, none for int16: there they compute in float."""
    held = context.value(inputs_of(node)[0])
    (x,), encoding = context.settle([held.tensor], node.outputs[0])
    if encoding is not None and encoding.dtype != "int8":
        x, encoding = context.as_float(x), None
    options: dict[str, Any] = {}
    if node.op_type == "Gelu":
        options = {"table": "GeluOptions", "approximate": attribute(node, "approximate", "none") == "tanh"}
    context.emit(
        {"Gelu": "GELU"}.get(node.op_type, "HARD_SWISH"),
        [x],
        node.outputs[0],
        encoding,
        order=held.order,
        **options,
    )


@lowers("HardSigmoid")
def hard_sigmoid(context: Lowering, node: ir.Node) -> None:
    """min(1, relu(alpha·x + beta)) in float."""
    held = context.value(inputs_of(node)[0])
    x = context.as_float(held.tensor)
    slope = context.emitter.scalar(attribute(node, "alpha", 0.2))
    offset = context.emitter.scalar(attribute(node, "beta", 0.5))
    scaled = context.internal("MUL", [x, slope], x.shape, table="MulOptions")
    risen = context.internal("ADD", [scaled, offset], x.shape, table="AddOptions", fusedActivationFunction=RELU)
    one = context.emitter.scalar(1.0)
    context.emit("MINIMUM", [risen, one], node.outputs[0], order=held.order, table="MaximumMinimumOptions")


@lowers("Sqrt", "Exp", "Neg", "Abs", "Log", "Sin", "Cos")
def float_unary(context: Lowering, node: ir.Node) -> None:
    """Computed in float; ABS and NEG of whole numbers in those."""
    held = context.value(inputs_of(node)[0])
    x, dtype = context.as_float(held.tensor), kind_of([held.tensor])
    context.emit(node.op_type.upper(), [x], node.outputs[0], order=held.order, dtype=dtype)


@lowers("Pow")
def power(context: Lowering, node: ir.Node) -> None:
    """POW in float; a square is a MUL."""
    base, exponent = inputs_of(node)
    output = node.outputs[0]
    held = context.value(base)
    x = context.as_float(held.tensor)
    weight = context.weight(exponent)
    if weight is not None and weight.array.size == 1 and float(weight.real().reshape(())) == 2.0:
        context.emit("MUL", [x, x], output, order=held.order, table="MulOptions")
        return
    tensors, order = aligned(context, [base, exponent], output)
    context.emit("POW", [context.as_float(t) for t in tensors], output, order=order, table="PowOptions")
