"""Running sums as a few additions: most accelerators have no CumSum."""

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, static_shape
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.rewriting import NodeWriter

INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})


class PrefixSums(Pass):
    """CumSum of integers → ⌈log₂ n⌉ times x + (x shifted by 1, 2, 4, …), after Hillis and Steele (1986).

    As exporters count positions of tokens. Exact in integers; running sums of floats stay, for the order of additions is theirs.
    """

    def rewrite(self, graph: ir.Model) -> PassResult:
        """One sweep; shapes must have been inferred before."""
        writer = NodeWriter(graph.graph)
        return PassResult(graph, writer.sweep(lambda node: _summed(node, writer)))


def _summed(node: ir.Node, writer: NodeWriter) -> ir.Value | None:
    if node.op_type != "CumSum" or node.domain or node.inputs[0] is None:
        return None
    value, place, dtype = node.inputs[0], constant(node.inputs[1]), node.inputs[0].dtype
    shape = static_shape(value)
    plain = not node.attributes.get_int("exclusive", 0) and not node.attributes.get_int("reverse", 0)
    if dtype not in INTEGERS or place is None or not shape or not plain:
        return None
    name, axis = str(node.outputs[0].name), int(place.reshape(-1)[0]) % len(shape)
    total, step = value, 1
    while step < shape[axis]:
        blank = np.zeros([step if d == axis else n for d, n in enumerate(shape)], dtype.numpy())
        ends = {"from": 0, "to": shape[axis] - step, "axis": axis}
        span = [writer.constant(f"{name}.{key}{step}", np.array([at], np.int64)) for key, at in ends.items()]
        head = writer.insert(node, "Slice", [total, *span], f"{name}.head{step}", dtype)
        zeros = writer.constant(f"{name}.zeros{step}", blank)
        shifted = writer.insert(node, "Concat", [zeros, head], f"{name}.shifted{step}", dtype, {"axis": axis})
        total = writer.insert(node, "Add", [total, shifted], f"{name}.sum{step}", dtype)
        step *= 2
    return writer.insert(node, "Identity", [total], f"{name}.total", dtype)
