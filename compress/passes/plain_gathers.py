"""Look-ups that every target takes: Gather and Reshape in the place of GatherND and GatherElements by constant indices."""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.graph import constant, static_shape
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.fold_constants import LARGEST_ELEMENT, MAX_FOLDED_BYTES
from pocketport.compress.passes.rewriting import NodeWriter

GATHERS = frozenset({"Gather", "GatherElements", "GatherND"})
Indices = NDArray[np.int64]


class PlainGathers(Pass):
    """GatherND and GatherElements by constant indices → Gather along one axis, and that → a Reshape where nothing is moved.

    The dimensions that indices run over become one; along the others a GatherElements must not vary. What is looked up in a
    table of equal numbers is that number, whatever the indices.
    """

    def rewrite(self, graph: ir.Model) -> PassResult:
        """One sweep; shapes must have been inferred before."""
        writer = NodeWriter(graph.graph)
        return PassResult(graph, writer.sweep(lambda node: _plain(node, writer)))


def _plain(node: ir.Node, writer: NodeWriter) -> ir.Value | None:
    if node.domain or node.op_type not in GATHERS:
        return None
    data, looked_up = node.inputs
    shape, result = (None if v is None else static_shape(v) for v in (data, node.outputs[0]))
    if data is None or shape is None or result is None or node.outputs[0].dtype is None or not shape or 0 in result:
        return None
    array = constant(data)
    small = math.prod(result) * LARGEST_ELEMENT <= MAX_FOLDED_BYTES  # so that it folds
    if array is not None and array.size and small and np.all(array == array.flat[0]):
        number = writer.constant(f"{node.outputs[0].name}.number", np.array(array.flat[0]))
        return _op(writer, node, "Expand", number, np.array(result, np.int64))
    indices = constant(looked_up)
    if indices is None and node.op_type == "GatherND":
        return _along_one(node, writer, data, shape, looked_up)
    if indices is None:
        return None
    numbers = np.asarray(indices, np.int64)
    if node.op_type == "Gather":
        length = shape[node.attributes.get_int("axis", 0) or 0]
        whole = numbers.size == length and np.array_equal(numbers.reshape(-1) % length, np.arange(length))
        return _op(writer, node, "Reshape", data, np.array(result, np.int64)) if whole else None
    if node.op_type == "GatherND":
        return _from_grid(node, writer, data, shape, numbers, result)
    return _from_elements(node, writer, data, shape, numbers, result)


def _op(writer: NodeWriter, node: ir.Node, op: str, value: ir.Value, operand: Indices, **attributes: int) -> ir.Value:
    """A node before `node` that reads `value` and a constant."""
    name = f"{node.outputs[0].name}.{op.lower()}"
    second = writer.constant(f"{name}.operand", operand)
    return writer.insert(node, op, [value, second], name, value.dtype, attributes)


def _from_grid(
    node: ir.Node, writer: NodeWriter, data: ir.Value, shape: Sequence[int], indices: Indices, result: Sequence[int]
) -> ir.Value | None:
    """Of a GatherND, each of whose last indices points at a place in the leading dimensions of `data`."""
    if node.attributes.get_int("batch_dims", 0):
        return None
    leading, rest = tuple(shape[: indices.shape[-1]]), tuple(shape[indices.shape[-1] :])
    places = np.ravel_multi_index(
        tuple(np.moveaxis(indices, -1, 0) % np.array(leading).reshape(-1, *[1] * (indices.ndim - 1))), leading
    )
    flat = places.reshape(-1)
    if flat.size == np.prod(leading) and np.array_equal(flat, np.arange(flat.size)):
        return _op(writer, node, "Reshape", data, np.array(result, np.int64))
    rows = _op(writer, node, "Reshape", data, np.array((np.prod(leading), *rest), np.int64))
    return _op(writer, node, "Gather", rows, places, axis=0)


def _along_one(
    node: ir.Node, writer: NodeWriter, data: ir.Value, shape: Sequence[int], looked_up: ir.Value | None
) -> ir.Value | None:
    """Of a GatherND by computed indices of which only the last ones choose: the dimensions before theirs are of 1.

    As CLIP takes the features of the last token, ``features[arange(1), place]``.
    """
    joined = None if looked_up is None else looked_up.producer()
    if joined is None or joined.op_type != "Concat" or bool(node.attributes.get_int("batch_dims", 0)):
        return None
    parts = [None if v is None else static_shape(v) for v in joined.inputs]
    rank, place = len(parts[0] or ()), joined.inputs[-1]
    last = joined.attributes.get_int("axis", 0) in (-1, rank - 1)
    if not last or place is None or any(p is None or p[-1:] != (1,) for p in parts):
        return None
    if any(n != 1 for n in shape[: len(parts) - 1]):
        return None
    rows = _op(writer, node, "Reshape", data, np.array(shape[len(parts) - 1 :], np.int64))
    indices = writer.reshape(node, place, (parts[-1] or ())[:-1], f"{node.outputs[0].name}.place")
    return writer.insert(node, "Gather", [rows, indices], f"{node.outputs[0].name}.row", data.dtype, {"axis": 0})


def _from_elements(
    node: ir.Node, writer: NodeWriter, data: ir.Value, shape: Sequence[int], indices: Indices, result: Sequence[int]
) -> ir.Value | None:
    """Of a GatherElements: the dimensions along which its indices vary and its axis are made the last one."""
    rank, name = len(shape), str(node.outputs[0].name)
    axis = node.attributes.get_int("axis", 0) % rank
    if any(result[d] != shape[d] for d in range(rank) if d != axis):
        return None  # only a part of the other dimensions is read
    indices = indices % shape[axis]
    varied = [d for d in range(rank) if d != axis and np.any(indices != indices.take([0], d))]
    same = [d for d in range(rank) if d != axis and d not in varied]
    order = [*same, *varied, axis]
    plane = [shape[d] for d in varied]
    numbers = indices.transpose(order)[(0,) * len(same)]  # [*plane, indices along the axis]
    starts = np.arange(np.prod(plane, dtype=np.int64)).reshape(*plane, 1) * shape[axis]
    turned = _turned(writer, node, data, order, f"{name}.turned")
    kept = [shape[d] for d in same]
    rows = _op(writer, node, "Reshape", turned, np.array((*kept, np.prod([*plane, shape[axis]])), np.int64))
    found = _op(writer, node, "Gather", rows, (starts + numbers), axis=len(same))
    return _turned(writer, node, found, list(np.argsort(order)), f"{name}.found")


def _turned(writer: NodeWriter, node: ir.Node, value: ir.Value, order: Sequence[int], name: str) -> ir.Value:
    if list(order) == sorted(order):
        return value
    return writer.insert(node, "Transpose", [value], name, value.dtype, {"perm": [int(d) for d in order]})
