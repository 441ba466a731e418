"""The arena as engines on x86 lay it out: which tensors take over which others' memory, and where the rest is put.

`arena_of` says how little any allocator can do with; engines do with more, each by rules of its own. They are told here as their
sources tell them, and ``benchmarks/arena_check.py`` holds them against the memory that the engines take.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from pocketport.compress.graph import inferred
from pocketport.profiles.arena import Buffer
from pocketport.profiles.cost import VIEWS
from pocketport.profiles.tensors import TensorSizes

# onnxruntime's kernels whose output may lie in an input of the same size that nothing reads afterwards (``MayInplace``).
IN_PLACE = frozenset({
    "Add", "Sub", "Mul", "Div", "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Sigmoid", "HardSigmoid",
    "Tanh", "Softplus", "Softsign", "Clip", "Abs", "Neg", "Sqrt", "Exp", "Log", "Reciprocal", "Floor", "Ceil", "Erf",
    "Softmax", "Not",
})  # fmt: skip


def onnxruntime_arena(model: ir.Model) -> int:
    """Bytes of the one block that onnxruntime's CPU provider makes for a run of a graph, as it is, with static shapes.

    Its planner (``allocation_planner.cc``) gives an output the memory of an input that dies there, where the kernel allows
    it, else that of a dead tensor of the same size, else new memory; ``mem_pattern_planner.h`` then places what is new,
    in the order of execution, into the tightest gap. Inputs, outputs and the kernels' own scratch lie elsewhere.

    Raises:
        InputError: a shape is not static.
    """
    graph = inferred(model).graph
    return pack_in_order(list(_taken(graph, TensorSizes(graph, 32))))


def pack_in_order(buffers: Sequence[Buffer]) -> int:
    """Bytes of an arena that is laid out as execution goes: each buffer into the tightest gap between those alive."""
    total = 0
    alive: list[tuple[int, int, int]] = []  # offset, end, last step; by offset
    for buffer in sorted(buffers, key=lambda b: b.first):
        alive = [block for block in alive if block[2] >= buffer.first]
        end, best, tightest = 0, None, 0
        for start, stop in [*((b[0], b[1]) for b in alive), (total, total)]:
            gap = start - end
            if gap >= buffer.bytes and (best is None or gap < tightest):
                best, tightest = end, gap
            end = max(end, stop) if start < total else end
        offset = end if best is None else best
        alive = sorted([*alive, (offset, offset + buffer.bytes, buffer.last)])
        total = max(total, offset + buffer.bytes)
    return total


@dataclass
class _Slot:
    """Memory that several tensors use one after another; `uses` that are still to come."""

    name: str
    bytes: int
    first: int
    last: int
    uses: int = 0


def _taken(graph: ir.Graph, sizes: TensorSizes) -> Iterator[Buffer]:
    uses = Counter(v for node in graph for v in node.inputs if v is not None)
    slots: dict[ir.Value, _Slot] = {}
    dead: list[_Slot] = []  # the latest first
    made: list[_Slot] = []
    for step, node in enumerate(graph):
        for value in node.outputs:
            if not value.name or sizes.is_constant(value) or value.is_graph_output():
                continue
            slot = _inherited(node, value, slots, sizes)
            if slot is None:
                slot = next((s for s in dead if s.bytes == sizes.bytes(value)), None)
                if slot is not None:
                    dead.remove(slot)
            if slot is None:
                slot = _Slot(value.name, sizes.bytes(value), step, step)
                made.append(slot)
            slot.uses += uses[value]
            slots[value] = slot
        for read in (*node.inputs, *node.outputs):
            if read is None or read not in slots:
                continue
            slot = slots[read]
            slot.uses -= 0 if read in node.outputs else 1
            if slot.uses == 0 and slot not in dead:
                slot.last = step
                dead.insert(0, slot)
    yield from (Buffer(slot.name, slot.bytes, slot.first, slot.last) for slot in made)


def _inherited(node: ir.Node, value: ir.Value, slots: dict[ir.Value, _Slot], sizes: TensorSizes) -> _Slot | None:
    """The memory of an input that the output may have."""
    if node.op_type in VIEWS and node.inputs and node.inputs[0] in slots:
        return slots[node.inputs[0]]
    if node.op_type in IN_PLACE:
        for read in node.inputs:
            if read in slots and slots[read].uses == 1 and slots[read].bytes == sizes.bytes(value):
                return slots[read]
    return None
