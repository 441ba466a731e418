"""Conv, depthwise Conv and ConvTranspose in two dimensions, NHWC."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from pocketport.calibration.encodings import Encoding
from pocketport.targets.mediatek.activation import fused_activation
from pocketport.targets.mediatek.emit import Tensor
from pocketport.targets.mediatek.lower_linear import bias_tensor, computes_in_integers, weight_tensor
from pocketport.targets.mediatek.lowering import NHWC, Lowering, Refused, Weight, attribute
from pocketport.targets.mediatek.registry import lowers

SAME, VALID = 0, 1


def window(node: ir.Node, kernel: Sequence[int], size: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads (top, left, bottom, right) of a window over `size` (height, width)."""
    strides = [int(s) for s in attribute(node, "strides", [1, 1])]
    dilations = [int(d) for d in attribute(node, "dilations", [1, 1])]
    if len(kernel) != 2:
        raise Refused(
            f"a window of {len(kernel)} dimensions is not taken", "use two-dimensional convolutions and pools"
        )
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode == "NOTSET":
        return strides, dilations, [int(p) for p in attribute(node, "pads", [0, 0, 0, 0])]
    if mode == "VALID":
        return strides, dilations, [0, 0, 0, 0]
    before, after = [], []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return strides, dilations, [*before, *after]


