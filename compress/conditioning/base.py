"""Rewrites that condition a float model: what they compute stays the same, what is hard to quantize about it does not."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.conditioning.slots import Slot
from pocketport.compress.conditioning.statistics import ChannelStatistics
from pocketport.compress.conditioning.streams import NORMS, Chain, Stream
from pocketport.compress.structure import is_constant

LINEAR_LAYERS = frozenset({"Gemm", "MatMul"})


class Observe(Protocol):
    """What calibration sees of the graphs as they are now."""

    def __call__(self, tensors: Mapping[str, Iterable[str]]) -> Mapping[str, ChannelStatistics]:
        """Of some tensors of each component, by ``component/tensor``."""
        ...

    def gradients(self, nodes: Mapping[str, Iterable[str]]) -> Mapping[str, NDArray[np.float64]]:
        """Σ g² of each output channel of some linear layers of each component, by ``component/node``.

        g are the gradients of answers' predictions whose mean squares are Fisher's information
        (`mixed_precision.next_token.Head.gradient`). Components that no prompt goes through are not among them.

        Raises:
            UsageError: the model answers nothing here.
        """
        ...


class Rewrite(ABC):
    """An exact change of a chain of components. Options are the constructor's keyword arguments."""

    @abstractmethod
    def __call__(self, chain: Chain, observe: Observe) -> tuple[list[Stream], dict[str, str]]:
        """Change the chain's graphs in place.

        Returns:
            The streams that were changed, and what stood in the way of others by ``component/tensor``.

        Raises:
            UsageError: an option is out of its range, or calibration does not run what is to be observed.
        """


def outputs_of(chain: Chain, ops: Iterable[str]) -> Iterator[tuple[str, ir.Value]]:
    """(component, first output) of every node of these op types, in the order of the graphs."""
    kinds = frozenset(ops)
    for component, graph in chain.graphs.items():
        yield from ((component, node.outputs[0]) for node in graph.graph if node.op_type in kinds and not node.domain)


def linear_inputs(chain: Chain) -> Iterator[tuple[str, ir.Value]]:
    """(component, tensor) of what linear layers read."""
    for component, graph in chain.graphs.items():
        for node in graph.graph:
            x, weight = [*node.inputs, None, None][:2]
            if node.op_type in LINEAR_LAYERS and x is not None and weight is not None and is_constant(weight):
                yield component, x


def in_order(stream: Stream) -> bool:
    """Whether every constant holds all channels once and in order."""
    order: NDArray[np.int32] = np.arange(stream.width, dtype=np.int32)
    return all(np.array_equal(s.channels.ravel(), order) for s in (*stream.writers, *stream.readers))


def from_norm(stream: Stream) -> bool:
    """Whether norms write the stream and nothing but linear layers reads it."""
    written_by_norms = all(s.node.op_type in NORMS for s in stream.writers)
    return written_by_norms and 0 < len(stream.linear_readers) == len(stream.readers)


def from_linear(stream: Stream) -> bool:
    """Whether linear layers write the stream and nothing but linear layers reads it."""
    written_by_linears = all(s.node.op_type in LINEAR_LAYERS for s in stream.writers)
    return written_by_linears and 0 < len(stream.linear_readers) == len(stream.readers)


def input_name(slot: Slot) -> str:
    """The tensor that a weight multiplies."""
    return slot.node.inputs[0].name or "" if slot.node.inputs[0] is not None else ""


def watched(streams: Iterable[Stream]) -> dict[str, set[str]]:
    """Component → inputs of the linear layers that read these streams."""
    tensors: dict[str, set[str]] = {}
    for stream in streams:
        for slot in stream.linear_readers:
            tensors.setdefault(slot.component, set()).add(input_name(slot))
    return tensors


def inputs_of(stream: Stream, seen: Mapping[str, ChannelStatistics]) -> list[tuple[Slot, ChannelStatistics]]:
    """The linear layers that read a stream, each weight once, with what all components saw before it."""
    known: dict[str, tuple[Slot, ChannelStatistics]] = {}
    for slot in stream.linear_readers:
        statistics = seen[f"{slot.component}/{input_name(slot)}"]
        if slot.name in known:
            statistics = known[slot.name][1].merged(statistics)
        known[slot.name] = (known[slot.name][0] if slot.name in known else slot, statistics)
    return list(known.values())


def greatest_input(stream: Stream, inputs: list[tuple[Slot, ChannelStatistics]]) -> NDArray[np.float64]:
    """max |x| of each channel, [width]."""
    result = np.zeros(stream.width)
    for slot, statistics in inputs:
        np.maximum.at(result, slot.channels.ravel(), statistics.maximum)
    return result


def mean_input(stream: Stream, inputs: list[tuple[Slot, ChannelStatistics]], *, square: bool) -> NDArray[np.float64]:
    """Mean |x|, or mean x², of each channel over the layers that read it, [width]."""
    total, count = np.zeros(stream.width), np.zeros(stream.width)
    for slot, statistics in inputs:
        np.add.at(total, slot.channels.ravel(), statistics.squares if square else statistics.magnitude)
        np.add.at(count, slot.channels.ravel(), statistics.rows)
    return total / np.maximum(count, 1)


def rescale(stream: Stream, factors: NDArray[np.float64]) -> None:
    """Divide what writes each channel by its factor [width] > 0, and multiply what reads it."""
    for slot in stream.writers:
        slot.scale(1 / factors)
    for slot in stream.readers:
        slot.scale(factors)
