"""Let masks be numbers, 0 and 1: accelerators take products and sums of them, not logic and choices."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from pocketport.compress.graph import constant, static_shape
from pocketport.compress.passes.base import Pass, PassResult
from pocketport.compress.passes.rewriting import NodeWriter

BOOL, INT32 = ir.DataType.BOOL, ir.DataType.INT32
INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64, ir.DataType.INT16, ir.DataType.INT8, ir.DataType.UINT8})
NUMBERS = frozenset({ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64})
MOVING = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose",
     "Unsqueeze"}
)  # fmt: skip
LARGEST = 1 << 30  # of constants that integers are compared with: differences must not overflow


class FloatMasks(Pass):
    """``Where(mask, x, y)`` → x·mask + y·(1 − mask), and Cast(mask) → mask, where the mask is logic on integers and booleans.

    Exact where x and y are finite and integers below 2³⁰. Comparisons of integers are integer arithmetic, 1 − min(|a − b|, 1) for ``a == b``: no float
    is rounded before it is compared. Comparisons of floats stay, and what chooses by them.
    """

    def rewrite(self, graph: ir.Model) -> PassResult:
        """Replace what reads masks as numbers; the logic is left to dead-code removal."""
        flags = _Flags(graph.graph)
        return PassResult(graph, flags.writer.sweep(lambda node: _number(node, flags)))


def _number(node: ir.Node, flags: "_Flags") -> ir.Value | None:
    """What computes the same as a Where or a Cast without a boolean; None where nothing does."""
    if node.domain or node.op_type not in ("Where", "Cast"):
        return None
    mask, dtype = node.inputs[0], node.outputs[0].dtype
    if mask is None or mask.dtype is not BOOL or dtype not in NUMBERS:
        return None
    if node.op_type == "Where":
        return _blend(node, flags, dtype)
    made = flags.number(mask, dtype)
    return (
        None if made is None else flags.writer.insert(node, "Identity", [made], f"{node.outputs[0].name}.number", dtype)
    )


def _blend(node: ir.Node, flags: "_Flags", dtype: ir.DataType) -> ir.Value | None:
    """x·mask + y·(1 − mask) in front of `node`; a term that is zero is left out unless the shape comes from it."""
    mask, x, y = node.inputs
    assert mask is not None and x is not None and y is not None
    arrays = [a for v in (x, y) if (a := constant(v)) is not None]
    flag = flags.number(mask, dtype) if all(np.isfinite(a).all() for a in arrays) else None
    if flag is None:
        return None
    name = str(node.outputs[0].name)
    terms: list[ir.Value] = []
    for value, other, share in ((x, y, flag), (y, x, None)):
        if _is_zero(value) and (terms or not _is_zero(other)) and _reaches(node, other):
            continue
        if share is None:
            share = flags.inverse(node, flag, dtype, name)
        terms.append(flags.writer.insert(node, "Mul", [value, share], f"{name}.term", dtype))
    return terms[0] if len(terms) == 1 else flags.writer.insert(node, "Add", terms, f"{name}.sum", dtype)


def _is_zero(value: ir.Value) -> bool:
    array = constant(value)
    return array is not None and not np.any(array)


def _reaches(node: ir.Node, branch: ir.Value) -> bool:
    """Whether the mask and one branch alone have the shape of the whole."""
    shapes = [static_shape(v) for v in (node.inputs[0], branch) if v is not None]
    known = [shape for shape in shapes if shape is not None]
    return len(known) == 2 and np.broadcast_shapes(*known) == static_shape(node.outputs[0])


class _Flags:
    """Twins of boolean values: numbers that are 1 where they are true, else 0. A twin stands before its value's producer."""

    def __init__(self, graph: ir.Graph) -> None:
        self.writer = NodeWriter(graph)
        self._twins: dict[tuple[ir.Value, ir.DataType], ir.Value | None] = {}
        self._scalars: dict[tuple[int, ir.DataType], ir.Value] = {}

    def number(self, value: ir.Value | None, dtype: ir.DataType) -> ir.Value | None:
        """The twin of a boolean value; None where it depends on a comparison of floats."""
        if value is None or value.dtype is not BOOL:
            return None
        if (value, dtype) not in self._twins:
            self._twins[value, dtype] = self._made(value, dtype)
        return self._twins[value, dtype]

    def _made(self, value: ir.Value, dtype: ir.DataType) -> ir.Value | None:
        name, array, node = f"{value.name}.flag", constant(value), value.producer()
        if array is not None:
            return self.writer.constant(name, array.astype(dtype.numpy()))
        if node is None:
            return self.writer.insert(self.writer.graph[0], "Cast", [value], name, dtype, {"to": dtype.value})
        if node.domain:
            return None
        if node.op_type in MOVING:
            return self._moved(node, dtype, name)
        make = _LOGIC.get(node.op_type)
        return None if make is None else make(self, node, dtype, name)

    def _moved(self, node: ir.Node, dtype: ir.DataType, name: str) -> ir.Value | None:
        count = len(node.inputs) if node.op_type == "Concat" else 1
        moved = [self.number(v, dtype) for v in node.inputs[:count]]
        if any(v is None for v in moved):
            return None
        return self.writer.insert(node, node.op_type, [*moved, *node.inputs[count:]], name, dtype, node.attributes)

    def combined(self, node: ir.Node, dtype: ir.DataType, name: str, op: str) -> ir.Value | None:
        """``op`` of the operands' twins."""
        operands = [self.number(v, dtype) for v in node.inputs]
        return None if any(v is None for v in operands) else self.writer.insert(node, op, operands, name, dtype)

    def inverse(self, before: ir.Node, flag: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        """1 − flag."""
        return self.writer.insert(before, "Sub", [self._scalar(1, dtype), flag], f"{name}.inverse", dtype)

    def negated(self, node: ir.Node, dtype: ir.DataType, name: str) -> ir.Value | None:
        """Of a Not."""
        flag = self.number(node.inputs[0], dtype)
        return None if flag is None else self.inverse(node, flag, dtype, name)

    def differ(self, node: ir.Node, dtype: ir.DataType, name: str) -> ir.Value | None:
        """Of a Cast from integers (is it not 0?), of an Xor: |a − b|, at most 1."""
        if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype is BOOL:
            return self.number(node.inputs[0], dtype)
        difference = self._difference(node, name)
        if difference is None:
            return None
        distance = self.writer.insert(node, "Abs", [difference], f"{name}.distance", INT32)
        return self._at_most_one(node, distance, dtype, name)

    def equal(self, node: ir.Node, dtype: ir.DataType, name: str) -> ir.Value | None:
        """Of an Equal."""
        flag = self.differ(node, dtype, f"{name}.differ")
        return None if flag is None else self.inverse(node, flag, dtype, name)

    def greater(self, node: ir.Node, dtype: ir.DataType, name: str, *, turned: bool) -> ir.Value | None:
        """Whether the first operand is greater than the second one, or less if `turned`."""
        difference = self._difference(node, name, turned=turned)
        if difference is None:
            return None
        positive = self.writer.insert(node, "Max", [difference, self._scalar(0, INT32)], f"{name}.positive", INT32)
        return self._at_most_one(node, positive, dtype, name)

    def not_greater(self, node: ir.Node, dtype: ir.DataType, name: str, *, turned: bool) -> ir.Value | None:
        """The opposite."""
        flag = self.greater(node, dtype, f"{name}.opposite", turned=turned)
        return None if flag is None else self.inverse(node, flag, dtype, name)

    def _at_most_one(self, node: ir.Node, count: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        least = self.writer.insert(node, "Min", [count, self._scalar(1, INT32)], f"{name}.least", INT32)
        return least if dtype is INT32 else self.writer.insert(node, "Cast", [least], name, dtype, {"to": dtype.value})

    def _difference(self, node: ir.Node, name: str, *, turned: bool = False) -> ir.Value | None:
        """The first operand minus the second one (none: 0) in int32, or the negative of that; None where they are floats."""
        operands = [self._integer(node, v, f"{name}.integer") for v in node.inputs]
        if any(v is None for v in operands):
            return None
        if turned:
            operands.reverse()
        first, *others = operands
        if all(_is_zero(v) for v in others if v is not None):
            return first
        return self.writer.insert(node, "Sub", operands, f"{name}.difference", INT32)

    def _integer(self, before: ir.Node, value: ir.Value | None, name: str) -> ir.Value | None:
        if value is None or value.dtype is BOOL:
            return self.number(value, INT32)
        if value.dtype not in INTEGERS:
            return None
        array = constant(value)
        if array is not None:
            return self.writer.constant(name, np.clip(array, -LARGEST, LARGEST).astype(np.int32))
        if value.dtype is INT32:
            return value
        return self.writer.insert(before, "Cast", [value], name, INT32, {"to": INT32.value})

    def _scalar(self, number: int, dtype: ir.DataType) -> ir.Value:
        if (number, dtype) not in self._scalars:
            name = f"{number}.{dtype.name.lower()}"
            self._scalars[number, dtype] = self.writer.constant(name, np.array(number, dtype.numpy()))
        return self._scalars[number, dtype]


_LOGIC: dict[str, Callable[[_Flags, ir.Node, ir.DataType, str], ir.Value | None]] = {
    "And": lambda f, node, dtype, name: f.combined(node, dtype, name, "Mul"),
    "Or": lambda f, node, dtype, name: f.combined(node, dtype, name, "Max"),
    "Not": _Flags.negated,
    "Xor": _Flags.differ,
    "Cast": _Flags.differ,
    "Equal": _Flags.equal,
    "Greater": lambda f, node, dtype, name: f.greater(node, dtype, name, turned=False),
    "Less": lambda f, node, dtype, name: f.greater(node, dtype, name, turned=True),
    "LessOrEqual": lambda f, node, dtype, name: f.not_greater(node, dtype, name, turned=False),
    "GreaterOrEqual": lambda f, node, dtype, name: f.not_greater(node, dtype, name, turned=True),
}
