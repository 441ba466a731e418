"""Convolutions and pools as every target takes them: in two dimensions, with their pads spelled out."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, static_shape
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.rewriting import NodeWriter

POOLS = frozenset({"MaxPool", "AveragePool"})
WINDOWED = POOLS | {"Conv", "ConvTranspose"}
FIRST = {
    "kernel_shape": 1,
    "strides": 1,
    "dilations": 1,
    "output_padding": 0,
    "output_shape": 1,
}  # of the new dimension


class PlainWindows(Pass):
    """One-dimensional convolutions and pools → two-dimensional ones of height 1, and ``ceil_mode`` → more pads at the end.

    Both exact: pads of a maximum are −∞, those of an average are not counted. An average that counts pads of its own keeps `ceil_mode`.
    """

    def rewrite(self, graph: ir.Model) -> PassResult:
        """One sweep; shapes must have been inferred before."""
        modified = False
        writer = NodeWriter(graph.graph)
        for node in list(graph.graph):
            shapes = [None if v is None else static_shape(v) for v in (*node.inputs[:1], *node.outputs[:1])]
            if node.domain or node.op_type not in WINDOWED or len(node.outputs) != 1 or None in shapes:
                continue
            shape, result = (s or () for s in shapes)
            if node.op_type in POOLS and bool(node.attributes.get_int("ceil_mode", 0)):
                modified = _spell_out(node, shape[2:], result[2:]) or modified
            if _is_global(node, shape[2:], result[2:]):
                writer.replace(
                    node, writer.insert(node, "GlobalAveragePool", node.inputs, "global", node.outputs[0].dtype)
                )
                modified = True
            elif len(shape) == 3:
                modified = _planar(node, writer, shape, result) or modified
        return PassResult(graph, modified)


def _spell_out(node: ir.Node, size: Sequence[int], result: Sequence[int]) -> bool:
    """Pads for as many windows as rounding up gives."""
    counts_pads = node.op_type == "AveragePool" and bool(node.attributes.get_int("count_include_pad", 0))
    if (counts_pads and any(node.attributes.get_ints("pads", ()))) or node.attributes.get_string(
        "auto_pad", "NOTSET"
    ) != "NOTSET":
        return False
    rank = len(size)
    kernel, ones = node.attributes["kernel_shape"].as_ints(), (1,) * rank
    strides, dilations = (node.attributes.get_ints(name, ones) for name in ("strides", "dilations"))
    pads = list(node.attributes.get_ints("pads", (0,) * (2 * rank)))
    for d in range(rank):
        needed = (result[d] - 1) * strides[d] + (kernel[d] - 1) * dilations[d] + 1
        pads[rank + d] = max(pads[rank + d], needed - size[d] - pads[d])
    if any(pads[rank + d] >= kernel[d] for d in range(rank)):
        return False  # a window of nothing but padding
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    for name in ("ceil_mode", "count_include_pad"):
        node.attributes.pop(name, None)
    return True


def _is_global(node: ir.Node, size: Sequence[int], result: Sequence[int]) -> bool:
    """Whether an average over more than there is takes all there is, once."""
    if (
        node.op_type != "AveragePool"
        or any(n != 1 for n in result)
        or bool(node.attributes.get_int("count_include_pad", 0))
    ):
        return False
    kernel, pads = node.attributes["kernel_shape"].as_ints(), node.attributes.get_ints("pads", (0,) * (2 * len(size)))
    reach = [k - before for k, before in zip(kernel, pads, strict=False)]
    return all(r >= n for r, n in zip(reach, size, strict=True)) and any(
        k > n for k, n in zip(kernel, size, strict=True)
    )


def _planar(node: ir.Node, writer: NodeWriter, shape: Sequence[int], result: Sequence[int]) -> bool:
    """The same on [N, C, 1, L], between Reshapes."""
    name, (value, *weights) = str(node.outputs[0].name), node.inputs
    kernel = constant(weights[0]) if weights else None
    if value is None or (node.op_type not in POOLS and kernel is None):
        return False
    inputs = [writer.reshape(node, value, (*shape[:2], 1, shape[2]), f"{name}.plane"), *weights]
    if kernel is not None:
        inputs[1] = writer.constant(f"{name}.kernel", np.expand_dims(kernel, 2))
    attributes = {key: _planar_attribute(a) for key, a in node.attributes.items()}
    made = writer.insert(node, node.op_type, inputs, f"{name}.planar", value.dtype, attributes)
    made.shape = ir.Shape((*result[:2], 1, result[2]))
    producer = made.producer()
    assert producer is not None
    producer.name = node.name or producer.name
    writer.replace(node, writer.reshape(node, made, result, f"{name}.line"))
    return True


def _planar_attribute(attribute: ir.Attr) -> ir.Attr:
    if attribute.name == "pads":
        before, after = attribute.as_ints()
        return ir.AttrInt64s("pads", [0, before, 0, after])
    if attribute.name in FIRST:
        return ir.AttrInt64s(attribute.name, [FIRST[attribute.name], *attribute.as_ints()])
    return attribute
