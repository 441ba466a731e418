"""Recognize a root-mean-square norm that an exporter spelled out over six ops."""

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import static_shape
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.fuse_layer_norm import is_square_of, mean_over_last, then
from pocketport.compress.passes.rewriting import add_initializer, replace_node, scalar


class FuseRMSNorm(Pass):
    """``x/√(mean(x²) + ε)·γ`` over the last axis → RMSNormalization, whether it is divided or multiplied by the reciprocal."""

    def rewrite(self, graph: ir.Model) -> PassResult:
        """Replace the last node of each; the rest is left to dead-code removal."""
        modified = False
        for node in list(graph.graph):
            found = _normalized(node)
            shape = None if found is None else static_shape(found[0])
            if found is None or shape is None:
                continue
            (x, epsilon), width = found, shape[-1]
            last, gamma = then(node, "Mul", width)
            vector = np.asarray(np.ones(width) if gamma is None else gamma, np.float32)
            scale = add_initializer(graph.graph, f"{last.outputs[0].name}.gamma", vector)
            fused = ir.node("RMSNormalization", [x, scale], {"axis": -1, "epsilon": epsilon}, name=last.name)
            replace_node(graph.graph, last, fused)
            modified = True
        return PassResult(graph, modified)


def _normalized(node: ir.Node) -> tuple[ir.Value, float] | None:
    """x and ε, if `node` computes x/√(mean(x²) + ε) over the last axis."""
    if node.domain or node.op_type not in ("Div", "Mul"):
        return None
    first, second = node.inputs
    for x, factor in ((first, second), (second, first))[: 1 if node.op_type == "Div" else 2]:
        root = _root(factor, inverse=node.op_type == "Mul")
        shifted = None if root is None else root.producer()
        if x is None or shifted is None or shifted.op_type != "Add":
            continue
        for mean, epsilon in (shifted.inputs, shifted.inputs[::-1]):
            number = scalar(epsilon)
            square = mean_over_last(mean) if number is not None and mean is not None else None
            if square is not None and number is not None and is_square_of(square, x):
                return x, number
    return None


def _root(value: ir.Value | None, *, inverse: bool) -> ir.Value | None:
    """v, if `value` is √v, or 1/√v for `inverse`."""
    node = None if value is None else value.producer()
    if node is not None and inverse:
        if node.op_type == "Pow" and scalar(node.inputs[1]) == -0.5:
            return node.inputs[0]
        inner = {"Reciprocal": 0, "Div": 1}.get(node.op_type)
        if inner is None or (node.op_type == "Div" and scalar(node.inputs[0]) != 1.0):
            return None
        below = node.inputs[inner]
        node = None if below is None else below.producer()
    return node.inputs[0] if node is not None and node.op_type == "Sqrt" else None
