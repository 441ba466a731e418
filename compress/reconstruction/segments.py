"""A graph cut where its weights are rounded: at every layer, or at blocks that nothing but one tensor leaves."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx_ir as ir

from pocketport.compress.structure import is_constant, weight_operand

ACTIVATION_FUNCTIONS = frozenset({"Clip", "Gelu", "HardSigmoid", "HardSwish", "Relu", "Sigmoid", "Tanh"})
MOST_LAYERS = 8  # of a block that can be divided; a shortcut over more layers is none of a residual block


@dataclass(frozen=True)
class Segment:
    """Nodes that are run together.

    Attributes:
        nodes: in topological order.
        layers: those among them whose weights are rounded here, together.
        reads: values of earlier segments, and inputs of the graph, that it starts with.
        gives: values of its own that later segments read, and outputs of the graph.
        last: values of `reads` and `gives` that no later segment reads.
    """

    nodes: tuple[ir.Node, ...]
    layers: tuple[ir.Node, ...]
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    last: frozenset[str]


def layer_segments(graph: ir.Model, layers: Collection[ir.Node]) -> list[Segment]:
    """Each of `layers` with the activation function right behind it, and the nodes between them."""
    nodes = _computing(graph)
    cuts: set[int] = set()
    for position, node in enumerate(nodes):
        if node in layers:
            end = position + 1
            while end < len(nodes) and _is_function_of(nodes[end], nodes[end - 1], graph):
                end += 1
            cuts |= {position, end}
    return _segments(graph, nodes, sorted(cuts), layers)


def block_segments(graph: ir.Model, layers: Collection[ir.Node]) -> list[Segment]:
    """Blocks: from one place where a single tensor is all that the rest of the graph needs to another.

    So a residual block is whole, the attention of a transformer with its shortcut, and each layer of a plain chain by
    itself; neighbours are joined to blocks of at most `MOST_LAYERS` layers. What does not depend on a weight (masks,
    positions), and shortcuts over more layers than that (of a U-Net or a feature pyramid), do not count.
    """
    nodes = _computing(graph)
    places = _narrow_places(nodes)
    cuts: list[int] = []
    held = 0
    for before, place in zip([0, *places], [*places, len(nodes)], strict=True):
        count = sum(node in layers for node in nodes[before:place])
        if held and held + count > MOST_LAYERS:
            cuts.append(before)
            held = 0
        held += count
    return _segments(graph, nodes, cuts, layers)


def _computing(graph: ir.Model) -> list[ir.Node]:
    return [node for node in graph.graph if node.op_type != "Constant"]


def _is_function_of(node: ir.Node, before: ir.Node, graph: ir.Model) -> bool:
    """Whether a node is an activation function that alone reads what the node before gives."""
    x = node.inputs[0]
    return (
        node.op_type in ACTIVATION_FUNCTIONS
        and x is before.outputs[0]
        and len(x.uses()) == 1
        and x not in graph.graph.outputs
    )


def _narrow_places(nodes: Sequence[ir.Node]) -> list[int]:
    """Positions before which at most one tensor is made that the rest needs, shortcuts over many layers left out."""
    layers_before = [0]
    for node in nodes:
        layers_before.append(layers_before[-1] + (weight_operand(node) is not None))
    deep: set[str] = set()
    opened = [0] * (len(nodes) + 1)
    made: dict[str, int] = {}
    read: dict[str, int] = {}
    for position, node in enumerate(nodes):
        for value in node.inputs:
            if value is not None and value.name in made:
                read[value.name or ""] = position
        if weight_operand(node) is not None or any(v is not None and v.name in deep for v in node.inputs):
            for value in node.outputs:
                deep.add(value.name or "")
                made[value.name or ""] = position
    for name, last in read.items():
        if layers_before[last + 1] - layers_before[made[name] + 1] <= MOST_LAYERS:
            for position in range(made[name] + 1, last + 1):
                opened[position] += 1
    return [position for position in range(1, len(nodes)) if opened[position] <= 1]


def _segments(
    graph: ir.Model, nodes: Sequence[ir.Node], cuts: Iterable[int], layers: Collection[ir.Node]
) -> list[Segment]:
    edges = sorted({0, *cuts, len(nodes)})
    later = {v.name or "" for v in graph.graph.outputs}
    outputs = frozenset(later)
    made: list[Segment] = []
    seen_later: set[str] = set()
    for start, stop in reversed(list(pairwise(edges))):
        part = tuple(nodes[start:stop])
        own = {v.name or "" for node in part for v in node.outputs}
        read = {v.name or "" for n in part for v in n.inputs if v is not None and v.name and not is_constant(v)} - own
        gives = own & (seen_later | outputs)
        last = frozenset((read | gives) - seen_later)
        made.append(
            Segment(part, tuple(n for n in part if n in layers), tuple(sorted(read)), tuple(sorted(gives)), last)
        )
        seen_later |= read
    return made[::-1]
