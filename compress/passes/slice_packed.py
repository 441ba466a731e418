"""Queries, keys and values of one product are columns of it."""

import math

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, shape_of, static_shape
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.rewriting import NodeWriter


class SlicePacked(Pass):
    """Gather of one part behind Transposes of what a Reshape split along the last dimension → Slice of that dimension.

    So exporters write torch's ``nn.MultiheadAttention``: [T,1,3·E] → [T,1,3,E] → [3,T,1,1,E] → three Gathers. The Transposes, which move all of it in
    five dimensions, go: by the HTP compiler's estimate each takes 94 ms in a ViT-B in ``w8a8``, where all else takes 1 ms a block.
    """

    def rewrite(self, graph: ir.Model) -> PassResult:
        """One sweep; what nobody reads any more is left to dead-code removal."""
        writer = NodeWriter(graph.graph)
        return PassResult(graph, writer.sweep(lambda node: _part(node, writer)))


def _part(node: ir.Node, writer: NodeWriter) -> ir.Value | None:
    found = _columns(node) if node.op_type == "Gather" and not node.domain else None
    if found is None:
        return None
    packed, first, last = found
    name, whole = str(node.outputs[0].name), shape_of(packed)
    ends = {"first": first, "last": last, "axis": len(whole) - 1}
    span = [writer.constant(f"{name}.{end}", np.array([at], np.int64)) for end, at in ends.items()]
    columns = writer.insert(node, "Slice", [packed, *span], f"{name}.columns", packed.dtype)
    columns.shape = ir.Shape((*whole[:-1], last - first))
    return writer.reshape(node, columns, shape_of(node.outputs[0]), f"{name}.part")


def _columns(gather: ir.Node) -> tuple[ir.Value, int, int] | None:
    """What the parts were split from, the first of its columns that `gather` takes, and the one behind the last; None where it is something else."""
    index, data = constant(gather.inputs[1]), gather.inputs[0]
    shape = None if data is None else static_shape(data)
    if index is None or index.shape or data is None or shape is None or static_shape(gather.outputs[0]) is None:
        return None
    axis = gather.attributes.get_int("axis", 0) % len(shape)
    axes: list[int | None] = list(range(len(shape)))  # of `data` in terms of what `node` gives
    node, moved = data.producer(), False
    while node is not None and not node.domain and node.op_type in ("Transpose", "Squeeze", "Unsqueeze"):
        before = None if node.inputs[0] is None else static_shape(node.inputs[0])
        if before is None:
            return None
        own = _origins(node, len(before))
        axes = [None if a is None else own[a] for a in axes]
        moved |= node.op_type == "Transpose"
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    packed = node.inputs[0] if node is not None and node.op_type == "Reshape" and not node.domain else None
    whole, part = None if packed is None else static_shape(packed), axes[axis]
    if node is None or packed is None or not whole or part is None or not moved:
        return None
    split = shape_of(node.outputs[0])
    kept = [a for i, a in enumerate(axes) if i != axis and a is not None and split[a] > 1]
    if math.prod(split[part:]) != whole[-1] or kept != sorted(kept):
        return None
    width = math.prod(split[part + 1 :])
    first = int(index) % split[part] * width
    return packed, first, first + width


def _origins(node: ir.Node, rank: int) -> list[int | None]:
    """For each dimension of what a Transpose, Squeeze or Unsqueeze gives the one of its input that it was; None for a new one."""
    given = list[int | None](range(rank))
    if node.op_type == "Transpose":
        return [given[a] for a in node.attributes.get_ints("perm", range(rank)[::-1])]
    out = shape_of(node.outputs[0])
    found = constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if node.op_type == "Squeeze":
        sizes = shape_of(node.inputs[0]) if node.inputs[0] is not None else ()
        gone = (
            {a for a, size in enumerate(sizes) if size == 1}
            if found is None
            else {int(a) % rank for a in found.reshape(-1)}
        )
        return [a for a in given if a not in gone]
    new = set() if found is None else {int(a) % len(out) for a in found.reshape(-1)}
    old = iter(given)
    return [None if a in new else next(old) for a in range(len(out))]
