"""AWQ: the columns of a weight that matter most are scaled up before it is rounded."""

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.algorithms.base import WeightFormat, WeightProblem, grid_for
from pocketport.compress.conditioning.base import (
    LINEAR_LAYERS,
    Observe,
    Rewrite,
    from_linear,
    from_norm,
    inputs_of,
    mean_input,
    outputs_of,
    rescale,
    watched,
)
from pocketport.compress.conditioning.search import streams_from
from pocketport.compress.conditioning.slots import Slot
from pocketport.compress.conditioning.statistics import ChannelStatistics
from pocketport.compress.conditioning.streams import NORMS, Chain, Change, Stream
from pocketport.errors import UsageError

LEAST = 1e-4  # of the mean: as the paper's code bounds its scales


class Awq(Rewrite):
    """s = mean|x|^α for each channel, α searched per stream on a grid that contains 0 (no change).

    The exponent with the least ‖Q(W·diag(s))·diag(s)⁻¹·X − W·X‖² over all layers that read the stream is taken, on a
    sample of calibration rows; Q rounds to nearest (Lin et al. 2023, arXiv 2306.00978, section 3.2). Streams are norm →
    linear layers, value → output projection, and up → down projection.

    Args:
        bits: of the weights that will be rounded.
        block: input columns that share a scale; 0: all of an output channel.
        symmetric: 1 where zero points are in the middle, 0 where each scale has its own.
        steps: exponents tried, from 0 on and under 1.
    """

    def __init__(self, bits: float = 4, block: float = 0, symmetric: float = 1, steps: float = 20) -> None:
        if not 2 <= bits <= 8 or block < 0 or steps < 2:
            raise UsageError(
                f"bits {bits:g}, block {block:g}, steps {steps:g}", where="recipe, awq",
                fix="choose 2 to 8 bits, a block size or 0, and at least two steps",
            )  # fmt: skip
        self._levels, self._block, self._symmetric = 1 << int(bits), int(block), bool(symmetric)
        self._exponents = np.linspace(0, 1, int(steps), endpoint=False)

    def __call__(self, chain: Chain, observe: Observe) -> tuple[list[Stream], dict[str, str]]:
        """See `Rewrite`; streams that are best left alone are among those returned."""
        starts = outputs_of(chain, NORMS | LINEAR_LAYERS)
        found, blocked = streams_from(chain, starts, Change.SCALE)
        streams = [s for s in found if from_norm(s) or from_linear(s)]
        seen = observe(watched(streams)) if streams else {}
        for stream in streams:
            factors = self._factors(stream, inputs_of(stream, seen))
            if factors is not None:
                rescale(stream, factors)
        return streams, blocked

    def _factors(self, stream: Stream, inputs: list[tuple[Slot, ChannelStatistics]]) -> NDArray[np.float64] | None:
        """The best scales [width]; None where no scale is better than 1."""
        mean = mean_input(stream, inputs, square=False)
        mean = np.maximum(mean, LEAST * (mean.mean() or 1.0))
        layers = [(_matrix(slot), slot.channels.ravel(), statistics.sample) for slot, statistics in inputs]
        best, chosen = np.inf, None
        for exponent in self._exponents:
            factors = mean**exponent
            factors /= np.sqrt(factors.max() * factors.min())
            error = sum(self._error(weight, factors[channels], x) for weight, channels, x in layers)
            if error < best:
                best, chosen = error, None if exponent == 0 else factors
        return chosen

    def _error(self, weight: NDArray[np.float32], factors: NDArray[np.float64], x: NDArray[np.float32]) -> float:
        """Squared error of the layer's outputs on the sample."""
        scale = factors.astype(np.float32)
        columns = weight.shape[1]
        middle = self._levels // 2
        low, high = (-middle, middle - 1) if self._symmetric else (0, self._levels - 1)
        group = self._block if self._block and columns % self._block == 0 else columns
        groups = (weight * scale).reshape(len(weight), -1, group)
        ends = (
            np.minimum(groups.min(axis=-1), 0).astype(np.float64),
            np.maximum(groups.max(axis=-1), 0).astype(np.float64),
        )
        grid = grid_for(*ends, WeightProblem(weight, WeightFormat(low, high, self._symmetric, group)))
        step, zero = grid.scale[..., None], grid.zero_point[..., None].astype(np.float32)
        rounded = np.rint(groups / step)
        np.clip(rounded, low - zero, high - zero, out=rounded)
        rounded *= step
        difference = rounded.reshape(weight.shape) / scale - weight
        return float(np.square(x @ difference.T, dtype=np.float64).sum())


def _matrix(slot: Slot) -> NDArray[np.float32]:
    """The weight as [N, K]."""
    array = np.asarray(np.moveaxis(slot.array(), slot.axis, -1), np.float32)
    return np.ascontiguousarray(array.reshape(-1, array.shape[-1]))
