"""What hides scores from a softmax is finite, and a softmax of finite scores needs no guard."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.graph import constant
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.rewriting import NodeWriter, scalar

MASKED = -100.0  # added to scores that a softmax must not see: finite and small, so that it has an encoding
LEAST = -1000.0  # no exporter writes a constant below that for another purpose
MOVING = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)  # fmt: skip


class BoundMasks(Pass):
    """−∞ (or any constant below −1000) that only softmaxes see → −100, added to the scores; and Softmax without its guard.

    ``Where(mask, scores, −∞)`` → scores + ``Where(mask, 0, −100)``; ``Where(IsNaN(p), 0, p)`` behind p = Softmax(…) → p. A hidden
    score that exceeds the greatest visible one of its row by D weighs e^(D−100) as much: less than float32 resolves up to D = 80.
    A row without any visible score attends to all of them as if there were no mask, where the original gives zeros, NaN or their
    mean, by exporter: such rows are padding, which nobody reads.
    """

    def rewrite(self, graph: ir.Model) -> PassResult:
        """One sweep; constants that others read too are replaced for the softmaxes alone."""
        writer, softmaxes = NodeWriter(graph.graph), _Softmaxes()
        changes = [_bound(node, writer, softmaxes) or _unguard(node) for node in list(graph.graph)]
        return PassResult(graph, any(changes))


class _Softmaxes:
    """Finds out whether a value is only read by softmaxes, with nothing in between but sums, scales, choices and movement."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, float | None] = {}

    def scale(self, value: ir.Value) -> float | None:
        """The least factor by which any of them sees it; None where something else reads it."""
        if value not in self._known:
            factors = [self._factor(value, node, index) for node, index in value.uses()]
            known = [f for f in factors if f is not None]
            alone = factors and len(known) == len(factors) and not value.is_graph_output()
            self._known[value] = min(known) if alone else None
        return self._known[value]

    def _factor(self, value: ir.Value, node: ir.Node, index: int) -> float | None:
        op, factor = node.op_type, 1.0
        if op == "Softmax":
            return 1.0
        if op in ("Mul", "Div"):
            other = scalar(node.inputs[1 - index])
            if other is None or other <= 0 or (op == "Div" and index == 1):
                return None
            factor = other if op == "Mul" else 1 / other
        elif not (
            op == "Add"
            or (op in MOVING and (index == 0 or op == "Concat"))
            or (op == "Where" and index)
            or (op == "Sub" and not index)
        ):
            return None
        behind = self.scale(node.outputs[0])
        return None if behind is None else factor * behind


def _bound(node: ir.Node, writer: NodeWriter, softmaxes: _Softmaxes) -> bool:
    """Replace constants of an Add, Mul or Where that hide scores. True if there were any."""
    operands = {"Add": (0, 1), "Mul": (0, 1), "Where": (1, 2)}.get(node.op_type, ()) if not node.domain else ()
    hiding = {i: array for i in operands if (array := _hiding(node.inputs[i])) is not None}
    scale = softmaxes.scale(node.outputs[0]) if hiding else None
    if scale is None:
        return False
    for index, array in hiding.items():
        bounded = np.where(array < LEAST, np.float32(MASKED / scale), array)
        name = f"{node.outputs[0].name}.masked{index}"
        other = node.inputs[3 - index] if node.op_type == "Where" else None
        if other is not None and constant(other) is None and bool((array < LEAST).all()):
            _add_mask(node, index, other, bounded, writer)
        else:
            node.replace_input_with(index, writer.constant(name, bounded))
    return True


def _hiding(value: ir.Value | None) -> NDArray[np.float32] | None:
    """A float constant with numbers that hide scores."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    array: NDArray[np.float32] = np.asarray(tensor.numpy(), np.float32)
    return array if array.size and array.min() < LEAST else None


def _add_mask(node: ir.Node, index: int, scores: ir.Value, bounded: NDArray[np.float32], writer: NodeWriter) -> None:
    """``Where(mask, scores, bounded)`` (or turned) as scores + ``Where(mask, 0, bounded)``."""
    name = str(node.outputs[0].name)
    mask = writer.constant(f"{name}.masked", bounded)
    zero = writer.constant(f"{name}.seen", np.zeros((), np.float32))
    branches = [zero, mask] if index == 2 else [mask, zero]
    bias = writer.insert(node, "Where", [node.inputs[0], *branches], f"{name}.bias", ir.DataType.FLOAT)
    writer.replace(node, writer.insert(node, "Add", [scores, bias], f"{name}.sum", ir.DataType.FLOAT))


def _unguard(node: ir.Node) -> bool:
    """Take a guard against NaN away from behind a Softmax."""
    if node.op_type != "Where" or node.domain or node.graph is None:
        return False
    guard, zero, share = node.inputs
    asked = None if guard is None else guard.producer()
    softmax = None if share is None else share.producer()
    if asked is None or softmax is None or asked.op_type != "IsNaN" or softmax.op_type != "Softmax":
        return False
    if asked.inputs[0] is not share or scalar(zero) != 0.0 or node.outputs[0].is_graph_output():
        return False
    assert share is not None and isinstance(node.graph, ir.Graph)
    node.outputs[0].replace_all_uses_with(share)
    node.graph.remove(node, safe=True)
    return True
