"""Ops that few accelerators take, in ops that all do: Einsum, PRelu, Tile."""

import math
import string
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, static_shape
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.rewriting import NodeWriter, scalar

MOST_COPIES = 16  # of a Tile along one axis; more stay one op


class SpellOut(Pass):
    """Einsum of two operands → MatMul between Transposes and Reshapes; PRelu → max(x, slope·x); Tile → Expand or Concat."""

    def rewrite(self, graph: ir.Model) -> PassResult:
        """One sweep; shapes must have been inferred before."""
        writer = NodeWriter(graph.graph)
        return PassResult(graph, writer.sweep(lambda node: _spelled(node, writer)))


def _spelled(node: ir.Node, writer: NodeWriter) -> ir.Value | None:
    spell = _SPELLED.get(node.op_type) if not node.domain else None
    shapes = [static_shape(v) for v in (*node.inputs, *node.outputs) if v is not None]
    return spell(node, writer) if spell is not None and None not in shapes else None


def _einsum(node: ir.Node, writer: NodeWriter) -> ir.Value | None:
    """A batched matrix product: what both operands and the result have is the batch, what the result lacks is summed over."""
    shapes = [static_shape(v) or () for v in node.inputs if v is not None]
    *terms, result = _terms(node.attributes["equation"].as_string().replace(" ", ""), [len(s) for s in shapes])
    plain = all(letters.isalpha() and len(set(letters)) == len(letters) for letters in (*terms, result))
    if len(terms) != 2 or not plain or [len(t) for t in terms] != [len(s) for s in shapes]:
        return None
    left, right = terms
    batch = [c for c in result if c in left and c in right]
    rows, columns = (
        [c for c in result if c in own and c not in other] for own, other in ((left, right), (right, left))
    )
    summed = [c for c in left if c in right and c not in result]
    if not summed or {*left, *right} != {*batch, *rows, *columns, *summed}:
        return None
    pairs = {(c, n) for letters, shape in zip(terms, shapes, strict=True) for c, n in zip(letters, shape, strict=True)}
    sizes = dict(pairs)
    if len(sizes) < len(pairs):
        return None  # a dimension of 1 that is repeated
    name = str(node.outputs[0].name)
    first = _grouped(node, writer, 0, left, [batch, rows, summed], sizes, f"{name}.left")
    second = _grouped(node, writer, 1, right, [batch, summed, columns], sizes, f"{name}.right")
    product = writer.insert(node, "MatMul", [first, second], f"{name}.product", first.dtype)
    order = [*batch, *rows, *columns]
    parted = writer.reshape(node, product, [sizes[c] for c in order], f"{name}.parted")
    return _turned(node, writer, parted, [order.index(c) for c in result], f"{name}.turned")


def _terms(equation: str, ranks: Sequence[int]) -> list[str]:
    """The letters of each operand and of the result, capitals for the dimensions of an ellipsis."""
    given, _, result = equation.partition("->")
    terms = given.split(",")
    count = max(
        (rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=False) if "..." in term),
        default=0,
    )
    capitals = string.ascii_uppercase[:count]
    return [term.replace("...", capitals) for term in (*terms, result)]


def _grouped(
    node: ir.Node,
    writer: NodeWriter,
    index: int,
    letters: str,
    groups: Sequence[Sequence[str]],
    sizes: Mapping[str, int],
    name: str,
) -> ir.Value:
    """An operand with one dimension for each group of its letters."""
    value = node.inputs[index]
    assert value is not None
    turned = _turned(node, writer, value, [letters.index(c) for group in groups for c in group], f"{name}.turned")
    return writer.reshape(node, turned, [math.prod(sizes[c] for c in group) for group in groups], name)


def _turned(node: ir.Node, writer: NodeWriter, value: ir.Value, order: Sequence[int], name: str) -> ir.Value:
    if list(order) == sorted(order):
        return value
    return writer.insert(node, "Transpose", [value], name, value.dtype, {"perm": list(order)})


def _prelu(node: ir.Node, writer: NodeWriter) -> ir.Value | None:
    """LeakyRelu where one slope is for all, max(x, slope·x) of slopes from 0 to 1, else relu(x) + slope·min(x, 0)."""
    x, name, slopes = node.inputs[0], str(node.outputs[0].name), constant(node.inputs[1])
    if x is None or slopes is None:
        return None
    number = scalar(node.inputs[1])
    if number is not None:
        return writer.insert(
            node, "LeakyRelu", [x], f"{name}.leaky", x.dtype, {"alpha": ir.AttrFloat32("alpha", number)}
        )
    if slopes.min() >= 0 and slopes.max() <= 1:
        leak = writer.insert(node, "Mul", [x, node.inputs[1]], f"{name}.leak", x.dtype)
        return writer.insert(node, "Max", [x, leak], f"{name}.greater", x.dtype)
    zero = writer.constant(f"{name}.zero", np.zeros((), slopes.dtype))
    below = writer.insert(node, "Min", [x, zero], f"{name}.below", x.dtype)
    leak = writer.insert(node, "Mul", [below, node.inputs[1]], f"{name}.leak", x.dtype)
    above = writer.insert(node, "Relu", [x], f"{name}.above", x.dtype)
    return writer.insert(node, "Add", [above, leak], f"{name}.both", x.dtype)


def _tile(node: ir.Node, writer: NodeWriter) -> ir.Value | None:
    """Expand where only dimensions of 1 are repeated, else a Concat for each of the others."""
    value, repeats = node.inputs[0], constant(node.inputs[1])
    shape, name = None if value is None else static_shape(value), str(node.outputs[0].name)
    if value is None or repeats is None or shape is None or 0 in repeats:
        return None
    long = [(axis, int(n)) for axis, n in enumerate(repeats) if n > 1 and shape[axis] > 1]
    if any(n > MOST_COPIES for _, n in long):
        return None
    for axis, count in long:
        value = writer.insert(node, "Concat", [value] * count, f"{name}.{axis}", value.dtype, {"axis": axis})
    target = writer.constant(f"{name}.shape", np.array(static_shape(node.outputs[0]), np.int64))
    return writer.insert(node, "Expand", [value, target], f"{name}.expanded", value.dtype)


_SPELLED: dict[str, Callable[[ir.Node, NodeWriter], ir.Value | None]] = {
    "Einsum": _einsum,
    "PRelu": _prelu,
    "Tile": _tile,
}
