"""Gains of norms moved into the weights behind them: a norm's outliers are made by its gain."""

import numpy as np

from pocketport.compress.conditioning.base import Observe, Rewrite, from_norm, outputs_of, rescale
from pocketport.compress.conditioning.search import streams_from
from pocketport.compress.conditioning.slots import greatest
from pocketport.compress.conditioning.streams import NORMS, Chain, Change, Stream
from pocketport.errors import UsageError


class FoldGain(Rewrite):
    """Norm → linear layers: |gain| goes into the columns of the weights, its sign stays.

    With `limit` 0 all of it, as gamma migration does (Wei et al. 2022, arXiv 2209.13325, section 4.1); else only what
    is beyond `limit` times the median gain, so that outliers go and the rest stays where it is.
    """

    def __init__(self, limit: float = 0) -> None:
        if limit < 0:
            raise UsageError(f"limit is {limit}", where="recipe, fold_gain", fix="choose 0, or a limit above it")
        self._limit = limit

    def __call__(self, chain: Chain, observe: Observe) -> tuple[list[Stream], dict[str, str]]:
        """See `Rewrite`; nothing is observed."""
        found, blocked = streams_from(chain, outputs_of(chain, NORMS), Change.SCALE)
        streams = []
        for stream in (s for s in found if from_norm(s)):
            gain = greatest([s for s in stream.writers if s.index == 1], stream.width)
            if self._limit:
                factors = np.maximum(gain / (self._limit * (np.median(gain) or 1.0)), 1.0)
            else:
                factors = np.where(gain > 0, gain, 1.0)
            if (factors != 1).any():
                rescale(stream, factors)
                streams.append(stream)
        return streams, blocked
