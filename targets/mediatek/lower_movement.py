"""Ops that move data and never change a number: they keep their input's encoding."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pocketport.calibration.encodings import Encoding
from pocketport.compress.graph import constant
from pocketport.targets.mediatek.emit import Tensor
from pocketport.targets.mediatek.lower_elementwise import inputs_of
from pocketport.targets.mediatek.lowering import Lowering, Order, Refused, Value, Weight, attribute, identity
from pocketport.targets.mediatek.registry import lowers


def move(
    context: Lowering,
    code: str,
    inputs: Sequence[Tensor],
    output: ir.Value,
    order: Order | None = None,
    **options: object,
) -> None:
    """Emit an op whose output has the type and encoding of its first input."""
    context.emit(code, inputs, output, inputs[0].encoding, order=order, dtype=inputs[0].dtype, **options)


def integers(value: ir.Value | None, what: str) -> list[int]:
    """A constant list of integers; Refused if it is computed at run time."""
    held = constant(value)
    if held is None:
        raise Refused(f"its {what} is computed at run time", "fix every dimension when ingesting, so that it folds")
    return [int(v) for v in held.reshape(-1)]


@lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(context: Lowering, node: ir.Node) -> None:
    """RESHAPE. One that only adds or drops 1s keeps a pending order of dimensions; others settle it first."""
    source, output = inputs_of(node)[0], node.outputs[0]
    shape = context.shape(output)
    held = context.value(source)
    order = _carried(context.shape(source), shape, held.order)
    if order is None:
        context.define(output, context.reshaped(context.read(source), shape))
    else:
        context.define(output, context.reshaped(held.tensor, [shape[d] for d in order]), order)


def _carried(before: tuple[int, ...], after: tuple[int, ...], order: Order) -> Order | None:
    """The order after a reshape that only adds or drops 1s, None for any other reshape.

    Dimensions longer than 1 keep their emitted sequence; the new 1s go to the front.
    """
    long_before = [d for d, n in enumerate(before) if n != 1]
    long_after = [d for d, n in enumerate(after) if n != 1]
    if [before[d] for d in long_before] != [after[d] for d in long_after]:
        return None
    renamed = dict(zip(long_before, long_after, strict=True))
    ones = [d for d, n in enumerate(after) if n == 1]
    return tuple(ones + [renamed[d] for d in order if d in renamed])


@lowers("DepthToSpace")
def depth_to_space(context: Lowering, node: ir.Node) -> None:
    """Two RESHAPEs and a TRANSPOSE of five dimensions: LiteRT's own op has another order of channels."""
    source, output = inputs_of(node)[0], node.outputs[0]
    (batch, channels, height, width), block = context.shape(source), int(attribute(node, "blocksize", 1))
    left, columns = channels // block**2, attribute(node, "mode", "DCR") == "CRD"
    if batch > 1 and not columns:
        raise Refused("DepthToSpace (DCR) of several images is not taken", "give one image, or use the mode CRD")
    shape = (batch * left, block, block, height, width) if columns else (block, block, left, height, width)
    moved = context.reshaped(context.read(source), shape)
    order = (0, 3, 1, 4, 2) if columns else (2, 3, 0, 4, 1)
    turned = context.reordered(Value(moved, identity(5)), order)
    context.define(output, context.reshaped(turned, context.shape(output)))


@lowers("Transpose")
def transpose(context: Lowering, node: ir.Node) -> None:
    """Only remembered: whoever needs another order of dimensions emits the TRANSPOSE."""
    held = context.value(inputs_of(node)[0])
    rank = len(held.order)
    permutation = [int(p) for p in attribute(node, "perm", range(rank)[::-1])]
    context.define(node.outputs[0], held.tensor, tuple(permutation.index(d) for d in held.order))


@lowers("Concat")
def concat(context: Lowering, node: ir.Node) -> None:
    """CONCATENATION; parts in other scales are requantized to the output's."""
    values, output = inputs_of(node), node.outputs[0]
    held = [context.value(v) for v in values]
    active = [h for h in held if h.tensor.data is None] or held
    order = max(active, key=lambda h: int(np.prod(h.tensor.shape))).order
    tensors, encoding = context.settle([context.reordered(h, order) for h in held], output)
    if encoding is not None:
        tensors = [context.quantized(t, encoding) for t in tensors]
    axis = order.index(int(attribute(node, "axis", 0)) % len(order))
    context.emit(
        "CONCATENATION", tensors, output, encoding, order=order, dtype=tensors[0].dtype,
        table="ConcatenationOptions", axis=axis,
    )  # fmt: skip


@lowers("Split")
def split(context: Lowering, node: ir.Node) -> None:
    """SPLIT into equal parts, else one SLICE a part."""
    source = inputs_of(node)[0]
    held = context.value(source)
    rank = len(held.order)
    place = held.order.index(int(attribute(node, "axis", 0)) % rank)
    parts = [tuple(context.shape(o)[d] for d in held.order) for o in node.outputs]
    x = held.tensor
    if len({p[place] for p in parts}) == 1:
        made = [
            context.emitter.tensor(str(o.name), p, x.dtype, x.encoding)
            for o, p in zip(node.outputs, parts, strict=True)
        ]
        axis = context.emitter.constant(np.array(place, np.int32))
        context.emitter.operator("SPLIT", [axis, x], made, table="SplitOptions", numSplits=len(made))
        for output, tensor in zip(node.outputs, made, strict=True):
            context.define(output, tensor, held.order)
        return
    start = 0
    for output, part in zip(node.outputs, parts, strict=True):
        begin = [start if d == place else 0 for d in range(rank)]
        move(
            context,
            "SLICE",
            [x, context.indices(begin), context.indices(part)],
            output,
            held.order,
            table="SliceOptions",
        )
        start += part[place]


