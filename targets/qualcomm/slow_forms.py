"""Forms that the HTP compiler makes slow kernels of, rewritten to equal ones. What each costs is the compiler's own estimate (QAIRT 2.51, v73)."""

import math

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, static_shape
from pocketport.targets.qualcomm.qdq import (
    Port,
    before_rounding,
    dequantized,
    encoding_of,
    insert,
    parameters,
    quantizer_of,
    requantized,
    reshaped,
    restored,
    store,
    stored,
    stored_integers,
    stored_reals,
    substitute,
)

WRITTEN_OUT = 1 << 18
"""Elements that a constant is written out to at most."""

SHUFFLE = (0, 2, 1, 3, 4)
"""Dimensions of [1, groups, channels of each, rows, columns], turned."""

SUMMED, SUMMANDS = 3, 64
"""Dimensions from which on a sum along the last one is a product, and how many numbers it sums at most: longer ones were not compared."""

ARITHMETIC = ("Add", "Sub", "Mul", "Div")


def multiply_squares(model: ir.Model) -> None:
    """x² as a power → x·x: of 64 channels of 64 × 64 it takes 5 µs instead of 121 in float, in integers as long."""
    for node in [n for n in model.graph if n.op_type == "Pow"]:
        data, exponent, shape = node.inputs[0], node.inputs[1], static_shape(node.outputs[0])
        held = None if exponent is None else constant(exponent)
        if data is not None and shape is not None and held is not None and held.size == 1 and held.item() == 2:
            substitute(model, node, insert(node, "Mul", [data, data], f"{node.name}_squared", shape))


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
        substitute(model, node, insert(node, "Conv", [data, weight], name, shape, kernel_shape=(1, 1)))


def _made_by(value: ir.Value | None, op: str) -> ir.Node | None:
    """The node that gives `value`, before it was rounded, if it is an `op`."""
    node = None if value is None else before_rounding(value).producer()
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
            substitute(model, node, insert(node, "PRelu", [x, slopes], f"{node.name}_whole", shape))


def _slopes(x: ir.Value, product: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """`x`, and the constants of 0 to 1 that it is multiplied with to give `product`."""
    node = None if product is None else before_rounding(product).producer()
    if node is None or node.op_type != "Mul":
        return None
    for factor, slopes in (node.inputs, node.inputs[::-1]):
        source = None if slopes is None else slopes.producer()
        if factor is None or slopes is None or before_rounding(factor) is not before_rounding(x):
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


def write_out_constants(model: ir.Model) -> None:
    """A constant that repeats along a dimension between two that it has → one that repeats nothing.

    1 × 2944 × 1 × 2 for 1 × 2944 × 9 × 2 takes 881 µs in ``w8a8`` and 373 in float, written out 125 and 99.
    """
    for node in [n for n in model.graph if n.op_type in ARITHMETIC]:
        shape = static_shape(node.outputs[0])
        for index, value in enumerate(node.inputs):
            held = stored(value)
            if value is None or shape is None or held is None or not _repeats_inside(held.shape, shape):
                continue
            full = np.ascontiguousarray(np.broadcast_to(held, shape))
            node.replace_input_with(index, restored(node, value, full, f"{node.name}_written_out_{index}"))


def multiply_sums(model: ir.Model) -> None:
    """A sum along the last dimension → a product of rows with a column of ones.

    Nine weighted samples at each of 784 places in 128 channels, as a deformable convolution has them: the layer takes 0.9 ms in ``w8a8`` instead of 23.1, 1.6 in ``w8a16``
    instead of 2.2, 1.1 in float instead of 1.5.
    """
    for node in [n for n in model.graph if n.op_type == "ReduceSum" and len(n.inputs) > 1]:
        data, axes, made = node.inputs[0], constant(node.inputs[1]), static_shape(node.outputs[0])
        shape = None if data is None else static_shape(data)
        if data is None or shape is None or made is None or len(shape) < SUMMED or axes is None or axes.size != 1:
            continue
        port, quantizer = encoding_of(data), quantizer_of(node)
        rounding = None if quantizer is None else parameters(quantizer)
        along_last = int(axes.reshape(())) in (-1, len(shape) - 1) and shape[-1] <= SUMMANDS
        if not along_last or (port is None) != (rounding is None):
            continue
        rows, count, name = math.prod(shape[:-1]), shape[-1], f"{node.name}_sum"
        matrix = reshaped(node, data, (rows, count), f"{name}_rows")
        if port is None or rounding is None:
            ones = store(node, f"{name}_ones", np.ones((count, 1), np.float32))
            sums = insert(node, "MatMul", [matrix, ones], name, (rows, 1))
        else:
            matrix = requantized(node, matrix, port, f"{name}_rows")
            ones = dequantized(node, np.full((count, 1), 127, np.int8), Port("int8", 1 / 127, 0), f"{name}_ones")
            sums = requantized(node, insert(node, "MatMul", [matrix, ones], name, (rows, 1)), rounding, name)
        substitute(model, node, reshaped(node, sums, made, f"{name}_shaped"))


def _repeats_inside(own: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    own = (1,) * (len(whole) - len(own)) + own
    had = [axis for axis, size in enumerate(own) if size > 1]
    repeated = [axis for axis, size in enumerate(own) if size < whole[axis]]
    return math.prod(whole) <= WRITTEN_OUT and any(had[0] < axis < had[-1] for axis in repeated if had)


REWRITES = (multiply_squares, convolve_shuffles, whole_rectifiers, write_out_constants, multiply_sums)
