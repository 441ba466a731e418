"""Let what computes row by row stay on matrices from one linear layer to the next."""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, dimensions, static_shape
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.rewriting import add_initializer
from pocketport.compress.passes.rows import as_rows, matrix_shape, replace_on_rows
from pocketport.compress.structure import ELEMENTWISE_OPS, is_constant

ACTIVATIONS = frozenset(
    {
        "Abs", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal",
        "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Tanh",
    }
)  # fmt: skip
SEQUENCE = 3
"""Dimensions of what is moved: a batch, positions, channels. Images with their channels last have four, and the HTP cuts them into tiles of rows and
columns: as matrices ConvNeXt-T takes 5.1 ms instead of 2.8 by its compiler's estimate (``w8a16``), and 2.9 instead of 1.6 (``w8a8``)."""
ROW_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})


class KeepRows(Pass):
    """An op behind a Reshape from a matrix, or before Reshapes to one, computes on the matrix: so the Reshapes meet, and go.

    Element-wise ops, norms over the last dimension and products with constant matrices. Behind a Reshape, their other operands
    must be matrices too, or be read as such elsewhere; before Reshapes, nothing else may read them.
    """

    def rewrite(self, graph: ir.Model) -> PassResult:
        """One sweep in topological order, in which a Reshape wanders down a whole chain; `MergeReshapes` takes away those that met."""
        modified = False
        for node in list(graph.graph):
            data = _data_operands(node)
            if data and (_follows_matrices(data) or _makes_matrix(node, data)):
                _move(graph.graph, node)
                modified = True
        return PassResult(graph, modified)


def _data_operands(node: ir.Node) -> list[ir.Value]:
    """What a node computes with at run time, if it does so row by row on a sequence; else nothing."""
    shape = static_shape(node.outputs[0])
    if node.domain or len(node.outputs) != 1 or shape is None or len(shape) != SEQUENCE or 0 in shape:
        return []
    operands = [v for v in node.inputs if v is not None]
    data, constants = [v for v in operands if not is_constant(v)], [v for v in operands if is_constant(v)]
    width = shape[-1]
    if node.op_type == "MatMul":
        sizes = _size(operands[1])
        if constants != operands[1:] or len(sizes) != 2:
            return []
        width = sizes[0]
    elif node.op_type in ROW_NORMS:
        if node.attributes.get_int("axis", -1) not in (-1, len(shape) - 1):
            return []
    elif node.op_type not in ELEMENTWISE_OPS | ACTIVATIONS or not all(_is_for_rows(v, width) for v in constants):
        return []
    return data if all(static_shape(v) == (*shape[:-1], width) for v in data) else []


def _size(value: ir.Value) -> tuple[int, ...]:
    """The shape of a constant, without reading it."""
    tensor = ir.convenience.get_const_tensor(value)
    return () if tensor is None else dimensions(tensor)


def _is_for_rows(value: ir.Value, width: int) -> bool:
    """Whether a constant is the same for every row: one number, or a vector along the last dimension."""
    size = _size(value)
    return math.prod(size) == 1 or math.prod(size) == size[-1] == width


def _follows_matrices(data: Sequence[ir.Value]) -> bool:
    """Whether one operand at least is a reshaped matrix, and the others are or are read as one."""
    come = [_is_reshaped_matrix(v) for v in data]
    return any(come) and all(c or _is_read_as_matrix(v) for c, v in zip(come, data, strict=True))


def _is_reshaped_matrix(value: ir.Value) -> bool:
    node = value.producer()
    if node is None or node.op_type != "Reshape" or node.domain or node.inputs[0] is None:
        return False
    return static_shape(node.inputs[0]) == matrix_shape(static_shape(value) or (0,))


def _is_read_as_matrix(value: ir.Value) -> bool:
    return any(_makes_rows(node, index, value) for node, index in value.uses())


def _makes_matrix(node: ir.Node, data: Sequence[ir.Value]) -> bool:
    """Whether a node of one operand is read by nothing but Reshapes to a matrix."""
    output = node.outputs[0]
    uses = list(output.uses())
    alone = len(set(data)) == 1 and not output.is_graph_output()
    return alone and bool(uses) and all(_makes_rows(user, index, output) for user, index in uses)


def _makes_rows(node: ir.Node, index: int, value: ir.Value) -> bool:
    """Whether `node` reshapes `value` to its rows."""
    wanted = matrix_shape(static_shape(value) or (0,))
    return node.op_type == "Reshape" and not node.domain and index == 0 and static_shape(node.outputs[0]) == wanted


def _move(graph: ir.Graph, node: ir.Node) -> None:
    """Put the op on matrices in the place of `node`."""
    inputs: list[ir.Value | None] = []
    for index, value in enumerate(node.inputs):
        if value is not None and not is_constant(value):
            inputs.append(as_rows(node, index))
        elif value is not None and node.op_type != "MatMul" and len(_size(value)) > 1:
            # Dimensions of 1 before a vector's own would be the result's too.
            vector = np.asarray(constant(value)).reshape(-1)
            inputs.append(add_initializer(graph, f"{node.outputs[0].name}.constant{index}", vector))
        else:
            inputs.append(value)
    attributes = [ir.AttrInt64("axis", -1) if a.name == "axis" else a for a in node.attributes.values()]
    replace_on_rows(node, ir.Node("", node.op_type, inputs, attributes, name=node.name))
