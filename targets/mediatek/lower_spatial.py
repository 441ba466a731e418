"""Pooling, resizing and reductions."""

from typing import Any

import numpy as np
import onnx_ir as ir

from pocketport.targets.mediatek.emit import Tensor
from pocketport.targets.mediatek.lower_convolution import SAME, VALID, is_same, padded, window
from pocketport.targets.mediatek.lower_elementwise import inputs_of
from pocketport.targets.mediatek.lower_movement import integers, move
from pocketport.targets.mediatek.lowering import NHWC, Lowering, Refused, attribute
from pocketport.targets.mediatek.registry import lowers

INT32 = 2  # of the schema's TensorType
_REDUCERS = {"ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceMax": "REDUCE_MAX"}


@lowers("MaxPool", "AveragePool")
def pool(context: Lowering, node: ir.Node) -> None:
    """MAX_POOL_2D and AVERAGE_POOL_2D: they keep their input's encoding.

    An average computes in float where the pivot writes it on a finer grid than its input's.
    """
    source, output = inputs_of(node)[0], node.outputs[0]
    if attribute(node, "ceil_mode", 0) or len(node.outputs) > 1:
        raise Refused("ceil_mode and index outputs are not taken", "pad explicitly and drop the indices")
    x = context.read(source, NHWC)
    kernel = [int(k) for k in attribute(node, "kernel_shape", [])]
    strides, dilations, pads = window(node, kernel, x.shape[1:3])
    if any(d != 1 for d in dilations):
        raise Refused("a dilated pool is not taken", "use a pool without dilation")
    wanted = context.encoding(output)
    if node.op_type == "AveragePool" and x.encoding is not None and (wanted is None or wanted.scale < x.encoding.scale):
        x = context.as_float(x)
    padding = VALID
    excludes_pads = node.op_type == "MaxPool" or not attribute(node, "count_include_pad", 0)
    if any(pads) and excludes_pads and is_same(x.shape[1:3], kernel, strides, dilations, pads):
        padding = SAME
    elif any(pads) and node.op_type == "MaxPool":
        x = padded(context, x, pads, _lowest(context, x))
    elif any(pads) and not excludes_pads:
        x = padded(context, x, pads)
    elif any(pads):
        raise Refused("these pads with count_include_pad=0 are not taken", "use count_include_pad=1 or no pads")
    code = {"MaxPool": "MAX_POOL_2D", "AveragePool": "AVERAGE_POOL_2D"}[node.op_type]
    move(
        context, code, [x], output, NHWC, table="Pool2DOptions", padding=padding,
        strideH=strides[0], strideW=strides[1], filterHeight=kernel[0], filterWidth=kernel[1],
    )  # fmt: skip


def _lowest(context: Lowering, x: Tensor) -> Tensor:
    """The least number of x's type: what a maximum never picks."""
    if x.encoding is None:
        return context.emitter.scalar(float(np.finfo(np.float32).min))
    least = np.array(x.encoding.bounds[0], x.dtype)
    return context.emitter.constant(least, dtype=x.dtype, encoding=x.encoding)


@lowers("GlobalAveragePool")
def global_average_pool(context: Lowering, node: ir.Node) -> None:
    """MEAN over height and width."""
    source, output = inputs_of(node)[0], node.outputs[0]
    held = context.value(source)
    (x,), encoding = context.settle([held.tensor], output)
    axes = context.indices(sorted(held.order.index(d) for d in range(2, len(held.order))))
    context.emit("MEAN", [x, axes], output, encoding, order=held.order, table="ReducerOptions", keepDims=True)


