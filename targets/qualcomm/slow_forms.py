"""Forms that the HTP compiler makes slow kernels of, rewritten to equal ones. What each costs is the compiler's own estimate (QAIRT 2.51, v73).

Pools only where they compute in float: a quantized one takes as long in either form, and would need ranges for what lies between.
"""

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, static_shape
from pocketport.targets.qualcomm.qdq import dequantized, encoding_of, insert, store, stored_integers

LARGE_MEAN = 1024
"""Elements of a channel from which a mean is faster as a reduction: 64 × 32 takes 12 µs, as a pool 398; below, pools are as fast or faster."""

WIDE_MAXIMUM = 13
"""Rows and columns from which a maximum is faster in parts: of 384 channels of 8 × 6 it takes 137 µs in three parts of 5 × 5, at once 3,539."""

PART = 5
"""Rows and columns of a part: n of them make a window of 1 + 4·n."""

WRITTEN_OUT = 1 << 18
"""Elements that a constant is written out to at most."""

ARITHMETIC = ("Add", "Sub", "Mul", "Div")

POOL_DEFAULTS: Mapping[str, tuple[int, ...]] = {"strides": (1, 1), "dilations": (1, 1)}


def reduce_large_means(model: ir.Model) -> None:
    """GlobalAveragePool of many elements → ReduceMean."""
    for node in [n for n in model.graph if n.op_type == "GlobalAveragePool"]:
        data = node.inputs[0]
        shape = None if data is None else static_shape(data)
        if data is None or shape is None or math.prod(shape[2:]) < LARGE_MEAN or _quantized(node):
            continue
        axes = store(node, f"{node.name}_axes", np.arange(2, len(shape)))
        wanted = (*shape[:2], *[1] * (len(shape) - 2))
        mean = insert(node, "ReduceMean", [data, axes], f"{node.name}_mean", wanted, keepdims=1)
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
    old = node.outputs[0]
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    value.name, old.name = old.name, None
