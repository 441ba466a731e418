"""What rewriting passes share: reading scalars, adding weights, putting one node in the place of another."""

from collections.abc import Callable, Mapping, Sequence

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


class NodeWriter:
    """Puts new nodes of one output, and constants, into a graph under names that are free. Shapes are left to inference."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._taken = {v.name for node in graph for v in node.outputs} | {v.name for v in graph.inputs}
        self._taken |= set(graph.initializers)

    def insert(
        self,
        before: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        dtype: ir.DataType | None,
        attributes: Mapping[str, ir.Attr | int | Sequence[int]] | None = None,
    ) -> ir.Value:
        """A new node in front of another one; its output, which is called `name`, or that and a number."""
        free = self._free(name)
        node = ir.node(op, inputs, attributes, name=free)
        self.graph.insert_before(before, node)
        output = node.outputs[0]
        output.name = free
        if dtype is not None:
            output.dtype = dtype
        return output

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """A new initializer, which is called `name`, or that and a number."""
        return add_initializer(self.graph, self._free(name), array)

    def reshape(self, before: ir.Node, value: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
        """A Reshape of `value` in front of another node."""
        target = self.constant(f"{name}.shape", np.array(shape, np.int64))
        made = self.insert(before, "Reshape", [value, target], name, value.dtype)
        made.shape = ir.Shape(shape)
        return made

    def replace(self, old: ir.Node, value: ir.Value) -> None:
        """`value`, which a new node gives, takes the place of what `old` gives."""
        value.shape, value.type = old.outputs[0].shape, old.outputs[0].type
        replace_value(old.outputs[0], value)
        self.graph.remove(old, safe=True)

    def sweep(self, make: Callable[[ir.Node], ir.Value | None]) -> bool:
        """Once over the graph, put what `make` gives for a node in its place; None leaves it. True if there was any."""
        modified = False
        for node in list(self.graph):
            made = make(node)
            if made is not None:
                self.replace(node, made)
                modified = True
        return modified

    def _free(self, name: str) -> str:
        number, free = 1, name
        while free in self._taken:
            number, free = number + 1, f"{name}{number + 1}"
        self._taken.add(free)
        return free
