"""Channels sorted, so that the columns which share a scale are alike."""

from typing import Literal

import numpy as np

from pocketport.compress.conditioning.base import (
    Observe,
    Rewrite,
    in_order,
    inputs_of,
    linear_inputs,
    mean_input,
    watched,
)
from pocketport.compress.conditioning.search import streams_from
from pocketport.compress.conditioning.slots import greatest
from pocketport.compress.conditioning.streams import Chain, Change, Stream
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
        found, blocked = streams_from(chain, linear_inputs(chain), Change.PERMUTE)
        streams = [s for s in found if s.linear_readers and in_order(s)]
        keys = [greatest(s.readers, s.width) for s in streams]
        if self._by == "importance" and streams:
            seen = observe(watched(streams))
            keys = [mean_input(s, inputs_of(s, seen), square=True) for s in streams]
        for stream, key in zip(streams, keys, strict=True):
            order = np.argsort(key, kind="stable")
            for slot in (*stream.writers, *stream.readers):
                slot.permute(order)
        return streams, blocked
