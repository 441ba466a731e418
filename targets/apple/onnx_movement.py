"""Ops that only move data: what the ONNX ops mean in the primitives of ``emitter``."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from pocketport.targets.apple.call import Call, NotLowerable, lowering


@lowering("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(call: Call) -> Any:
    return call.emit.reshape(call.value(), call.out_shape())


@lowering("DepthToSpace")
def _depth_to_space(call: Call) -> Any:
    (batch, channels, height, width), block = call.shape(), call.integer("blocksize", 1)
    left, columns = channels // block**2, call.text("mode", "DCR") == "CRD"
    if batch > 1 and not columns:
        raise NotLowerable("DepthToSpace (DCR) of several images is not taken", "give one image, or use the mode CRD")
    shape = (batch * left, block, block, height, width) if columns else (block, block, left, height, width)
    order = (0, 3, 1, 4, 2) if columns else (2, 3, 0, 4, 1)
    turned = call.emit.transpose(call.emit.reshape(call.value(), shape), order)
    return call.emit.reshape(turned, call.out_shape())


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
        rows = indices.astype(np.int32)
        rows = np.where(rows < 0, rows + shape[axis], rows)
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
    x = (
        call.value()
        if len(shape) == len(target)
        else call.emit.reshape(call.value(), (1,) * (len(target) - len(shape)) + shape)
    )
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
    whole = (
        len(shape) == 4 and shape[:2] == out[:2] and all(o % s == 0 for s, o in zip(shape[2:], out[2:], strict=True))
    )
    rule = (call.text("coordinate_transformation_mode", "half_pixel"), call.text("nearest_mode", "round_prefer_floor"))
    repeats = rule in (
        ("asymmetric", "floor"),
        ("half_pixel", "round_prefer_floor"),
        ("half_pixel", "round_prefer_ceil"),
    )
    if call.text("mode", "nearest") == "nearest" and whole and repeats:
        return call.emit.upsample(call.value(), (out[2] // shape[2], out[3] // shape[3]))
    if len(shape) != 4 or shape[:2] != out[:2]:
        raise NotLowerable("resizing other dimensions than H and W is not taken", "resize [N, C, H, W] in H and W")
    height, width = (_interpolation(call, axis) for axis in (2, 3))
    x = call.value() if shape[3] == out[3] else call.emit.matmul(call.value(), call.emit.constant(width))
    return x if shape[2] == out[2] else call.emit.matmul(call.emit.constant(height.swapaxes(2, 3)), x)


def _interpolation(call: Call, axis: int) -> NDArray[np.float32]:
    """What of every place along `axis` comes into every resized one [1, 1, before, after]: resizing is linear, whatever its mode."""
    before, after = call.shape()[axis], call.out_shape()[axis]
    kept = ("antialias", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "mode", "nearest_mode")
    attributes = {name: call.node.attributes[name].value for name in kept if name in call.node.attributes}
    scale = call.array(2, "scales").reshape(-1) if call.has(2) else np.empty(0)
    scales = np.array([1.0, scale[axis - 4]], np.float32) if scale.size else None
    sizes = None if scale.size else np.array([before, after], np.int64)
    node = onnx.helper.make_node(
        "Resize", ["x", "", "s" if sizes is None else "", "" if sizes is None else "n"], ["y"], **attributes
    )
    given = {"x": np.eye(before, dtype=np.float32), "s": scales, "n": sizes}
    (matrix,) = ReferenceEvaluator(node).run(None, {k: v for k, v in given.items() if v is not None})
    return np.asarray(matrix, np.float32).reshape(1, 1, before, after)
