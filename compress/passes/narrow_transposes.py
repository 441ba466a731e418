"""Transposes of as few dimensions as they need: accelerators take five, window attention is written with six."""

import math
from collections.abc import Sequence

import onnx_ir as ir

from pocketport.compress.graph import static_shape
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.rewriting import NodeWriter

MOST = 5  # dimensions that every accelerator takes


class NarrowTransposes(Pass):
    """A Transpose of more than five dimensions → Reshape, Transpose, Reshape without those of 1, neighbours that stay so joined.

    What was reshaped to six dimensions for it, and is reshaped behind it, never has them: the Reshapes meet, and go.
    """

    def rewrite(self, graph: ir.Model) -> PassResult:
        """One sweep; shapes must have been inferred before."""
        modified = False
        writer = NodeWriter(graph.graph)
        for node in list(graph.graph):
            shape = static_shape(node.inputs[0]) if node.op_type == "Transpose" and node.inputs[0] is not None else None
            if node.domain or shape is None or len(shape) <= MOST or 0 in shape:
                continue
            groups = _joined(node.attributes.get_ints("perm", tuple(reversed(range(len(shape))))), shape)
            if len(groups) < len(shape):
                _narrow(node, writer, shape, groups)
                modified = True
        return PassResult(graph, modified)


def _joined(order: Sequence[int], shape: Sequence[int]) -> list[list[int]]:
    """The dimensions in the order of `order`: without those of 1, neighbours before and after in one group."""
    sizes = [d for d in range(len(shape)) if shape[d] != 1]
    place = {d: index for index, d in enumerate(sizes)}
    groups: list[list[int]] = []
    for d in (d for d in order if d in place):
        if groups and place[d] == place[groups[-1][-1]] + 1:
            groups[-1].append(d)
        else:
            groups.append([d])
    return groups


def _narrow(node: ir.Node, writer: NodeWriter, shape: Sequence[int], groups: Sequence[Sequence[int]]) -> None:
    name, value = str(node.outputs[0].name), node.inputs[0]
    assert value is not None
    before = sorted(range(len(groups)), key=lambda g: groups[g][0])
    sizes = [math.prod(shape[d] for d in groups[g]) for g in before]
    perm = [before.index(g) for g in range(len(groups))]
    joined = writer.reshape(node, value, sizes, f"{name}.joined")
    turned = writer.insert(node, "Transpose", [joined], f"{name}.turned", value.dtype, {"perm": perm})
    turned.shape = ir.Shape([sizes[p] for p in perm])
    writer.replace(node, writer.reshape(node, turned, static_shape(node.outputs[0]) or (), f"{name}.parted"))
