"""Pools that the HTP compiler makes slow kernels of, rewritten to equal ops. What each costs is the compiler's own estimate (QAIRT 2.51, v73).

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

from pocketport.compress.graph import static_shape
from pocketport.profiles.prediction.extraction import mean_kind
from pocketport.profiles.prediction.features import Kind
from pocketport.targets.qualcomm.qdq import (
    Port,
    dequantized,
    insert,
    parameters,
    quantizer_of,
    requantized,
    store,
    substitute,
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
        substitute(model, node, mean)


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
        substitute(model, node, data)


def single_means(model: ir.Model) -> None:
    """AveragePool of one element, which takes every so many → MaxPool of it: of 96 channels of 165 × 165 in float 39 ms → 0.1."""
    for node in [n for n in model.graph if n.op_type == "AveragePool"]:
        data, attributes, shape = node.inputs[0], node.attributes, static_shape(node.outputs[0])
        single = set(attributes.get_ints("kernel_shape", ())) == {1} and set(attributes.get_ints("pads", ())) <= {0}
        if data is None or shape is None or len(shape) != 4 or not single or attributes.get_int("ceil_mode", 0) == 1:
            continue
        strides = tuple(attributes.get_ints("strides", (1, 1)))
        same = insert(node, "MaxPool", [data], f"{node.name}_single", shape, kernel_shape=(1, 1), strides=strides)
        substitute(model, node, same)


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
        substitute(model, node, mean)


def _weighs_alike(node: ir.Node) -> bool:
    """Whether every element of every window has the same weight, at the border too."""
    pads, dilations = (set(node.attributes.get_ints(name, ())) for name in ("pads", "dilations"))
    return dilations <= {1} and (pads <= {0} or node.attributes.get_int("count_include_pad", 0) == 1)


def _quantized(node: ir.Node) -> bool:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


REWRITES = (reduce_tall_means, part_wide_maxima, single_means, convolve_means)
