"""Remove nodes that give what they are given."""

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, static_shape
from pocketport.compress.passes.base import Pass, PassResult

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


class RemoveNoops(Pass):
    """Identity, inference-time Dropout, and Cast, Reshape, Expand, Transpose, Slice, Add and Sub that change nothing.

    A layer's bias of zeros stays: those who join the two look for it.
    """

    def rewrite(self, graph: ir.Model) -> PassResult:
        """Rewire each consumer to the node's input; a graph output keeps its name."""
        modified = False
        for node in list(graph.graph):
            source, output = _kept(node), node.outputs[0]
            if source is None:
                continue
            if output.is_graph_output():
                if source.producer() is None or source.is_graph_output():
                    continue  # an input that is an output needs a node between
                name, output.name = output.name, f"{output.name}.unused"
                source.name = name
            output.replace_all_uses_with(source, replace_graph_outputs=True)
            graph.graph.remove(node, safe=True)
            modified = True
        return PassResult(graph, modified)


def _kept(node: ir.Node) -> ir.Value | None:
    """The input that a node gives as it is; None where it computes something."""
    if not node.domain and node.op_type in ("Add", "Sub"):
        return _beside_zeros(node)
    return node.inputs[0] if _is_noop(node) else None


def _beside_zeros(node: ir.Node) -> ir.Value | None:
    """The other operand of an Add, or the first of a Sub, where one is nothing but zeros."""
    for kept, zeros in (node.inputs, *([node.inputs[::-1]] if node.op_type == "Add" else [])):
        array = constant(zeros)
        if kept is None or array is None or np.any(array):
            continue
        shape = static_shape(kept)
        if shape is not None and shape == static_shape(node.outputs[0]):
            return None if _is_layer(kept.producer()) else kept
    return None


def _is_layer(node: ir.Node | None) -> bool:
    """Whether an Add behind the node may be its bias."""
    if node is None or node.op_type not in LAYERS:
        return False
    return any(v is not None and ir.convenience.get_const_tensor(v) is not None for v in node.inputs)


def _is_noop(node: ir.Node) -> bool:
    if node.domain or not node.inputs or node.inputs[0] is None:
        return False
    source, output = node.inputs[0], node.outputs[0]
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        return len(node.outputs) == 1 or not node.outputs[1].uses()
    if node.op_type in ("Cast", "CastLike"):
        return source.dtype is not None and source.dtype == output.dtype
    before, after = static_shape(source), static_shape(output)
    if before is None or before != after:
        return False
    if node.op_type in ("Reshape", "Expand", "Squeeze", "Unsqueeze", "Flatten"):
        return True
    if node.op_type == "Transpose":
        moved = (
            [axis for axis in node.attributes["perm"].as_ints() if before[axis] != 1]
            if "perm" in node.attributes
            else [1, 0]
        )
        return moved == sorted(moved)
    if node.op_type == "Slice":
        steps = constant(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1)
        return steps is not None and bool((np.asarray(steps) > 0).all())
    return False
