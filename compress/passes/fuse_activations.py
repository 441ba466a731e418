"""Recognize activation functions that an exporter spelled out, and write them as the single op they are."""

import math

import onnx_ir as ir

from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.rewriting import replace_node, scalar

TOLERANCE = 1e-5  # relative; exporters round √2 and 1/6 to float32


class FuseActivations(Pass):
    """``x·(1 + erf(x/√2))/2`` → Gelu, ``x·clip(x+3, 0, 6)/6`` → HardSwish, however the products are ordered."""

    def rewrite(self, graph: ir.Model) -> PassResult:
        """Replace the last node of each spelled-out activation; the rest is left to dead-code removal."""
        modified = False
        for node in list(graph.graph):
            if node.op_type not in ("Mul", "Div") or node.domain:
                continue
            factor, leaves = _product(node.outputs[0], root=True)
            if len(leaves) != 2:
                continue
            for x, gate in (leaves, leaves[::-1]):
                op = _gate_of(x, gate, factor)
                if op is not None:
                    replace_node(graph.graph, node, ir.node(op, [x], name=node.name))
                    modified = True
                    break
        return PassResult(graph, modified)


def _gate_of(x: ir.Value, gate: ir.Value, factor: float) -> str | None:
    producer = gate.producer()
    if producer is None:
        return None
    if math.isclose(factor, 0.5, rel_tol=TOLERANCE) and _plus(gate, 1.0) is not None:
        inner = _plus(gate, 1.0)
        erf = inner.producer() if inner is not None else None
        if erf is not None and erf.op_type == "Erf" and erf.inputs[0] is not None:
            scale, leaves = _product(erf.inputs[0], root=True)
            if leaves == [x] and math.isclose(scale, math.sqrt(0.5), rel_tol=TOLERANCE):
                return "Gelu"
    if math.isclose(factor, 1 / 6, rel_tol=TOLERANCE) and producer.op_type == "Clip" and len(producer.inputs) == 3:
        low, high = scalar(producer.inputs[1]), scalar(producer.inputs[2])
        source = producer.inputs[0]
        if (low, high) == (0.0, 6.0) and source is not None and _plus(source, 3.0) is x:
            return "HardSwish"
    return None


def _product(value: ir.Value, *, root: bool = False) -> tuple[float, list[ir.Value]]:
    """`value` as constant factor × other factors, looking through Mul and Div that nobody else reads."""
    node = value.producer()
    number = scalar(value)
    if number is not None:
        return number, []
    if node is None or node.domain or node.op_type not in ("Mul", "Div") or (not root and len(value.uses()) != 1):
        return 1.0, [value]
    first, second = node.inputs
    assert first is not None and second is not None
    if node.op_type == "Div":
        divisor = scalar(second)
        if divisor is None:
            return 1.0, [value]
        factor, leaves = _product(first)
        return factor / divisor, leaves
    (left, left_leaves), (right, right_leaves) = _product(first), _product(second)
    return left * right, left_leaves + right_leaves


def _plus(value: ir.Value, number: float) -> ir.Value | None:
    """x, if `value` is x + number."""
    node = value.producer()
    if node is None or node.op_type != "Add" or node.domain:
        return None
    for x, other in (node.inputs, node.inputs[::-1]):
        if scalar(other) == number:
            return x
    return None
