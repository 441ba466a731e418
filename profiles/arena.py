"""The activation arena: which tensors live at the same time in a schedule, and how tightly they can be packed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from pocketport.compress.graph import inferred
from pocketport.profiles.cost import ACTIVATIONS, QDQ, VIEWS
from pocketport.profiles.tensors import TensorSizes

IN_PLACE = VIEWS | ACTIVATIONS


@dataclass(frozen=True)
class Buffer:
    """One tensor's memory: `bytes`, needed from step `first` to step `last` inclusive."""

    name: str
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Arena:
    """Memory of one graph's activations while it runs.

    Attributes:
        live: bytes alive at each step of the graph's topological order, inputs and outputs not counted.
        low: no allocator does with less (the maximum of `live`).
        high: what greedy best-fit offsets need.
        io_bytes: inputs and outputs, held during the whole run; a key-value cache not counted.
        cache_bytes: the key-value cache that comes in (inputs named ``past_*``).
    """

    live: tuple[int, ...]
    low: int
    high: int
    io_bytes: int
    cache_bytes: int


def arena_of(model: ir.Model, *, float_bits: int = 16) -> Arena:
    """The arena of a float or QDQ graph with static shapes, in encoded bytes; InputError if a shape is not static."""
    graph = inferred(model).graph
    sizes = TensorSizes(graph, float_bits)
    buffers = list(_buffers(graph, sizes))
    live = [0] * max(len(graph), 1)
    for buffer in buffers:
        for step in range(buffer.first, buffer.last + 1):
            live[step] += buffer.bytes
    ends = [(v, sizes.bytes(v)) for v in (*graph.inputs, *graph.outputs)]
    cache = sum(size for v, size in ends if str(v.name).startswith("past_"))
    return Arena(tuple(live), max(live), pack(buffers), sum(size for _, size in ends) - cache, cache)


def pack(buffers: Sequence[Buffer]) -> int:
    """Bytes of an arena with fixed offsets: largest buffer first, each into the tightest gap that takes it.

    "Greedy by size" of Pisarchyk and Lee 2020, arXiv 2001.03288.
    """
    placed: list[tuple[int, Buffer]] = []
    total = 0
    for buffer in sorted(buffers, key=lambda b: (-b.bytes, b.first, b.name)):
        neighbours = sorted(
            ((o, o + b.bytes) for o, b in placed if b.first <= buffer.last and buffer.first <= b.last),
            key=lambda s: s[0],
        )
        offset, best, end = None, None, 0
        for start, stop in neighbours:
            gap = start - end
            if gap >= buffer.bytes and (best is None or gap < best):
                offset, best = end, gap
            end = max(end, stop)
        offset = end if offset is None else offset
        placed.append((offset, buffer))
        total = max(total, offset + buffer.bytes)
    return total


def _buffers(graph: ir.Graph, sizes: TensorSizes) -> Iterator[Buffer]:
    """Buffers of the tensors inside the graph; views, Q/DQ pairs and activations share their input's buffer."""
    first: dict[ir.Value, int] = {}
    last: dict[ir.Value, int] = {}
    bytes_of: dict[ir.Value, int] = {}
    outside = {_root(v) for v in (*graph.inputs, *graph.outputs)}
    for step, node in enumerate(graph):
        for value in node.outputs:
            root = _root(value)
            if value.name and not sizes.is_constant(value) and root not in outside:
                first.setdefault(root, step)
                last[root] = step
                bytes_of[root] = max(bytes_of.get(root, 0), sizes.bytes(value))
        for read in node.inputs:
            if read is not None and (root := _root(read)) in first:
                last[root] = step
    for root, start in first.items():
        yield Buffer(str(root.name), bytes_of[root], start, last[root])


def _root(value: ir.Value) -> ir.Value:
    """The value whose buffer `value` lies in."""
    while True:
        producer = value.producer()
        source = producer.inputs[0] if producer is not None and producer.inputs else None
        if producer is None or source is None or producer.op_type not in IN_PLACE | QDQ:
            return value
        alone = len(source.uses()) == 1 and not source.is_graph_output()
        if producer.op_type != "DequantizeLinear" and not alone:
            return value
        value = source
