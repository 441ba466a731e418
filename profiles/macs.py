"""Multiply-accumulates of single ONNX nodes, by the textbook definitions."""

import math
from collections.abc import Callable, Mapping

import onnx_ir as ir

from pocketport.compress.graph import shape_of
from pocketport.errors import InputError


def _known(value: ir.Value | None) -> tuple[int, ...]:
    if value is None:
        raise InputError("a required input is missing", where="graph", fix="export the model again")
    return shape_of(value)


def _conv(node: ir.Node) -> int:
    weight = _known(node.inputs[3 if node.op_type == "QLinearConv" else 1])  # [M, C/group, k...]
    return math.prod(shape_of(node.outputs[0])) * math.prod(weight[1:])


def _conv_transpose(node: ir.Node) -> int:
    weight = _known(node.inputs[1])  # [C, M/group, k...]
    return math.prod(_known(node.inputs[0])) * math.prod(weight[1:])


def _gemm(node: ir.Node) -> int:
    left = _known(node.inputs[0])
    return math.prod(shape_of(node.outputs[0])) * left[0 if node.attributes.get_int("transA", 0) else 1]


def _matmul(node: ir.Node) -> int:
    return math.prod(shape_of(node.outputs[0])) * _known(node.inputs[0])[-1]


def _recurrent(node: ir.Node) -> int:
    steps, batch, _ = _known(node.inputs[0])  # W [directions, gates·hidden, input], R [.., gates·hidden, hidden]
    return steps * batch * (math.prod(_known(node.inputs[1])) + math.prod(_known(node.inputs[2])))


def _einsum(node: ir.Node) -> int:
    terms = node.attributes.get_string("equation", "").replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        sizes.update(zip(term, _known(value), strict=True))
    return math.prod(sizes.values())


def _attention(node: ir.Node) -> int:
    """Scores and their product with the values: out elements · keys + scores · head size, rank 4 or 3 with head counts."""
    query, key, value = (_known(v) for v in node.inputs[:3])
    heads = query[1] if len(query) == 4 else node.attributes.get_int("q_num_heads", 1)
    shared = key[1] if len(key) == 4 else node.attributes.get_int("kv_num_heads", 1)
    width, depth = (s[-1] if len(s) == 4 else s[-1] // n for s, n in ((query, heads), (value, shared)))
    return query[0] * heads * query[-2] * key[-2] * (width + depth)


_MACS: Mapping[str, Callable[[ir.Node], int]] = {
    "Conv": _conv, "ConvInteger": _conv, "QLinearConv": _conv, "ConvTranspose": _conv_transpose,
    "Gemm": _gemm, "MatMul": _matmul, "MatMulInteger": _matmul, "QLinearMatMul": _matmul,
    "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent, "Einsum": _einsum, "Attention": _attention,
}  # fmt: skip


def macs(node: ir.Node) -> int:
    """Multiply-accumulates by the textbook definition; ops that multiply no matrices count 0."""
    count = _MACS.get(node.op_type)
    return count(node) if count else 0