@lowers("Slice")
def slice_op(context: Lowering, node: ir.Node) -> None:
    """SLICE for steps of 1, STRIDED_SLICE for larger ones."""
    source, output = inputs_of(node)[0], node.outputs[0]
    inputs = [*node.inputs, None, None, None]
    held = context.value(source)
    before, rank = context.shape(source), len(held.order)
    starts = integers(inputs[1], "starts")
    axes = integers(inputs[3], "axes") if inputs[3] is not None else list(range(len(starts)))
    steps = integers(inputs[4], "steps") if inputs[4] is not None else [1] * len(starts)
    if any(s < 1 for s in steps):
        raise Refused("a slice with a negative step is not taken", "reverse the data beforehand")
    begin, step = [0] * rank, [1] * rank
    for axis, start, stride in zip(axes, starts, steps, strict=True):
        size = before[axis % rank]
        begin[axis % rank] = min(max(start + size if start < 0 else start, 0), size)
        step[axis % rank] = stride
    after = context.shape(output)
    first = context.indices([begin[d] for d in held.order])
    if all(s == 1 for s in step):
        extent = context.indices([after[d] for d in held.order])
        move(context, "SLICE", [held.tensor, first, extent], output, held.order, table="SliceOptions")
        return
    end = context.indices([begin[d] + (after[d] - 1) * step[d] + 1 for d in held.order])
    stride_tensor = context.indices([step[d] for d in held.order])
    move(
        context,
        "STRIDED_SLICE",
        [held.tensor, first, end, stride_tensor],
        output,
        held.order,
        table="StridedSliceOptions",
    )


@lowers("Gather")
def gather(context: Lowering, node: ir.Node) -> None:
    """GATHER; a table with one scale a row gathers its scales too and multiplies in float."""
    table, ids = inputs_of(node)
    output = node.outputs[0]
    axis = int(attribute(node, "axis", 0)) % len(context.shape(table))
    weight = context.weight(table)
    indices = context.read(ids)
    if weight is not None and weight.encoding is not None and weight.encoding.axis is not None:
        _gather_rows(context, weight, indices, output, axis, str(table.name))
        return
    move(context, "GATHER", [context.read(table), indices], output, table="GatherOptions", axis=axis)


def _gather_rows(context: Lowering, weight: Weight, indices: Tensor, output: ir.Value, axis: int, name: str) -> None:
    encoding = weight.encoding
    assert encoding is not None
    if encoding.axis != axis or axis != 0 or encoding.dtype != "int8" or np.any(encoding.zero_point):
        raise Refused(
            "its table is neither int8 with one scale, nor int8 symmetric with one scale a row",
            "quantize the table w8",
        )
    unit = Encoding("int8", np.ones((), np.float32), np.zeros((), np.int32))  # real numbers that are the integers
    tail = (1,) * (weight.array.ndim - 1)
    shape = context.shape(output)
    rows = context.emitter.constant(weight.array.astype(np.int8), name=name, dtype="int8", encoding=unit)
    scales = context.emitter.constant(encoding.scale.reshape(-1, *tail), name=f"{name}.scales")
    chosen = context.emitter.tensor(f"{name}.rows", shape, "int8", unit)
    context.emitter.operator("GATHER", [rows, indices], [chosen], table="GatherOptions", axis=0)
    factors = context.emitter.tensor(f"{name}.factors", (*indices.shape, *tail), "float32")
    context.emitter.operator("GATHER", [scales, indices], [factors], table="GatherOptions", axis=0)
    context.emit("MUL", [context.as_float(chosen), factors], output, table="MulOptions")


@lowers("Expand")
def expand(context: Lowering, node: ir.Node) -> None:
    """TILE along the dimensions of size 1."""
    source, output = inputs_of(node)[0], node.outputs[0]
    shape = context.shape(output)
    x = context.read(source)
    x = context.reshaped(x, (1,) * (len(shape) - len(x.shape)) + x.shape)
    times = [n // m for n, m in zip(shape, x.shape, strict=True)]
    if all(t == 1 for t in times):
        context.define(output, x)
    else:
        move(context, "TILE", [x, context.indices(times)], output)


@lowers("Pad")
def pad(context: Lowering, node: ir.Node) -> None:
    """PAD with zeros, PADV2 with another constant."""
    inputs = [*node.inputs, None, None, None]
    source, output = inputs[0], node.outputs[0]
    assert source is not None
    if attribute(node, "mode", "constant") != "constant" or inputs[3] is not None:
        raise Refused("only constant padding of all dimensions is taken", "pad with constants")
    held = context.value(source)
    rank = len(held.order)
    amounts = integers(inputs[1], "padding")
    if any(a < 0 for a in amounts):
        raise Refused("negative padding is not taken", "use Slice")
    table = context.emitter.constant(np.array([[amounts[d], amounts[d + rank]] for d in held.order], np.int32))
    weight = context.weight(inputs[2])
    fill = 0.0 if weight is None else float(weight.real().reshape(()))
    if fill == 0.0:
        move(context, "PAD", [held.tensor, table], output, held.order, table="PadOptions")
        return
    constant_fill = context.emitter.scalar(fill)
    if held.tensor.encoding is not None:
        constant_fill = context.quantized(constant_fill, held.tensor.encoding)
    move(context, "PADV2", [held.tensor, table, constant_fill], output, held.order, table="PadV2Options")