@lowers("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2")
def reduce(context: Lowering, node: ir.Node) -> None:
    """MEAN, SUM and REDUCE_MAX; an L2 norm is SQRT(SUM(x·x)) in float."""
    source, output = inputs_of(node)[0], node.outputs[0]
    held = context.value(source)
    rank = len(held.order)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    listed = integers(given, "axes") if given is not None else attribute(node, "axes", range(rank))
    dropped = {int(a) % rank for a in listed}
    keep = bool(attribute(node, "keepdims", 1))
    axes = context.indices(sorted(held.order.index(d) for d in dropped))
    left = sorted(set(range(rank)) - dropped)
    order = held.order if keep else tuple(left.index(d) for d in held.order if d not in dropped)
    options: dict[str, Any] = {"table": "ReducerOptions", "keepDims": keep}
    if node.op_type == "ReduceL2":
        x = context.as_float(held.tensor)
        square = context.internal("MUL", [x, x], x.shape, table="MulOptions")
        shape = [context.shape(output)[d] for d in order]
        context.emit("SQRT", [context.internal("SUM", [square, axes], shape, **options)], output, order=order)
        return
    (x,), encoding = context.settle([held.tensor], output)
    if node.op_type == "ReduceMax" and encoding is not None:
        x = context.quantized(x, encoding)  # the integer kernel compares, it doesn't rescale
    context.emit(_REDUCERS[node.op_type], [x, axes], output, encoding, order=order, **options)


@lowers("ArgMax")
def argmax(context: Lowering, node: ir.Node) -> None:
    """ARG_MAX, which has no kernel for int16: in float there."""
    source, output = inputs_of(node)[0], node.outputs[0]
    if attribute(node, "select_last_index", 0):
        raise Refused("the last of several greatest is not taken", "take the first one")
    x, shape = context.read(source), context.shape(source)
    x = context.as_float(x) if x.dtype == "int16" else x
    axis = int(attribute(node, "axis", 0)) % len(shape)
    left = [n for d, n in enumerate(shape) if d != axis]
    place = context.emitter.tensor(f"argmax_of_{x.index}", left, "int32")
    inputs = [x, context.emitter.constant(np.array(axis, np.int32))]
    context.emitter.operator("ARG_MAX", inputs, [place], table="ArgMaxOptions", outputType=INT32)
    context.define(output, context.reshaped(place, context.shape(output)))


@lowers("Resize")
def resize(context: Lowering, node: ir.Node) -> None:
    """RESIZE_NEAREST_NEIGHBOR (asymmetric, floor) and RESIZE_BILINEAR (half pixel, asymmetric or aligned corners)."""
    source, output = inputs_of(node)[0], node.outputs[0]
    mode, place = (
        attribute(node, "mode", "nearest"),
        attribute(node, "coordinate_transformation_mode", "half_pixel"),
    )
    before, after = context.shape(source), context.shape(output)
    if len(after) != 4 or before[:2] != after[:2]:
        raise Refused("resizing other dimensions than height and width is not taken", "resize [N, C, H, W] in H and W")
    options: dict[str, Any] = {
        "alignCorners": place == "align_corners",
        "halfPixelCenters": place in ("half_pixel", "pytorch_half_pixel"),
    }
    if mode == "nearest":
        whole = all(a % b == 0 for a, b in zip(after[2:], before[2:], strict=True))
        floor = attribute(node, "nearest_mode", "round_prefer_floor") == "floor"
        if (
            not whole
            or (place != "asymmetric" and not options["halfPixelCenters"])
            or (place == "asymmetric" and not floor)
        ):
            raise Refused(
                f"nearest resizing with {place} and this rounding is not taken",
                "use asymmetric with floor, by a whole factor",
            )
        code, table = "RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"
        options = {
            "alignCorners": False,
            "halfPixelCenters": False,
        }  # by a whole factor both say: repeat each pixel
    elif mode == "linear" and place in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"):
        code, table = "RESIZE_BILINEAR", "ResizeBilinearOptions"
    else:
        raise Refused(f"{mode} resizing with {place} is not taken", "use nearest or linear")
    x = context.read(source, NHWC)
    move(context, code, [x, context.indices(after[2:])], output, NHWC, table=table, **options)
