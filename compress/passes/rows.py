"""What the passes share that put ops on matrices: one row for every position, one column for every channel."""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, shape_of
from pocketport.compress.passes.rewriting import add_initializer, replace_value


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a tensor [..., C] seen as a matrix."""
    return math.prod(shape[:-1]), shape[-1]


def as_rows(node: ir.Node, index: int) -> ir.Value:
    """Input `index` of `node` as a matrix: itself, or behind a Reshape in front of `node`."""
    value = node.inputs[index]
    assert value is not None
    shape = matrix_shape(shape_of(value))
    return value if shape_of(value) == shape else _reshaped(node, value, shape, f"{node.outputs[0].name}.rows{index}")


def replace_on_rows(old: ir.Node, new: ir.Node) -> None:
    """Put `new`, which gives the output of `old` as a matrix, in its place, and a Reshape behind it where the shapes differ.

    The matrix takes the name of what `old` gave, unless that is an output of the graph.
    """
    graph, output, made = old.graph, old.outputs[0], new.outputs[0]
    assert isinstance(graph, ir.Graph)
    graph.insert_before(old, new)
    made.shape, made.type = ir.Shape(matrix_shape(shape_of(output))), output.type
    name = str(output.name)
    made.name = f"{name}.matrix"
    value = made if made.shape == output.shape else _reshaped(old, made, shape_of(output), f"{name}.shaped")
    replace_value(output, value)
    if value is not made and not value.is_graph_output():
        value.name, made.name = f"{name}.shaped", name
    graph.remove(old, safe=True)


def _reshaped(before: ir.Node, value: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    node = ir.node("Reshape", [value, shape_constant(graph, shape)], name=name)
    output = node.outputs[0]
    output.name, output.shape, output.type = name, ir.Shape(shape), value.type
    graph.insert_before(before, node)
    return output


def shape_constant(graph: ir.Graph, shape: Sequence[int]) -> ir.Value:
    """The shape as an initializer, one for all that ask for it: equal Reshapes of a value can be told so."""
    name, numbers = f"shape.{'x'.join(map(str, shape))}", np.array(shape, np.int64)
    known = graph.initializers.get(name)
    if known is not None and np.array_equal(np.asarray(constant(known)), numbers):
        return known
    return add_initializer(graph, name, numbers)
