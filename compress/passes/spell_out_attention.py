"""Attention as products and a softmax: one op from opset 23 on, which compilers do not take and whose parts have ranges of their own."""

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import static_shape
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.rewriting import NodeWriter

FLOAT = ir.DataType.FLOAT


class SpellOutAttention(Pass):
    """Attention of [N, heads, tokens, width] → softmax(q·kᵀ·scale + mask)·v, as torch writes it up to opset 22.

    With a cache, a soft cap, operands of three dimensions or further outputs it stays.
    """

    def rewrite(self, graph: ir.Model) -> PassResult:
        """One sweep; shapes must have been inferred before."""
        writer = NodeWriter(graph.graph)
        return PassResult(graph, writer.sweep(lambda node: _spelled(node, writer)))


def _spelled(node: ir.Node, writer: NodeWriter) -> ir.Value | None:
    if node.op_type != "Attention" or node.domain or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return None
    query, key, value, mask, *cache = (*node.inputs, None)[: max(4, len(node.inputs))]
    if query is None or key is None or value is None or any(v is not None for v in cache):
        return None
    shapes = [static_shape(v) or () for v in (query, key, value)]
    if any(len(s) != 4 for s in shapes) or bool(node.attributes.get_float("softcap", 0.0)):
        return None
    (_, heads, rows, width), (_, groups, columns, _), _ = shapes
    name = str(node.outputs[0].name)
    if groups != heads:
        key, value = (_repeated(node, writer, v, heads // groups, f"{name}.{i}") for i, v in enumerate((key, value)))
    scale = node.attributes.get_float("scale", width**-0.5)
    factor = writer.constant(f"{name}.scale", np.array(scale, np.float32))
    scaled = writer.insert(node, "Mul", [query, factor], f"{name}.scaled", FLOAT)
    turned = writer.insert(node, "Transpose", [key], f"{name}.keys", FLOAT, {"perm": [0, 1, 3, 2]})
    scores = writer.insert(node, "MatMul", [scaled, turned], f"{name}.scores", FLOAT)
    if mask is not None:
        scores = writer.insert(node, "Add", [scores, _bias(node, writer, mask, name)], f"{name}.seen", FLOAT)
    if bool(node.attributes.get_int("is_causal", 0)):
        later = np.where(np.tri(rows, columns, dtype=bool), 0.0, -np.inf).astype(np.float32)
        bias = writer.constant(f"{name}.causal", later)
        scores = writer.insert(node, "Add", [scores, bias], f"{name}.past", FLOAT)
    shares = writer.insert(node, "Softmax", [scores], f"{name}.shares", FLOAT, {"axis": -1})
    return writer.insert(node, "MatMul", [shares, value], f"{name}.mixed", FLOAT)


def _bias(node: ir.Node, writer: NodeWriter, mask: ir.Value, name: str) -> ir.Value:
    """What a mask adds to the scores: itself, or −∞ where a boolean one is false."""
    if mask.dtype is not ir.DataType.BOOL:
        return mask
    ends = [
        writer.constant(f"{name}.{key}", np.array(at, np.float32)) for key, at in (("zero", 0.0), ("hidden", -np.inf))
    ]
    return writer.insert(node, "Where", [mask, *ends], f"{name}.bias", FLOAT)


def _repeated(node: ir.Node, writer: NodeWriter, value: ir.Value, times: int, name: str) -> ir.Value:
    """Keys or values of groups of heads, each as often as it has queries."""
    batch, groups, rows, width = static_shape(value) or ()
    parted = writer.reshape(node, value, (batch, groups, 1, rows, width), f"{name}.parted")
    wide = writer.constant(f"{name}.wide", np.array((batch, groups, times, rows, width), np.int64))
    expanded = writer.insert(node, "Expand", [parted, wide], f"{name}.expanded", FLOAT)
    return writer.reshape(node, expanded, (batch, groups * times, rows, width), f"{name}.repeated")
