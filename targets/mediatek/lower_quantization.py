"""QuantizeLinear, DequantizeLinear, Identity, Cast: where values change precision."""

import onnx_ir as ir

from pocketport.compress.graph import constant
from pocketport.targets.mediatek.lowering import ACTIVATION_TYPES, Lowering, Refused, Weight, attribute, encoding_of
from pocketport.targets.mediatek.registry import lowers

_CASTS = {"FLOAT": "float32", "FLOAT16": "float32", "INT32": "int32", "INT64": "int32", "BOOL": "bool"}


@lowers("QuantizeLinear")
def quantize_linear(context: Lowering, node: ir.Node) -> None:
    """The tensor itself where its producer already wrote in this encoding, else a QUANTIZE."""
    encoding = encoding_of(node)
    if encoding.dtype not in ACTIVATION_TYPES or encoding.axis is not None:
        raise Refused(
            f"activations of type {encoding.dtype} are not taken",
            "use int16 symmetric (w8a16) or int8 (w8a8)",
        )
    if encoding.dtype == "int16" and int(encoding.zero_point) != 0:
        raise Refused("int16 activations need zero point 0", "calibrate symmetric encodings for MediaTek")
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    held = context.value(source)
    context.define(output, context.quantized(held.tensor, encoding, str(output.name)), held.order)


@lowers("DequantizeLinear")
def dequantize_linear(context: Lowering, node: ir.Node) -> None:
    """Constants are remembered; a quantized activation flows on, and its float readers dequantize it."""
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    integers = constant(source)
    if integers is None:
        held = context.value(source)
        context.define(output, held.tensor, held.order)
        return
    encoding = encoding_of(node)
    if encoding.block:
        raise Refused(
            f"weights in blocks of {encoding.block} are not taken (NeuronAdapter has no block scales)",
            "use w4c or w8c",
        )
    context.define_weight(output, Weight(integers, encoding))


@lowers("Identity")
def identity_op(context: Lowering, node: ir.Node) -> None:
    """The same tensor under another name."""
    source = node.inputs[0]
    assert source is not None
    held = context.value(source)
    context.define(node.outputs[0], held.tensor, held.order)


@lowers("Cast")
def cast(context: Lowering, node: ir.Node) -> None:
    """CAST; between widths of one kind (int64 → int32, float16 → float32) nothing."""
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    kind = ir.DataType(attribute(node, "to", 0)).name
    if kind not in _CASTS:
        raise Refused(f"a cast to {kind} is not taken", "keep the value float32 or int32")
    held = context.value(source)
    tensor = context.as_float(held.tensor)
    if tensor.dtype == _CASTS[kind]:
        context.define(output, held.tensor, held.order)
        return
    context.emit("CAST", [tensor], output, order=held.order, dtype=_CASTS[kind], table="CastOptions")
