"""Forms that the HTP compiler makes slow kernels of, rewritten to equal ones. What each costs is the compiler's own estimate (QAIRT 2.51, v73).

Means and maxima of float pools only: quantized ones take as long in either form, and would need ranges for what lies between. Means over
windows that overlap only where they are quantized: there the compiler has kernels for few windows, and the others' plain one has no cost in its
estimate. Phones tell what it is: DDRNet with two such pools of 16 × 32 takes 57 ms in ``w8a8`` on a QCS9075 instead of the estimated 16, YOLOv9 with five 171 instead of 2
(17 ns for each element of each window; Qualcomm AI Hub Models 0.65.0).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, static_shape
from pocketport.compress.passes.rewriting import replace_value
from pocketport.profiles.prediction.extraction import mean_kind
from pocketport.profiles.prediction.features import Kind
from pocketport.targets.qualcomm.qdq import (
    Port,
    dequantized,
    encoding_of,
    insert,
    parameters,
    quantizer_of,
    requantized,
    store,
    stored_integers,
    stored_reals,
)

TALL_ROWS, TALL_RATIO = 64, 2
"""Rows, and rows for each column, from which a mean is a reduction: of 64 channels of 128 × 32 that takes 22 µs, as a pool 42.8 ms (64 × 32: 12 and
398 µs; 64 × 48, 32 × 16 and what is wide: 34 µs longer than a pool, or as long)."""

WIDE_MAXIMUM = 13
"""Rows and columns from which a maximum is faster in parts: of 384 channels of 8 × 6 it takes 137 µs in three parts of 5 × 5, at once 3,539."""

PART = 5
"""Rows and columns of a part: n of them make a window of 1 + 4·n."""

WIDEST_STRIDE = 3
"""Of a depthwise convolution with a fast kernel: 64 channels of 48 × 48 take 12 µs with windows of 7 × 7 and a stride of 3, 3,474 with 5 × 5 and 4, and
51 with 9 × 9 and 1."""

WRITTEN_OUT = 1 << 18
"""Elements that a constant is written out to at most."""

SHUFFLE = (0, 2, 1, 3, 4)
"""Dimensions of [1, groups, channels of each, rows, columns], turned."""

ARITHMETIC = ("Add", "Sub", "Mul", "Div")

POOL_DEFAULTS: Mapping[str, tuple[int, ...]] = {"strides": (1, 1), "dilations": (1, 1)}


def reduce_tall_means(model: ir.Model) -> None:
    """GlobalAveragePool of a tall image → ReduceMean."""
    for node in [n for n in model.graph if n.op_type == "GlobalAveragePool"]:
        data = node.inputs[0]
        shape = None if data is None else static_shape(data)
        if data is None or shape is None or len(shape) != 4 or _quantized(node):
            continue
        if shape[2] < max(TALL_ROWS, TALL_RATIO * shape[3]):
            continue
        axes = store(node, f"{node.name}_axes", np.array([2, 3]))
        mean = insert(node, "ReduceMean", [data, axes], f"{node.name}_mean", (*shape[:2], 1, 1), keepdims=1)
        _replace(model, node, mean)


def part_wide_maxima(model: ir.Model) -> None:
    """MaxPool with a wide window that moves by one → several with small windows, one after another.

    A maximum of maxima is the maximum of all, and what is padded counts as nothing in each.
    """
    for node in [n for n in model.graph if n.op_type == "MaxPool"]:
        data = node.inputs[0]
        shape = None if data is None else static_shape(data)
        window = tuple(node.attributes.get_ints("kernel_shape", ()))
        if data is None or shape is None or len(window) != 2 or len(set(window)) != 1 or _quantized(node):
            continue
        parts, rest = divmod(window[0] - 1, PART - 1)
        plain = all(tuple(node.attributes.get_ints(k, v)) == v for k, v in POOL_DEFAULTS.items())
        same = tuple(node.attributes.get_ints("pads", ())) == (window[0] // 2,) * 4
        if window[0] < WIDE_MAXIMUM or rest or not plain or not same or len(node.outputs) > 1:
            continue
        for part in range(parts):
            data = insert(
                node,
                "MaxPool",
                [data],
                f"{node.name}_part_{part}",
                shape,
                kernel_shape=(PART, PART),
                pads=(PART // 2,) * 4,
            )
        _replace(model, node, data)


def single_means(model: ir.Model) -> None:
    """AveragePool of one element, which takes every so many → MaxPool of it: of 96 channels of 165 × 165 in float 39 ms → 0.1."""
    for node in [n for n in model.graph if n.op_type == "AveragePool"]:
        data, attributes, shape = node.inputs[0], node.attributes, static_shape(node.outputs[0])
        single = set(attributes.get_ints("kernel_shape", ())) == {1} and set(attributes.get_ints("pads", ())) <= {0}
        if data is None or shape is None or len(shape) != 4 or not single or attributes.get_int("ceil_mode", 0) == 1:
            continue
        strides = tuple(attributes.get_ints("strides", (1, 1)))
        same = insert(node, "MaxPool", [data], f"{node.name}_single", shape, kernel_shape=(1, 1), strides=strides)
        _replace(model, node, same)


@dataclass(frozen=True)
class _Windows:
    """Of a mean over images: sizes, strides and pads of its windows, and sizes of the padded image."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    padded: tuple[int, ...]

    @classmethod
    def of(cls, node: ir.Node, shape: tuple[int, ...]) -> "_Windows":
        """`shape` is that of the images."""
        pads = tuple(node.attributes.get_ints("pads", ())) or (0,) * 4
        padded = tuple(size + pads[i] + pads[i + 2] for i, size in enumerate(shape[2:]))
        kernel = tuple(node.attributes.get_ints("kernel_shape", ()))
        return cls(kernel, tuple(node.attributes.get_ints("strides", (1, 1))), pads, padded)

    def places(self, strides: tuple[int, ...]) -> tuple[int, ...]:
        """Windows along each axis, those alone that end inside."""
        return tuple((p - k) // s + 1 for p, k, s in zip(self.padded, self.kernel, strides, strict=True))


def convolve_means(model: ir.Model) -> None:
    """Quantized AveragePool over windows that overlap, without a kernel of its own → depthwise Conv with equal weights, cut where its stride is wide."""
    for node in [n for n in model.graph if n.op_type == "AveragePool"]:
        data, quantizer = node.inputs[0], quantizer_of(node)
        before, after = (None if v is None else static_shape(v) for v in (data, node.outputs[0]))
        result = None if quantizer is None else parameters(quantizer)
        if (
            data is None
            or before is None
            or after is None
            or len(before) != 4
            or result is None
            or not _quantized(node)
        ):
            continue
        windows = _Windows.of(node, before)
        if mean_kind(windows.kernel, windows.strides, after[2:]) is not Kind.PLAIN_POOL or not _weighs_alike(node):
            continue
        if windows.places(windows.strides) != after[2:]:
            continue  # some window ends outside
        strides = windows.strides if max(windows.strides) <= WIDEST_STRIDE else (1, 1)
        name, port = f"{node.name}_convolved", Port("int8", 1 / (127 * math.prod(windows.kernel)), 0)
        weight = dequantized(node, np.full((before[1], 1, *windows.kernel), 127, np.int8), port, f"{name}_weight")
        mean = insert(
            node, "Conv", [data, weight], name, (*before[:2], *windows.places(strides)),
            kernel_shape=windows.kernel, strides=strides, pads=windows.pads, group=before[1],
        )  # fmt: skip
        if strides != windows.strides:
            mean = requantized(node, mean, result, f"{name}_all")
            span = {"from": (0, 0), "to": windows.places(strides), "axes": (2, 3), "steps": windows.strides}
            ends = [store(node, f"{name}_{key}", np.array(value, np.int64)) for key, value in span.items()]
            mean = insert(node, "Slice", [mean, *ends], f"{name}_cut", after)
        _replace(model, node, mean)


def _weighs_alike(node: ir.Node) -> bool:
    """Whether every element of every window has the same weight, at the border too."""
    pads, dilations = (set(node.attributes.get_ints(name, ())) for name in ("pads", "dilations"))
    return dilations <= {1} and (pads <= {0} or node.attributes.get_int("count_include_pad", 0) == 1)


def convolve_shuffles(model: ir.Model) -> None:
    """Channels dealt to groups and back, which turns five dimensions → pointwise Conv with a permutation.

    Of 64 channels of 80 × 80 it takes 18 µs instead of 328 in float, 3 instead of 256 in ``w8a8``, 9 instead of 208 in ``w8a16``; a Gather of channels 130 to 370.
    """
    for node in [n for n in model.graph if n.op_type == "Reshape"]:
        turned = _made_by(node.inputs[0], "Transpose")
        spread = None if turned is None else _made_by(turned.inputs[0], "Reshape")
        data = None if spread is None else spread.inputs[0]
        if turned is None or spread is None or data is None:
            continue
        shape, groups = static_shape(data), static_shape(spread.outputs[0])
        if shape is None or groups is None or len(shape) != 4 or static_shape(node.outputs[0]) != shape:
            continue
        if tuple(turned.attributes.get_ints("perm", ())) != SHUFFLE or groups[0] != 1 or groups[3:] != shape[2:]:
            continue
        order = np.arange(shape[1]).reshape(groups[1:3]).T.reshape(-1)
        dealt, name = np.eye(shape[1], dtype=np.float32)[order, :, None, None], f"{node.name}_shuffle"
        weight = (
            store(node, f"{name}_weight", dealt)
            if encoding_of(data) is None
            else dequantized(node, (127 * dealt).astype(np.int8), Port("int8", 1 / 127, 0), f"{name}_weight")
        )
        _replace(model, node, insert(node, "Conv", [data, weight], name, shape, kernel_shape=(1, 1)))


def _made_by(value: ir.Value | None, op: str) -> ir.Node | None:
    """The node that gives `value`, before it was rounded, if it is an `op`."""
    node = None if value is None else _before_rounding(value).producer()
    return node if node is not None and node.op_type == op else None


def whole_rectifiers(model: ir.Model) -> None:
    """max(x, slope·x) of images, with a slope for each channel → PRelu, with what is quantized between both left out.

    Behind three convolutions of 64 channels on 128 × 128 they take 0.9 ms instead of 2.0 in float, 0.40 instead of 0.59 in ``w8a8``, 0.52 instead of 1.05 in ``w8a16``.
    """
    for node in [n for n in model.graph if n.op_type == "Max" and len(n.inputs) == 2]:
        shape = static_shape(node.outputs[0])
        found = [f for x, y in (node.inputs, node.inputs[::-1]) if x is not None and (f := _slopes(x, y)) is not None]
        if shape is None or len(shape) != 4 or not found:
            continue
        x, slopes = found[0]
        if static_shape(slopes) in ((shape[1], 1, 1), (1, shape[1], 1, 1)):
            _replace(model, node, insert(node, "PRelu", [x, slopes], f"{node.name}_whole", shape))


def _slopes(x: ir.Value, product: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """`x`, and the constants of 0 to 1 that it is multiplied with to give `product`."""
    node = None if product is None else _before_rounding(product).producer()
    if node is None or node.op_type != "Mul":
        return None
    for factor, slopes in (node.inputs, node.inputs[::-1]):
        source = None if slopes is None else slopes.producer()
        if factor is None or slopes is None or _before_rounding(factor) is not _before_rounding(x):
            continue
        numbers = (
            constant(slopes)
            if source is None
            else stored_reals(source)
            if stored_integers(slopes) is not None
            else None
        )
        if numbers is not None and numbers.min() >= 0 and numbers.max() <= 1:
            return x, slopes
    return None


def _before_rounding(value: ir.Value) -> ir.Value:
    """What a DequantizeLinear and the QuantizeLinear before it were given; a value without them itself."""
    for op in ("DequantizeLinear", "QuantizeLinear"):
        node = value.producer()
        if node is None or node.op_type != op or node.inputs[0] is None:
            return value
        value = node.inputs[0]
    return value


def write_out_constants(model: ir.Model) -> None:
    """A constant that repeats along a dimension between two that it has → one that repeats nothing.

    1 × 2944 × 1 × 2 for 1 × 2944 × 9 × 2 takes 881 µs in ``w8a8`` and 373 in float, written out 125 and 99.
    """
    for node in [n for n in model.graph if n.op_type in ARITHMETIC]:
        shape = static_shape(node.outputs[0])
        for index, value in enumerate(node.inputs):
            integers, reals = stored_integers(value), None if value is None else constant(value)
            held = reals if integers is None else integers
            if value is None or shape is None or held is None or not _repeats_inside(held.shape, shape):
                continue
            full, name = np.ascontiguousarray(np.broadcast_to(held, shape)), f"{node.name}_written_out_{index}"
            port = encoding_of(value)
            if integers is None:
                node.replace_input_with(index, store(node, name, full))
            elif port is not None:
                node.replace_input_with(index, dequantized(node, full, port, name))


def _repeats_inside(own: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    own = (1,) * (len(whole) - len(own)) + own
    had = [axis for axis, size in enumerate(own) if size > 1]
    repeated = [axis for axis, size in enumerate(own) if size < whole[axis]]
    return math.prod(whole) <= WRITTEN_OUT and any(had[0] < axis < had[-1] for axis in repeated if had)


def _quantized(node: ir.Node) -> bool:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _replace(model: ir.Model, node: ir.Node, value: ir.Value) -> None:
    replace_value(node.outputs[0], value)
    model.graph.remove(node, safe=True)
