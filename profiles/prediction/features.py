"""What predictors see of a graph: for every op its kind, its shapes and its multiply-accumulates, and nothing of its weights."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from pocketport.errors import InputError

COLOURS = 3  # channels of a picture


class Kind(StrEnum):
    """What part of an NPU an op keeps busy."""

    CONV = "conv"
    POINTWISE = "pointwise"
    GROUPED = "grouped"
    DEPTHWISE = "depthwise"
    LINEAR = "linear"
    MATMUL = "matmul"
    RECURRENT = "recurrent"
    SOFTMAX = "softmax"
    NORM = "norm"
    ACTIVATION = "activation"
    ELEMENTWISE = "elementwise"
    POOL = "pool"
    REDUCE = "reduce"
    RESIZE = "resize"
    MOVE = "move"
    GATHER = "gather"
    OTHER = "other"
    PLAIN_POOL = "plain_pool"  # means over windows that an NPU has no integer kernel for


@dataclass(frozen=True)
class OpFeatures:
    """One op that is left after the compilers' fusions.

    Attributes:
        op: ONNX op.
        kind: see `Kind`.
        macs: multiply-accumulates.
        weights: elements of constants that one run reads (of a table, the rows looked up).
        inputs: shapes of the activations read.
        output: shape of the first output.
        window: elements of a convolution's or pooling's window over one channel; 1 elsewhere.
        groups: of a convolution; 1 elsewhere.
    """

    op: str
    kind: Kind
    macs: int
    weights: int
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    window: int = 1
    groups: int = 1


@dataclass(frozen=True)
class GraphFeatures:
    """A graph as predictors see it.

    Attributes:
        ops: in the schedule's order.
        io_elements: elements of the graph's inputs and outputs.
    """

    ops: tuple[OpFeatures, ...]
    io_elements: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        return sum(op.macs for op in self.ops)

    @property
    def weights(self) -> int:
        """Elements of constants that one run reads."""
        return sum(op.weights for op in self.ops)

    @property
    def digest(self) -> str:
        """SHA-256 of everything above: two graphs with one digest get one prediction."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()

    def to_json(self) -> dict[str, object]:
        """JSON values, the inverse of `from_json`."""
        return {"io_elements": self.io_elements, "ops": [list(asdict(op).values()) for op in self.ops]}

    @classmethod
    def from_json(cls, document: dict[str, object], where: str) -> "GraphFeatures":
        """Read what `to_json` wrote; InputError if it is something else."""
        try:
            ops, io_elements = document["ops"], document["io_elements"]
            assert isinstance(ops, list) and isinstance(io_elements, int)
            return cls(tuple(_op(row) for row in ops), io_elements)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"not a graph's features: {error!r}", where=where, fix="make the file again") from error


def _op(row: Sequence[object]) -> OpFeatures:
    op, kind, count, weights, inputs, output, window, groups = row
    assert isinstance(inputs, list)
    return OpFeatures(
        op=str(op),
        kind=Kind(str(kind)),
        macs=_count(count),
        weights=_count(weights),
        inputs=tuple(_shape(shape) for shape in inputs),
        output=_shape(output),
        window=_count(window),
        groups=_count(groups),
    )


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no shape")
    return tuple(_count(d) for d in value)
