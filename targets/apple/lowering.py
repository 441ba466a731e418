"""Walks a pivot once and tells an Emitter what to write; shared by both Apple formats."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from pocketport.compress.graph import constant, inferred, static_shape
from pocketport.targets.apple.emitter import Discard, Emitter, Weight
from pocketport.targets.apple.weights import CompressedWeight
from pocketport.targets.legality import OpRule

from pocketport.diagnostics import Diagnostic, Severity

FLOAT16_MAX = float(np.finfo(np.float16).max)
FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}

NOT_LISTED = OpRule(why="there is no lowering of this op", fix="export the model without it, or run it on another target")

Lowering = Callable[["Call"], Any]


class NotLowerable(Exception):
    """A node that can't be written; becomes a Diagnostic that names it."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why)
        self.why = why
        self.fix = fix


@dataclass
class Call:
    """One node as its lowering sees it.

    Attributes:
        node: the ONNX node.
        emit: where to write.
        operands: per input: an emitted value, an array (constant), a CompressedWeight, or None (absent).
    """

    node: ir.Node
    emit: Emitter[Any]
    operands: list[Any]

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def value(self, index: int = 0) -> Any:
        """Input `index` as an emitted value; constants are written here."""
        operand = self.operands[index]
        if isinstance(operand, CompressedWeight):
            return self.emit.weight(operand)
        if isinstance(operand, np.ndarray):
            return self.emit.constant(operand)
        return operand

    def array(self, index: int, what: str) -> NDArray[np.generic]:
        """Input `index`, which must be a constant; a compressed one is expanded."""
        operand = self.operands[index]
        if isinstance(operand, CompressedWeight):
            return operand.dense()
        if not isinstance(operand, np.ndarray):
            raise NotLowerable(f"its {what} is computed at run time", "make it a constant: fold constants when exporting")
        return operand

    def integers(self, index: int, what: str) -> tuple[int, ...]:
        """Input `index`, a constant list of integers."""
        return tuple(int(v) for v in self.array(index, what).reshape(-1))

    def weight(self, index: int) -> Weight | None:
        """Input `index` if it is a weight (dense or compressed), else None."""
        operand = self.operands[index]
        return operand if isinstance(operand, (np.ndarray, CompressedWeight)) else None

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Static shape of input `index`."""
        return _shape_of(self.node.inputs[index])

    def out_shape(self, index: int = 0) -> tuple[int, ...]:
        """Static shape of output `index`."""
        return _shape_of(self.node.outputs[index])

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        value: int = self.node.attributes.get_int(name, default)
        return value

    def number(self, name: str, default: float) -> float:
        """A float attribute."""
        value: float = self.node.attributes.get_float(name, default)
        return value

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        value: str = self.node.attributes.get_string(name, default)
        return value

    def list_of_integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """An attribute that is a list of integers."""
        return tuple(self.node.attributes.get_ints(name, default))

    def axis(self, default: int, rank: int) -> int:
        """The ``axis`` attribute, counted from the front."""
        return self.integer("axis", default) % rank


def _shape_of(value: ir.Value | None) -> tuple[int, ...]:
    shape = static_shape(value) if value is not None else None
    if shape is None:
        name = value.name if value is not None else "an absent input"
        raise NotLowerable(f"the shape of {name} is not static", "give the inputs' shapes when ingesting")
    return shape


def lower_graph(
    model: ir.Model, component: str, emitter: Emitter[Any], table: Mapping[str, Lowering], refused: Mapping[str, OpRule] = {}
) -> list[Diagnostic]:
    """Write `model` through `emitter`.

    Returns an ERROR Diagnostic for every node that can't be written (then nothing is finished), and a WARNING for
    every constant beyond float16's range, which is saturated.
    """
    model = inferred(model)
    found: list[Diagnostic] = []
    values: dict[ir.Value, Any] = {}
    for value in model.graph.inputs:
        emitter.begin(str(value.name))
        try:
            values[value] = emitter.parameter(str(value.name), _shape_of(value), integer=_is_integer(value))
        except NotLowerable as error:
            where = f"{component}, input {value.name}"
            found.append(Diagnostic("apple.unsupported-input", Severity.ERROR, where, error.why, error.fix))
            values[value] = None
    for node in model.graph:
        operands = [values[v] if v in values else constant(v) for v in node.inputs]
        found += [_saturated(component, v) for v in node.inputs if v not in values and _exceeds(v)]
        emitter.begin(str(node.outputs[0].name))
        where = f"{component}, node {node.name} ({node.op_type})"
        results: Any = None
        try:
            if node.domain not in ("", "ai.onnx") or node.op_type not in table:
                rule = refused.get(node.op_type, NOT_LISTED)
                raise NotLowerable(rule.why, rule.fix)
            results = table[node.op_type](Call(node, emitter, operands))
        except NotLowerable as error:
            found.append(Diagnostic("apple.unsupported-op", Severity.ERROR, where, error.why, error.fix))
        if len(node.outputs) > 1 and isinstance(results, (list, tuple)):
            values.update(zip(node.outputs, results, strict=False))
        else:
            values.update(dict.fromkeys(node.outputs, results))
    if not any(d.severity is Severity.ERROR for d in found):
        finals = {str(v.name): Call(model.graph.node(-1), emitter, [values[v]]).value() for v in model.graph.outputs}
        emitter.finish(finals)
    return found


def check_graph(
    model: ir.Model, component: str, table: Mapping[str, Lowering], refused: Mapping[str, OpRule]
) -> list[Diagnostic]:
    """What `lower_graph` would say, without any toolchain: it lowers into nothing."""
    return lower_graph(model, component, Discard(), table, refused)


def saturated_half(array: NDArray[np.generic]) -> NDArray[np.float16]:
    """float16, with what lies beyond its range at the range's end."""
    return np.clip(array.astype(np.float64), -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)


def _is_integer(value: ir.Value) -> bool:
    if value.dtype in FLOATS:
        return False
    if value.dtype in INTEGERS:
        return True
    raise NotLowerable(f"inputs of type {value.dtype} are not taken", "use float32 or int32 inputs")


def _exceeds(value: ir.Value | None) -> bool:
    array = constant(value)
    if array is None or array.dtype.kind != "f":
        return False
    return bool(np.abs(array, where=~np.isnan(array), out=np.zeros_like(array)).max(initial=0) > FLOAT16_MAX)


def _saturated(component: str, value: ir.Value | None) -> Diagnostic:
    return Diagnostic(
        "apple.float16-range", Severity.WARNING, f"{component}, tensor {value.name if value else ''}",
        f"it holds values beyond float16's ±{FLOAT16_MAX:.0f}; they are saturated",
        "nothing, if it is an attention mask; otherwise rescale the model",
    )  # fmt: skip
