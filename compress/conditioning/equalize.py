"""Cross-layer equalization: the channels between two layers get the same range in both."""

import numpy as np

from pocketport.compress.conditioning.base import Observe, Rewrite, outputs_of, rescale
from pocketport.compress.conditioning.search import streams_from
from pocketport.compress.conditioning.slots import greatest
from pocketport.compress.conditioning.streams import LINEAR, NORMS, Chain, Change, Stream
from pocketport.errors import UsageError


class Equalize(Rewrite):
    """s = √(r₁·r₂)/r₂ for each channel, r the greatest magnitude of its weights before and behind it.

    The first layer's rows (and bias) are divided by s, the second one's columns are multiplied: both ranges become
    √(r₁·r₂). Pairs of convolutions (depthwise ones included) and linear layers with nothing between them but what
    commutes with a positive scale; again and again until the scales of all pairs are within `tolerance` of 1, since a
    layer is part of two pairs (Nagel et al. 2019, arXiv 1906.04721, sections 4.1.1 and 4.1.2).
    """

    def __init__(self, rounds: float = 50, tolerance: float = 1e-3) -> None:
        if rounds < 1 or tolerance <= 0:
            raise UsageError(
                f"rounds {rounds:g}, tolerance {tolerance:g}", where="recipe, equalize", fix="choose both above 0"
            )
        self._rounds, self._tolerance = int(rounds), tolerance

    def __call__(self, chain: Chain, observe: Observe) -> tuple[list[Stream], dict[str, str]]:
        """See `Rewrite`; nothing is observed."""
        found, blocked = streams_from(chain, outputs_of(chain, LINEAR), Change.SCALE)
        streams = [s for s in found if s.readers and all(w.node.op_type not in NORMS for w in s.writers)]
        for _ in range(self._rounds):
            if max((_equalize(stream) for stream in streams), default=0.0) < self._tolerance:
                break
        return streams, blocked


def _equalize(stream: Stream) -> float:
    """Equalize one pair; how far its scales were from 1, as a logarithm."""
    weights = [s for s in stream.writers if s.node.op_type in LINEAR and s.index == 1]
    first, second = greatest(weights, stream.width), greatest(stream.readers, stream.width)
    alive = (first > 0) & (second > 0)
    factors = np.where(alive, np.sqrt(np.where(alive, first, 1) / np.where(alive, second, 1)), 1.0)
    rescale(stream, factors)
    return float(np.abs(np.log(factors)).max())