def is_same(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
) -> bool:
    """Whether explicit `pads` are what LiteRT's SAME padding computes."""
    for axis in range(2):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        total = max((-(-size[axis] // strides[axis]) - 1) * strides[axis] + reach - size[axis], 0)
        if (pads[axis], pads[axis + 2]) != (total // 2, total - total // 2):
            return False
    return True


def padded(context: Lowering, x: Tensor, pads: Sequence[int], fill: Tensor | None = None) -> Tensor:
    """`x` (NHWC) with rows and columns of real zeros, or of `fill`, around it."""
    top, left, bottom, right = pads
    shape = (x.shape[0], x.shape[1] + top + bottom, x.shape[2] + left + right, x.shape[3])
    made = context.emitter.tensor(f"padded_{x.index}", shape, x.dtype, x.encoding)
    amounts = context.emitter.constant(np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32))
    if fill is None:
        context.emitter.operator("PAD", [x, amounts], [made], table="PadOptions")
    else:
        context.emitter.operator("PADV2", [x, amounts, fill], [made], table="PadV2Options")
    return made


@lowers("Conv")
def conv(context: Lowering, node: ir.Node) -> None:
    """CONV_2D or DEPTHWISE_CONV_2D: SAME where that means the same as the pads, else a PAD before VALID.

    Other groups are a SPLIT, a CONV_2D each and a CONCATENATION.
    """
    source, kernel = node.inputs[0], node.inputs[1]
    weight = context.weight(kernel)
    if weight is None or source is None or kernel is None:
        raise Refused("its weights are not constant", "make them an initializer")
    group, array = int(attribute(node, "group", 1)), weight.array
    channels, inputs = int(array.shape[0]), context.shape(source)[1]
    depthwise = group > 1 and group == inputs and array.shape[1] == 1
    if weight.encoding is not None and weight.encoding.axis not in (None, 0):
        raise Refused("its weights are not quantized per output channel", "quantize them along axis 0")
    x = context.read(source, NHWC)
    strides, dilations, pads = window(node, array.shape[2:], x.shape[1:3])
    activation, output = fused_activation(context, node)
    encoding = context.encoding(output)
    integer = computes_in_integers(weight, x, encoding)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    b = bias_tensor(context, bias, channels, x.encoding if integer else None, weight.encoding if integer else None)
    if b is None:
        b = context.emitter.constant(np.zeros(channels, np.float32))
    x = x if integer else context.as_float(x)
    padding = SAME if is_same(x.shape[1:3], array.shape[2:], strides, dilations, pads) else VALID
    if padding == VALID and any(pads):
        x = padded(context, x, pads)
    options: dict[str, Any] = {
        "padding": padding, "strideH": strides[0], "strideW": strides[1], "fusedActivationFunction": activation,
        "dilationHFactor": dilations[0], "dilationWFactor": dilations[1],
    }  # fmt: skip
    name, kept = str(kernel.name), encoding if integer else None
    if depthwise:
        w = weight_tensor(context, weight, array.transpose(1, 2, 3, 0), 3, name, integer=integer)
        options |= {"table": "DepthwiseConv2DOptions", "depthMultiplier": channels // group}
        context.emit("DEPTHWISE_CONV_2D", [x, w, b], output, kept, order=NHWC, **options)
        return
    options["table"] = "Conv2DOptions"
    if group == 1:
        w = weight_tensor(context, weight, array.transpose(0, 2, 3, 1), 0, name, integer=integer)
        context.emit("CONV_2D", [x, w, b], output, kept, order=NHWC, **options)
        return
    batch, _, height, width = context.shape(output)
    parts = _channels_of_groups(context, x, group)
    made = []
    assert b.data is not None
    for number, part in enumerate(parts):
        rows = slice(number * channels // group, (number + 1) * channels // group)
        own = Weight(array[rows], _cut(weight.encoding, rows))
        w = weight_tensor(context, own, own.array.transpose(0, 2, 3, 1), 0, f"{name}.{number}", integer=integer)
        biases = context.emitter.constant(b.data[rows], dtype=b.dtype, encoding=_cut(b.encoding, rows))
        shape = (batch, height, width, channels // group)
        y = context.emitter.tensor(f"{output.name}.{number}", shape, kept.dtype if kept else "float32", kept)
        context.emitter.operator("CONV_2D", [part, w, biases], [y], **options)
        made.append(y)
    context.emit(
        "CONCATENATION", made, output, kept, order=NHWC, table="ConcatenationOptions", axis=3, fusedActivationFunction=0
    )


def _channels_of_groups(context: Lowering, x: Tensor, group: int) -> list[Tensor]:
    """The channels (last dimension) of `x` in equal parts."""
    shape = (*x.shape[:3], x.shape[3] // group)
    parts = [context.emitter.tensor(f"group{i}_of_{x.index}", shape, x.dtype, x.encoding) for i in range(group)]
    axis = context.emitter.constant(np.array(3, np.int32))
    context.emitter.operator("SPLIT", [axis, x], parts, table="SplitOptions", numSplits=group)
    return parts


def _cut(encoding: Encoding | None, rows: slice) -> Encoding | None:
    """The encoding of some of the channels, which lie on the first dimension."""
    if encoding is None or encoding.axis is None:
        return encoding
    return Encoding(encoding.dtype, encoding.scale[rows], encoding.zero_point[rows], 0)


@lowers("ConvTranspose")
def conv_transpose(context: Lowering, node: ir.Node) -> None:
    """TRANSPOSE_CONV with VALID padding; ONNX pads crop its result."""
    source, kernel, output = node.inputs[0], node.inputs[1], node.outputs[0]
    weight = context.weight(kernel)
    if weight is None or source is None or kernel is None:
        raise Refused("its weights are not constant", "make them an initializer")
    if int(attribute(node, "group", 1)) != 1 or any(d != 1 for d in attribute(node, "dilations", [1, 1])):
        raise Refused(
            "a transposed convolution with groups or dilations is not taken", "use one group without dilation"
        )
    if any(attribute(node, "output_padding", [0, 0])) or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        raise Refused("output_padding and auto_pad are not taken", "write explicit pads")
    array = weight.array  # [in, out, height, width]
    if weight.encoding is not None and weight.encoding.axis not in (None, 1):
        raise Refused("its weights are not quantized per output channel", "quantize them along axis 1")
    strides, _, pads = window(node, array.shape[2:], context.shape(source)[2:])
    x = context.read(source, NHWC)
    encoding = context.encoding(output)
    integer = computes_in_integers(weight, x, encoding)
    w = weight_tensor(context, weight, array.transpose(1, 2, 3, 0), 0, str(kernel.name), integer=integer)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    b = bias_tensor(
        context, bias, array.shape[1], x.encoding if integer else None, weight.encoding if integer else None
    )
    batch, depth, height, width = context.shape(output)
    full = (batch, height + pads[0] + pads[2], width + pads[1] + pads[3], depth)
    inputs = [context.indices(full), w, x if integer else context.as_float(x), b]
    settings: dict[str, Any] = {
        "table": "TransposeConvOptions",
        "padding": VALID,
        "strideH": strides[0],
        "strideW": strides[1],
    }
    kept = encoding if integer else None
    if not any(pads):
        context.emit("TRANSPOSE_CONV", inputs, output, kept, order=NHWC, **settings)
        return
    whole = context.emitter.tensor(f"uncropped_{x.index}", full, kept.dtype if kept else "float32", kept)
    context.emitter.operator("TRANSPOSE_CONV", inputs, [whole], **settings)
    corner, extent = context.indices([0, pads[0], pads[1], 0]), context.indices([batch, height, width, depth])
    context.emit("SLICE", [whole, corner, extent], output, kept, order=NHWC, table="SliceOptions")
