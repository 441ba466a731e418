"""Channels sorted, so that the columns which share a scale are alike."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.conditioning.base import (
    LINEAR_LAYERS,
    Observe,
    Rewrite,
    inputs_of,
    mean_input,
    watched,
)
from pocketport.compress.conditioning.search import streams_from
from pocketport.compress.conditioning.slots import greatest
from pocketport.compress.conditioning.streams import Chain, Change, Stream
from pocketport.compress.structure import is_constant
from pocketport.errors import UsageError

KEYS = ("range", "importance")


class Reorder(Rewrite):
    """Channels that linear layers read are sorted from the least to the greatest, and folded into what writes them.

    Blocks of columns that share a scale then hold columns of like size, and a large one spoils fewer small ones (the
    order that GPTQ's activation ordering and RPTQ, Yuan et al. 2023, arXiv 2304.01089, give blocks at run time; here it
    costs nothing). The residual stream is one order for the whole model; the hidden channels of an MLP have their own.

    Args:
        by: ``range``, the greatest weight that reads a channel, or ``importance``, the mean square of its activations.
    """

    def __init__(self, by: Literal["range", "importance"] = "range") -> None:
        if by not in KEYS:
            raise UsageError(f"by is {by!r}", where="recipe, reorder", fix=f"choose {' or '.join(KEYS)}")
        self._by = by

    def __call__(self, chain: Chain, observe: Observe) -> tuple[list[Stream], dict[str, str]]:
        """See `Rewrite`."""
        found, blocked = streams_from(chain, _inputs(chain), Change.PERMUTE)
        streams = [s for s in found if s.linear_readers and _whole(s)]
        keys = [greatest(s.readers, s.width) for s in streams]
        if self._by == "importance" and streams:
            seen = observe(watched(streams))
            keys = [mean_input(s, inputs_of(s, seen), square=True) for s in streams]
        for stream, key in zip(streams, keys, strict=True):
            order = np.argsort(key, kind="stable")
            for slot in (*stream.writers, *stream.readers):
                slot.permute(order)
        return streams, blocked


def _inputs(chain: Chain) -> Iterator[tuple[str, ir.Value]]:
    """What linear layers read."""
    for component, graph in chain.graphs.items():
        for node in graph.graph:
            x, weight = [*node.inputs, None, None][:2]
            if node.op_type in LINEAR_LAYERS and x is not None and weight is not None and is_constant(weight):
                yield component, x


def _whole(stream: Stream) -> bool:
    """Whether every constant holds all channels once and in order."""
    order: NDArray[np.int32] = np.arange(stream.width, dtype=np.int32)
    return all(np.array_equal(s.channels.ravel(), order) for s in (*stream.writers, *stream.readers))
