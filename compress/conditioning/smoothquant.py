"""SmoothQuant: outliers of activations moved into the weights that read them."""

import numpy as np

from pocketport.compress.conditioning.base import (
    Observe,
    Rewrite,
    from_norm,
    greatest_input,
    inputs_of,
    outputs_of,
    rescale,
    watched,
)
from pocketport.compress.conditioning.search import streams_from
from pocketport.compress.conditioning.slots import greatest
from pocketport.compress.conditioning.streams import NORMS, Chain, Change, Stream
from pocketport.errors import UsageError

LEAST = 1e-5  # of a maximum: channels that are always 0 keep their scale near that of the others


class SmoothQuant(Rewrite):
    """s = max|x|^α / max|w|^(1−α) for each channel between a norm and the linear layers behind it.

    The norm's gain (and bias) is divided by s, the columns of the weights are multiplied (Xiao et al. 2022, arXiv
    2211.10438, equations 3 and 4). `alpha` in [0, 1] is the share of the difficulty that goes to the weights.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        if not 0 <= alpha <= 1:
            raise UsageError(f"alpha is {alpha}", where="recipe, smoothquant", fix="choose it between 0 and 1")
        self._alpha = alpha

    def __call__(self, chain: Chain, observe: Observe) -> tuple[list[Stream], dict[str, str]]:
        """See `Rewrite`."""
        found, blocked = streams_from(chain, outputs_of(chain, NORMS), Change.SCALE)
        streams = [s for s in found if from_norm(s)]
        seen = observe(watched(streams)) if streams else {}
        for stream in streams:
            maxima = greatest_input(stream, inputs_of(stream, seen)), greatest(stream.readers, stream.width)
            x, w = (np.maximum(m, LEAST * (m.max() or 1.0)) for m in maxima)
            rescale(stream, x**self._alpha / w ** (1 - self._alpha))
        return streams, blocked
