"""A component's graph cut at its transformer layers, and a layer cut where calibrated weights meet their input."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from pocketport.compress.structure import NORM_OPS, is_constant

LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|layer|h)\.(\d+)\.")


@dataclass(frozen=True)
class Segment:
    """Nodes that are run together.

    Attributes:
        layer: its number.
        nodes: in topological order.
        kept: names of values that later segments read.
    """

    layer: int
    nodes: tuple[ir.Node, ...]
    kept: frozenset[str]


@dataclass(frozen=True)
class Stage:
    """The part of a segment up to an input of calibrated weights.

    Attributes:
        nodes: those to be run, from what is kept.
        observed: the value that meets the weights; "" for the rest of the segment, behind the last weight.
        watched: further values that are looked at on the way.
        kept: names of the values that are needed later.
    """

    nodes: tuple[ir.Node, ...]
    observed: str
    watched: frozenset[str]
    kept: frozenset[str]


def layer_number(name: str) -> int | None:
    """The transformer layer that a node or a tensor belongs to by its path, None for those of no layer."""
    found = LAYER.search(name)
    return None if found is None else int(found[1])


def segments(nodes: Iterable[ir.Node]) -> list[Segment]:
    """One segment a layer; nodes before the first layer belong to it, those behind the last one to that."""
    parts: dict[int, list[ir.Node]] = {}
    layer = 0
    for node in nodes:
        number = layer_number(node.name or "")
        layer = layer if number is None else max(layer, number)
        parts.setdefault(layer, []).append(node)
    ordered = sorted(parts)
    return [
        Segment(number, tuple(parts[number]), _needed_by([n for k in ordered[i + 1 :] for n in parts[k]]))
        for i, number in enumerate(ordered)
    ]


def stages(segment: Segment, observed: Sequence[str], watched: Collection[str]) -> list[Stage]:
    """Cut a segment at `observed` values, given in topological order; the last stage is what follows the last of them.

    Values in `watched` are computed in the stage in which they fall, needed or not.
    """
    positions = {v.name or "": i for i, node in enumerate(segment.nodes) for v in node.outputs}
    producers = {v.name or "": node for node in segment.nodes for v in node.outputs}
    result: list[Stage] = []
    done: set[str] = set()  # values that are kept so far
    previous = 0
    for name in (*observed, ""):
        cut = len(segment.nodes) if not name else positions[name] + 1
        seen = frozenset(w for w in watched if previous <= positions[w] < cut)
        kept = segment.kept if not name else _without_norms(_live(segment, cut), producers)
        before = frozenset(done)
        wanted = {name} if name else set(segment.kept)
        nodes = _ancestors(segment.nodes[:cut], wanted | seen | (kept - before), before)
        result.append(Stage(nodes, name, seen, kept))
        done, previous = set(kept), cut
    return result


def _needed_by(nodes: Sequence[ir.Node]) -> frozenset[str]:
    """What `nodes` read and do not make themselves."""
    made = {v.name for node in nodes for v in node.outputs}
    read = {v.name or "" for node in nodes for v in node.inputs if v is not None and not is_constant(v)}
    return frozenset(read - made)


def _live(segment: Segment, cut: int) -> frozenset[str]:
    """Values needed at or behind the cut."""
    made = {v.name for node in segment.nodes[cut:] for v in node.outputs}
    return _needed_by(segment.nodes[cut:]) | frozenset(n for n in segment.kept if n not in made)


def _without_norms(live: frozenset[str], producers: Mapping[str, ir.Node]) -> frozenset[str]:
    """A norm is computed again rather than kept where its input is kept anyway."""

    def again(name: str) -> bool:
        node = producers.get(name)
        return node is not None and node.op_type in NORM_OPS and (node.inputs[0].name or "") in live  # type: ignore[union-attr]

    return frozenset(name for name in live if not again(name))


def _ancestors(nodes: Sequence[ir.Node], wanted: set[str], known: frozenset[str]) -> tuple[ir.Node, ...]:
    """Those of `nodes` that `wanted` needs, from what is known."""
    needed = set(wanted) - known
    chosen = []
    for node in reversed(nodes):
        if any((v.name or "") in needed for v in node.outputs):
            chosen.append(node)
            needed |= {v.name or "" for v in node.inputs if v is not None and not is_constant(v)} - known
    return tuple(reversed(chosen))
