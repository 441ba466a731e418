"""The arena as engines on x86 lay it out: which tensors take over which others' memory, and where the rest is put.

`arena_of` says how little any allocator can do with; engines do with more, each by rules of its own. They are told here as their
sources tell them, and ``benchmarks/arena_check.py`` holds them against the memory that the engines take.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from pocketport.compress.graph import inferred, shape_of
from pocketport.profiles.arena import Buffer, pack
from pocketport.profiles.tensors import TensorSizes

# onnxruntime's kernels whose output may lie in an input of the same shape that nothing reads afterwards (``MayInplace``).
IN_PLACE = frozenset({
    "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Sigmoid", "HardSigmoid", "Tanh", "Softplus", "Softsign",
    "Clip", "Cast", "Softmax", "LogSoftmax",
})  # fmt: skip
LITERT_IN_PLACE = {"ADD": 2, "MUL": 2, "SUB": 2, "RESHAPE": 1, "SOFTMAX": 1}
"""LiteRT op → how many of its first inputs may lend their memory."""
LITERT_TRANSPOSING = frozenset({"BATCH_MATMUL"})
"""Ops whose kernel keeps room for a transposed copy of every operand."""
LITERT_ALIGNMENT = OPENVINO_ALIGNMENT = 64
ALIASES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})


def onnxruntime_arena(model: ir.Model) -> int:
    """Bytes of the one block that onnxruntime's CPU provider makes for a run of a graph, as it is, with static shapes.

    Its planner (``allocation_planner.cc``) gives an output the memory of an input that dies there, where the kernel allows
    it, else that of a dead tensor of the same shape, else new memory; ``mem_pattern_planner.h`` then places what is new,
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
    """Memory that several tensors use one after another, made for one of `shape`; `uses` that are still to come."""

    name: str
    shape: tuple[int, ...]
    bytes: int
    first: int
    last: int
    uses: int = 0


def _taken(graph: ir.Graph, sizes: TensorSizes) -> Iterator[Buffer]:
    uses = Counter(v for node in graph for v in node.inputs if v is not None)
    slots: dict[ir.Value, _Slot] = {}
    dead: list[_Slot] = []  # the latest first
    made: list[_Slot] = []
    for step, node in enumerate(_order(graph)):
        for value in node.outputs:
            if not value.name or sizes.is_constant(value) or value.is_graph_output():
                continue
            slot = _inherited(node, value, slots, sizes)
            if slot is None:
                slot = next((s for s in dead if (s.shape, s.bytes) == (shape_of(value), sizes.bytes(value))), None)
                if slot is not None:
                    dead.remove(slot)
            if slot is None:
                slot = _Slot(value.name, shape_of(value), sizes.bytes(value), step, step)
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


def _order(graph: ir.Graph) -> list[ir.Node]:
    """The order of execution: depth first from the last output back, what was added last first (``Graph::ReverseDFSFrom``)."""
    place = {node: index for index, node in enumerate(graph)}
    stack = [(node, False) for node in graph if not any(uses.node in place for v in node.outputs for uses in v.uses())]
    seen: set[ir.Node] = set()
    order: list[ir.Node] = []
    while stack:
        node, leaving = stack.pop()
        if leaving:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            before = {p for v in node.inputs if v is not None and (p := v.producer()) is not None and p not in seen}
            stack += [(p, False) for p in sorted(before, key=place.__getitem__)]
    return order


def _inherited(node: ir.Node, value: ir.Value, slots: dict[ir.Value, _Slot], sizes: TensorSizes) -> _Slot | None:
    """The memory of an input that the output may have."""
    if node.op_type in ALIASES and node.inputs and node.inputs[0] in slots:
        return slots[node.inputs[0]]
    if node.op_type in IN_PLACE:
        for read in node.inputs:
            if read in slots and slots[read].uses == 1 and shape_of(read) == shape_of(value):
                return slots[read]
    return None


@dataclass(frozen=True)
class Step:
    """One op of an engine's own schedule: its name there, and the tensors that it reads and writes."""

    op: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]


