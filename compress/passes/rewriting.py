"""What rewriting passes share: reading scalars, adding weights, putting one node in the place of another."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.graph import constant


def scalar(value: ir.Value | None) -> float | None:
    """The number, if `value` is a constant of one element."""
    array = constant(value)
    return float(np.asarray(array).reshape(-1)[0]) if array is not None and array.size == 1 else None


def add_initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Register a new initializer; a name that is taken gets a prime."""
    while name in graph.initializers:
        name += "'"
    value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """`new` takes over the consumers and the name of `old`."""
    name, old.name = old.name, f"{old.name}.unused"
    if new.shape is None or new.type is None:
        new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = name


def replace_node(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put `new` (one output, not yet in the graph) in the place of `old`."""
    graph.insert_before(old, new)
    replace_value(old.outputs[0], new.outputs[0])
    graph.remove(old, safe=True)
