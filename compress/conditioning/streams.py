"""Streams: the same channels followed through a model, from the constants that write them to those that read them.

A stream takes in every tensor that must change with it: what an addition or a concatenation joins, what another
component is given, the same weights in another component.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import onnx_ir as ir

from pocketport.compress.conditioning.labels import Labels
from pocketport.compress.conditioning.slots import Slot


class Change(StrEnum):
    """What is to be done to the channels.

    SCALE multiplies each by a positive number, PERMUTE gives them another order, ROTATE multiplies vectors of them by
    an orthogonal matrix.
    """

    SCALE = "scale"
    PERMUTE = "permute"
    ROTATE = "rotate"


LINEAR = frozenset({"Gemm", "MatMul", "Conv", "ConvTranspose"})
NORMS = frozenset({"LayerNormalization", "RMSNormalization"})


@dataclass
class Stream:
    """Channels and all that holds them.

    Attributes:
        name: ``component/tensor`` that the search began at.
        width: number of channels.
        writers: constants whose results are the channels: weights by their outputs, biases, norms, tables.
        readers: weights by their inputs.
        norms: RMSNormalization nodes that a rotation passes through once their gain is 1, with their components.
        tensors: activations of the stream → their channels, broadcastable to their shape.
        crossings: those of them that go from component to component, ``component/tensor``.
    """

    name: str
    width: int
    writers: list[Slot] = field(default_factory=list)
    readers: list[Slot] = field(default_factory=list)
    norms: list[tuple[str, ir.Node]] = field(default_factory=list)
    tensors: dict[ir.Value, Labels] = field(default_factory=dict)
    crossings: set[str] = field(default_factory=set)

    @property
    def linear_readers(self) -> list[Slot]:
        """Readers that multiply the last axis of their input."""
        return [s for s in self.readers if s.node.op_type in ("Gemm", "MatMul")]


@dataclass(frozen=True)
class Chain:
    """Components that are changed together.

    Attributes:
        graphs: component → graph, changed in place.
        links: ``component/tensor`` → the other names of the same data; an input or output that is not here keeps what
            it holds.
    """

    graphs: Mapping[str, ir.Model]
    links: Mapping[str, tuple[str, ...]]
