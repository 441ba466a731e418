"""Images at a graph's boundary with their channels last, as phones' runtimes hand them over and as accelerators keep them."""

from collections.abc import Callable, Iterable

import onnx_ir as ir

from pocketport.compress.graph import shape_of, static_shape
from pocketport.compress.structure import IMAGE_OPS, LAYOUT_BARRIERS, is_float

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def images_channels_last(model: ir.Model) -> None:
    """Give inputs and outputs that are images channels last, in place: a Transpose each, which compilers cancel out.

    An image has four dimensions and floats, and is read or given by ops on images with nothing in between that a layout can't pass.
    """
    graph = model.graph
    for value in graph.inputs:
        users = [(node, index) for node, index in value.uses()]
        if _is_image(value, _readers):
            first = next(node for node in graph if any(node is user for user, _ in users))
            turned = _transposed(value, TO_FIRST, shape_of(value))
            value.shape = ir.Shape([shape_of(value)[axis] for axis in TO_LAST])
            graph.insert_before(first, _producer(turned))
            for node, index in users:
                node.replace_input_with(index, turned)
    for index, value in enumerate(graph.outputs):
        if not value.is_graph_input() and _is_image(value, _producers):
            name, shape = value.name, shape_of(value)
            turned = _transposed(value, TO_LAST, tuple(shape[axis] for axis in TO_LAST))
            graph.append(_producer(turned))
            graph.outputs[index] = turned
            value.name, turned.name = f"{name}_channels_first", name


def _transposed(value: ir.Value, permutation: tuple[int, ...], shape: tuple[int, ...]) -> ir.Value:
    node = ir.node("Transpose", [value], attributes={"perm": list(permutation)}, name=f"{value.name}_channels")
    out = node.outputs[0]
    out.name, out.shape, out.type = f"{value.name}_turned", ir.Shape(shape), value.type
    return out


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _is_image(value: ir.Value, around: Callable[[ir.Value], Iterable[ir.Node]]) -> bool:
    """Whether an op on images is reached from `value` in the direction of `around`, with no barrier before it."""
    if not is_float(value) or len(static_shape(value) or ()) != 4:
        return False
    pending, seen = list(around(value)), set[ir.Node]()
    while pending:
        node = pending.pop()
        if node.op_type in IMAGE_OPS:
            return True
        if node in seen or node.op_type in LAYOUT_BARRIERS:
            continue
        seen.add(node)
        further = node.outputs if around is _readers else node.inputs
        pending += [n for v in further if v is not None for n in around(v)]
    return False


def _readers(value: ir.Value) -> Iterable[ir.Node]:
    return [node for node, _ in value.uses()]


def _producers(value: ir.Value) -> Iterable[ir.Node]:
    node = value.producer()
    return [] if node is None else [node]