def litert_arena(
    steps: Sequence[Step], bytes_of: Mapping[int, int], inputs: Collection[int], outputs: Collection[int]
) -> int:
    """Bytes of LiteRT's arena over a .tflite's own ops, its inputs and outputs in it (``arena_planner.cc``, ``simple_memory_arena.cc``).

    Inputs and outputs are kept to the end. An op that can work in place does, where nothing else reads that input. What lives
    throughout comes first, then the largest; each goes into the tightest gap, on 64 bytes.

    Args:
        steps: in the order of execution.
        bytes_of: tensors that are not constant → bytes.
        inputs: of the model.
        outputs: of the model.
    """
    uses = Counter(t for step in steps for t in step.reads)
    uses.update([*inputs, *outputs])
    end = len(steps)
    root: dict[int, int] = {}
    first, last = dict.fromkeys(inputs, 0), dict.fromkeys(inputs, end)
    for index, step in enumerate(steps):
        for made in step.writes:
            shared = _shared(step, made, uses, bytes_of, inputs, outputs)
            root[made] = made if shared is None else root.get(shared, shared)
            first.setdefault(root[made], index)
            last[root[made]] = end if made in outputs else max(last.get(root[made], index), index)
        for read in step.reads:
            if read in bytes_of:
                place = root.get(read, read)
                last[place] = max(last[place], index)
    buffers = [Buffer(str(t), _aligned(bytes_of[t], LITERT_ALIGNMENT), first[t], last[t]) for t in first]
    scratch = [
        Buffer(f"{index} of {read}", _aligned(bytes_of[read], LITERT_ALIGNMENT), index, index)
        for index, step in enumerate(steps)
        for read in step.reads
        if step.op in LITERT_TRANSPOSING and read in bytes_of
    ]
    throughout = [b for b in buffers if (b.first, b.last) == (0, end)]
    others = [b for b in buffers if (b.first, b.last) != (0, end)]
    return sum(b.bytes for b in throughout) + pack([*others, *scratch])


def _shared(
    step: Step, made: int, uses: Mapping[int, int], bytes_of: Mapping[int, int], inputs: Collection[int], outputs: Collection[int]
) -> int | None:  # fmt: skip
    """The input whose memory a LiteRT op's output has."""
    for read in step.reads[: LITERT_IN_PLACE.get(step.op, 0)]:
        alone = read in bytes_of and uses[read] == 1 and read not in inputs and read not in outputs
        if alone and bytes_of[read] == bytes_of[made] and made not in outputs:
            return read
    return None


def _aligned(size: int, step: int) -> int:
    return -(-size // step) * step


def openvino_arena(steps: Sequence[Step], bytes_of: Mapping[int, int]) -> int:
    """Bytes of the block that OpenVINO's CPU plugin makes for a compiled model, over its own schedule (the runtime model).

    The plugin fuses what it can beforehand: a convolution that also reads a sum writes where that lay. Views share their
    input's memory. What is known from constants alone, inputs and outputs lie elsewhere. The rest is laid out largest first.

    Args:
        steps: in the order of execution, ``Const``, ``Input`` and ``Output`` among them.
        bytes_of: every tensor → bytes.
    """
    constant: set[int] = set()
    root: dict[int, int] = {}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, step in enumerate(steps):
        if step.op != "Input" and all(read in constant for read in step.reads):
            constant.update(step.writes)
            continue
        data = [read for read in step.reads if read not in constant]
        if step.op not in ("Input", "Output"):
            for made in step.writes:
                lent = (
                    data[0]
                    if step.op == "Reshape"
                    else data[-1]
                    if step.op == "Convolution" and len(data) > 1
                    else made
                )
                root[made] = root.get(lent, made) if bytes_of[lent] == bytes_of[made] else made
                first.setdefault(root[made], index)
                last[root[made]] = index
        for read in data:
            if read in root:
                last[root[read]] = index
    return pack([Buffer(str(t), _aligned(bytes_of[t], OPENVINO_ALIGNMENT), first[t], last[t]) for t in first])
