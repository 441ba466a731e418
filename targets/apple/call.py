"""One ONNX node as its lowering sees it, and the table that lowerings register in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.graph import static_shape
from pocketport.targets.apple.emitter import Emitter, Weight
from pocketport.targets.apple.weights import CompressedWeight

Lowering: TypeAlias = Callable[["Call"], Any]

TABLE: dict[str, Lowering] = {}


def lowering(*op_types: str) -> Callable[[Lowering], Lowering]:
    """Register the decorated function for these ONNX op types."""

    def register(function: Lowering) -> Lowering:
        TABLE.update(dict.fromkeys(op_types, function))
        return function

    return register


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
        return emitted(self.operands[index], self.emit)

    def array(self, index: int, what: str) -> NDArray[np.generic]:
        """Input `index`, which must be a constant; a compressed one is expanded."""
        operand = self.operands[index]
        if isinstance(operand, CompressedWeight):
            return operand.dense()
        if not isinstance(operand, np.ndarray):
            raise NotLowerable(
                f"its {what} is computed at run time", "make it a constant: fold constants when exporting"
            )
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
        return shape_of(self.node.inputs[index])

    def out_shape(self, index: int = 0) -> tuple[int, ...]:
        """Static shape of output `index`."""
        return shape_of(self.node.outputs[index])

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


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """The static shape of a value; NotLowerable if it has none."""
    shape = static_shape(value) if value is not None else None
    if shape is None:
        name = value.name if value is not None else "an absent input"
        raise NotLowerable(f"the shape of {name} is not static", "give the inputs' shapes when ingesting")
    return shape


def emitted(operand: Any, emit: Emitter[Any]) -> Any:
    """`operand` as an emitted value: arrays and compressed weights are written as constants here."""
    if isinstance(operand, CompressedWeight):
        return emit.weight(operand)
    return emit.constant(operand) if isinstance(operand, np.ndarray) else operand
