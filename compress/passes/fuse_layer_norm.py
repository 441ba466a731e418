"""Recognize a layer norm that an exporter spelled out over eight ops."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.graph import constant, static_shape
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.rewriting import add_initializer, replace_node, scalar


class FuseLayerNorm(Pass):
    """``(x − mean)/√(mean((x − mean)²) + ε)·γ + β`` over the last axis → LayerNormalization."""

    def rewrite(self, graph: ir.Model) -> PassResult:
        """Replace the last node of each; the rest is left to dead-code removal."""
        modified = False
        for node in list(graph.graph):
            found = _normalized(node)
            if found is None:
                continue
            x, epsilon = found
            shape = static_shape(x)
            if shape is None:
                continue
            width = shape[-1]
            last, gamma = then(node, "Mul", width)
            last, beta = then(last, "Add", width)
            inputs = [x]
            for part, vector in (("gamma", gamma if gamma is not None else np.ones(width)), ("beta", beta)):
                if vector is None:
                    continue
                inputs.append(
                    add_initializer(graph.graph, f"{last.outputs[0].name}.{part}", np.asarray(vector, np.float32))
                )
            fused = ir.node("LayerNormalization", inputs, {"axis": -1, "epsilon": epsilon}, name=last.name)
            replace_node(graph.graph, last, fused)
            modified = True
        return PassResult(graph, modified)


def _normalized(node: ir.Node) -> tuple[ir.Value, float] | None:
    """x and ε, if `node` computes (x − mean)/√(variance + ε) over the last axis."""
    if node.op_type != "Div" or node.domain:
        return None
    centred, root = (v.producer() if v is not None else None for v in node.inputs)
    if centred is None or root is None or centred.op_type != "Sub" or root.op_type != "Sqrt":
        return None
    x, mean = centred.inputs
    shifted = root.inputs[0].producer() if root.inputs[0] is not None else None
    if x is None or mean is None or mean_over_last(mean) is not x or shifted is None or shifted.op_type != "Add":
        return None
    for variance, epsilon in (shifted.inputs, shifted.inputs[::-1]):
        number = scalar(epsilon)
        square = mean_over_last(variance) if number is not None and variance is not None else None
        if square is not None and number is not None and is_square_of(square, centred.outputs[0]):
            return x, number
    return None


def mean_over_last(value: ir.Value) -> ir.Value | None:
    """x, if `value` is its mean over the last axis, kept as a dimension of 1."""
    node = value.producer()
    if (
        node is None
        or node.op_type != "ReduceMean"
        or node.attributes.get_int("keepdims", 1) != 1
        or node.inputs[0] is None
    ):
        return None
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    shape = static_shape(node.inputs[0])
    if axes is None or shape is None or [int(a) % len(shape) for a in np.asarray(axes).reshape(-1)] != [len(shape) - 1]:
        return None
    return node.inputs[0]


def is_square_of(value: ir.Value, base: ir.Value) -> bool:
    """Whether `value` is base², as a power or as a product."""
    node = value.producer()
    if node is None or node.inputs[0] is not base:
        return False
    return (node.op_type == "Pow" and scalar(node.inputs[1]) == 2.0) or (
        node.op_type == "Mul" and node.inputs[1] is base
    )


def then(node: ir.Node, op: str, width: int) -> tuple[ir.Node, NDArray[np.generic] | None]:
    """The following `op` by a constant [width] and that constant, if it is all that reads `node`; else `node` itself."""
    output = node.outputs[0]
    users = output.consumers()
    if len(users) != 1 or users[0].op_type != op or output.is_graph_output():
        return node, None
    other = users[0].inputs[1] if users[0].inputs[0] is output else users[0].inputs[0]
    array = constant(other)
    if array is None or array.size != width or array.shape[-1:] != (width,):
        return node, None
    return users[0], array.reshape(width)
