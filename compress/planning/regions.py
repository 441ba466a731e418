"""Which activations of a graph become integers, and which of them must share one encoding."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from pocketport.calibration.capture import MOVEMENT_OPS
from pocketport.compress.structure import (
    CLAMP_OPS,
    ELEMENTWISE_OPS,
    FUSED_PRODUCERS,
    activations_read,
    is_constant,
    is_float,
    is_rotation,
)

_MOVING = MOVEMENT_OPS | {"Concat", "Pad"}
_PASS_THROUGH = _MOVING | ELEMENTWISE_OPS


@dataclass(frozen=True)
class Regions:
    """The outcome for one graph.

    Attributes:
        quantized: names of the activations that get a QuantizeLinear and DequantizeLinear.
        kept_float: name → why, for the float activations that stay float.
    """

    quantized: frozenset[str]
    kept_float: Mapping[str, str]


def find_regions(
    graph: ir.Model, float_nodes: Mapping[ir.Node, str], integer_ops: frozenset[str] = frozenset()
) -> Regions:
    """Decide per activation.

    A tensor stays float when its producer computes in float, when nothing that reads it computes in integers, or when
    a clamp follows that compilers fuse into its producer. An op with one float operand computes in float, and so does an
    element-wise or moving op whose result is only read as float: so a mask's Add before a float Softmax is float too. What only
    moves floats gives floats: a Reshape behind a float norm has no range of its own.

    Args:
        graph: a float graph with known dtypes.
        float_nodes: node → why, of the nodes that were settled to compute in float and to give float.
        integer_ops: where not empty, the only op types (but moving ones) that compute in integers, online rotations excepted.
    """
    why: dict[str, str] = {}
    float_out, float_in = dict(float_nodes), dict(float_nodes)
    if integer_ops:
        for node in graph.graph:
            if node.op_type not in integer_ops | _MOVING:
                float_in.setdefault(node, f"{node.op_type} computes in float")
            elif is_rotation(node):
                float_in.setdefault(node, "what it rotates would be rounded before")
    outputs = {v.name for v in graph.graph.outputs}
    values = _activations(graph)
    consumers = {name: [n for n, _ in v.uses() if n.graph is not None] for name, v in values.items()}
    changed = True
    while changed:
        changed = False
        for name, value in values.items():
            if name in why:
                continue
            kept = name in outputs and not integer_ops
            reason = _why_float(value, kept, consumers[name], float_out, float_in)
            if reason:
                why[name], changed = reason, True
        for node in graph.graph:
            given = [v.name for v in node.outputs if v.name in values]
            moved = node not in float_out and given and node.op_type in _PASS_THROUGH
            if moved and all(n in why and not _is_fused(values[n or ""], outputs) for n in given):
                float_out[node] = float_in[node] = why[given[0] or ""]
                changed = True
            read = [v.name for v in activations_read(node)]
            if node not in float_in and any(n in why and not _is_fused(values[n or ""], outputs) for n in read):
                float_in[node] = f"another operand of {node.name} is float"
                changed = True
            if node not in float_out and node.op_type in MOVEMENT_OPS and read and read[0] in why:
                float_out[node] = why[read[0] or ""]
                changed = True
    return Regions(frozenset(values) - frozenset(why), why)


def _activations(graph: ir.Model) -> dict[str, ir.Value]:
    produced = (v for node in graph.graph if node.op_type != "Constant" for v in node.outputs)
    return {v.name or "": v for v in (*graph.graph.inputs, *produced) if is_float(v) and not is_constant(v)}


def _why_float(
    value: ir.Value,
    kept: bool,
    consumers: list[ir.Node],
    float_out: Mapping[ir.Node, str],
    float_in: Mapping[ir.Node, str],
) -> str:
    producer = value.producer()
    if producer is not None and producer in float_out:
        return float_out[producer]
    if not kept and all(n in float_in for n in consumers):
        return float_in[consumers[0]] if consumers else "nothing reads it as integers"
    if _is_fused(value, {value.name} if kept else set()):
        return f"fused: {consumers[0].op_type} clamps it"
    return ""


def _is_fused(value: ir.Value, outputs: set[str | None]) -> bool:
    """Whether the only reader clamps the value, so that the pair quantizes once, behind the clamp."""
    producer, users = value.producer(), [n for n, _ in value.uses()]
    return (
        producer is not None
        and producer.op_type in FUSED_PRODUCERS
        and len(users) == 1
        and users[0].op_type in CLAMP_OPS
        and value.name not in outputs
    )


class Groups:
    """Disjoint sets of tensors that share one encoding (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The set's name: that of its first member in the order of joining."""
        self._parent.setdefault(name, name)
        while self._parent[name] != name:
            self._parent[name] = self._parent[self._parent[name]]
            name = self._parent[name]
        return name

    def join(self, first: str, second: str) -> None:
        """Unite the sets of two tensors under the first one's name."""
        self._parent[self.find(second)] = self.find(first)


def join_moved(groups: Groups, graph: ir.Model, component: str, quantized: frozenset[str]) -> bool:
    """Unite the tensors that ops of `graph` only move. True if anything was united (a Concat may follow then)."""
    changed = False
    for node in graph.graph:
        if node.op_type == "Concat":
            sources = [v.name for v in node.inputs if v is not None]
            if len({groups.find(f"{component}/{n}") for n in sources}) > 1:
                continue
        elif node.op_type in MOVEMENT_OPS | {"Pad"} or _moves_rows(node) or _repeats_pixels(node):
            sources = [node.inputs[0].name if node.inputs[0] is not None else None]
        else:
            continue
        for output in node.outputs:
            if sources[0] in quantized and output.name in quantized:
                first, second = f"{component}/{sources[0]}", f"{component}/{output.name}"
                if groups.find(first) != groups.find(second):
                    groups.join(first, second)
                    changed = True
    return changed


def _moves_rows(node: ir.Node) -> bool:
    return node.op_type == "Gather" and node.inputs[0] is not None and not is_constant(node.inputs[0])


def _repeats_pixels(node: ir.Node) -> bool:
    return node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") == "nearest"
