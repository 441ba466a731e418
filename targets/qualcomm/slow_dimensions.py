"""Integers of five dimensions, of which the HTP compiler makes slow kernels or plain ones, on matrices. Times are its own estimate (QAIRT 2.51, v73).

Decoders of boxes have these: [1, rows, columns, anchors, values]. A sigmoid of 40 × 24 × 3 × 7 takes 799 µs in ``w8a16`` as it is and 29 as 2880 × 7 (``w8a8``: 43 and 7), the addition
of a grid 293 and 10 (53 and 9). Floats are left: with few values a box they can take longer as a matrix (YOLOv7 8.0 ms, 7.0 as it is).
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, static_shape
from pocketport.compress.passes.rewriting import replace_value
from pocketport.compress.passes.rows import matrix_shape
from pocketport.targets.qualcomm.qdq import (
    Port,
    before_rounding,
    encoding_of,
    parameters,
    requantized,
    reshaped,
    restored,
    store,
    stored,
    stored_integers,
)

LEAST = 5
"""Dimensions from which on kernels are slow."""

WRITTEN_OUT = 1 << 18
"""Elements that a constant is written out to, one row for every row, at most."""

FUNCTIONS = frozenset({"Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})
ALONG_LAST = frozenset({"Concat", "Slice", "Split"})


def fold_dimensions(model: ir.Model) -> None:
    """What is element by element, or along the last dimension, computes on a matrix of that many columns."""
    for node in list(model.graph):
        roundings = _roundings(node)
        if node.op_type == "Reshape":
            _meet(node)
        elif roundings is not None and _is_by_rows(node):
            _put_on_rows(node, roundings)


def _roundings(node: ir.Node) -> list[Port] | None:
    """The encodings that outputs are rounded to, each by the one node that reads it; None where one isn't."""
    readers = [[user for user, _ in value.uses()] for value in node.outputs]
    ports = [parameters(r[0]) if len(r) == 1 and r[0].op_type == "QuantizeLinear" else None for r in readers]
    found = [port for port in ports if port is not None]
    return found if len(found) == len(ports) else None


def _is_by_rows(node: ir.Node) -> bool:
    shape = static_shape(node.outputs[0])
    if shape is None or len(shape) < LEAST or node.op_type not in FUNCTIONS | ARITHMETIC | ALONG_LAST:
        return False
    data = [v for v in node.inputs if _is_data(v)]
    shapes = [static_shape(v) for v in (*data, *node.outputs) if v is not None]
    if not data or any(s is None or s[:-1] != shape[:-1] for s in shapes):
        return False
    if not all(v is not None and encoding_of(v) is not None and _is_rearranged(v) for v in data):
        return False
    if node.op_type in ALONG_LAST:
        return _is_along_last(node, len(shape)) and (node.op_type != "Concat" or len(data) == len(node.inputs))
    if node.op_type in FUNCTIONS:
        return True
    known = all(_is_data(v) or stored(v) is not None for v in node.inputs)
    return known and all(s == shape for s in shapes) and math.prod(shape) <= WRITTEN_OUT


def _is_data(value: ir.Value | None) -> bool:
    return value is not None and constant(value) is None and stored_integers(value) is None


def _is_rearranged(value: ir.Value) -> bool:
    """Whether a value was put into its dimensions, as it is where boxes are decoded, and not computed in them: frames of a video have tiles."""
    while encoding_of(value) is not None and before_rounding(value) is not value:
        value = before_rounding(value)
    made_by = value.producer()
    return made_by is not None and made_by.op_type in ("Reshape", "Transpose")


def _is_along_last(node: ir.Node, rank: int) -> bool:
    if node.op_type == "Slice":
        axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
        return axes is not None and axes.size == 1 and int(axes.reshape(())) in (-1, rank - 1)
    return node.attributes.get_int("axis", 0) in (-1, rank - 1)


def _put_on_rows(node: ir.Node, roundings: Sequence[Port]) -> None:
    shapes = [static_shape(value) or () for value in node.outputs]
    inputs = [
        _rows(node, value, matrix_shape(static_shape(value) or ()), f"{node.name}_rows_of_{index}")
        if value is not None and _is_data(value)
        else _constant_rows(node, index, shapes[0])
        for index, value in enumerate(node.inputs)
    ]
    attributes = [ir.AttrInt64("axis", 1) if a.name == "axis" else a for a in node.attributes.values()]
    made = ir.Node("", node.op_type, inputs, attributes, name=f"{node.name}_rows", num_outputs=len(shapes))
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(node, made)
    for index, (old, new, shape, port) in enumerate(zip(node.outputs, made.outputs, shapes, roundings, strict=True)):
        name = f"{node.name}_rows_{index}"
        new.name, new.shape, new.dtype = f"{name}_out", ir.Shape(matrix_shape(shape)), ir.DataType.FLOAT
        replace_value(old, reshaped(node, requantized(node, new, port, name), shape, f"{name}_shaped"))
    graph.remove(node, safe=True)


def _meet(node: ir.Node) -> None:
    """A Reshape of what was reshaped, and rounded alike, reads that from before."""
    data = node.inputs[0]
    made_by = None if data is None else before_rounding(data).producer()
    source = made_by.inputs[0] if made_by is not None and made_by.op_type == "Reshape" else None
    if data is not None and source is not None and encoding_of(source) == encoding_of(data) is not None:
        node.replace_input_with(0, source)


def _rows(node: ir.Node, value: ir.Value, wanted: tuple[int, int], name: str) -> ir.Value:
    """A value as a matrix, rounded as it is; where it is a Reshape of one, that one."""
    port, source = encoding_of(value), before_rounding(value)
    if port is not None and encoding_of(source) is not None:  # rounded twice
        return requantized(node, _rows(node, source, wanted, f"{name}_before"), port, name)
    made_by = source.producer()
    before = made_by.inputs[0] if made_by is not None and made_by.op_type == "Reshape" else None
    if before is None:
        before = value
    if static_shape(before) != wanted:
        before = reshaped(node, before, wanted, f"{name}_matrix")
    return before if port is None or encoding_of(before) == port else requantized(node, before, port, name)


def _constant_rows(node: ir.Node, index: int, shape: tuple[int, ...]) -> ir.Value | None:
    """A parameter as it is, but for the axis of a Slice; an operand with a row for each row, or a single number."""
    value = node.inputs[index]
    if value is None or node.op_type not in ARITHMETIC:
        return store(node, f"{node.name}_axis", np.array([1])) if value is not None and _is_axis(node, index) else value
    held = stored(value)
    assert held is not None
    rows = held.reshape(1, 1) if held.size == 1 else np.broadcast_to(held, shape).reshape(matrix_shape(shape))
    return restored(node, value, np.ascontiguousarray(rows), f"{node.name}_constant_{index}")


def _is_axis(node: ir.Node, index: int) -> bool:
    return node.op_type == "Slice" and index == 3


REWRITES = (fold_dimensions,)
