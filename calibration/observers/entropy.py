"""The range whose quantized distribution differs least from the real one, in information."""

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.observers.base import Histogram, coarsened

STEPS = 48
BINS_PER_LEVEL = 2  # at least; with one bin a level rounding would seem free, and the narrowest range the best
VALUES_PER_BIN = 32  # on average; finer histograms show the noise of a small sample, which any clipping seems to remove
SMOOTHING = 1e-4  # mass given to a bin that the quantized distribution leaves empty, so that the divergence is finite


class Entropy:
    """Least Kullback-Leibler divergence between the values and the values quantized (Migacz, GTC 2017).

    Values outside a range count at its bounds. The histogram is first made coarse enough for its number of values;
    formats with too many levels for its bins keep everything.
    """

    def range(self, histogram: Histogram, levels: int, symmetric: bool) -> tuple[float, float]:
        """The best of the ranges that shrink the extremes by a common factor."""
        low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
        if symmetric:
            reach = max(-low, high)
            low, high = -reach, reach
        histogram = _dense(histogram)
        least = BINS_PER_LEVEL * levels * histogram.width / (high - low) if high > low else 1.0
        if least >= 1.0:
            return low, high
        factors = np.geomspace(1.0, least, STEPS)
        divergences = [_divergence(histogram, low * f, high * f, levels) for f in factors]
        best = float(factors[int(np.argmin(divergences))])
        return low * best, high * best


def _dense(histogram: Histogram) -> Histogram:
    counts, first, steps = histogram.counts, histogram.first, 0
    while len(counts) > 2 and histogram.total < VALUES_PER_BIN * len(counts):  # bins -1 and 0 stay two however wide
        counts, first = coarsened(counts, first, 1)
        steps += 1
    return Histogram(histogram.minimum, histogram.maximum, histogram.exponent + steps, first, counts)


def _divergence(histogram: Histogram, low: float, high: float, levels: int) -> float:
    centers, counts = histogram.centers, histogram.counts.astype(np.float64)
    inside = (centers >= low) & (centers <= high)
    if not inside.any():
        return np.inf
    real: NDArray[np.float64] = counts[inside].copy()
    real[0] += counts[centers < low].sum()
    real[-1] += counts[centers > high].sum()
    # Quantizing spreads what fell on one level evenly over the non-empty bins that level stands for.
    level = np.rint((centers[inside] - low) / (high - low) * (levels - 1)).astype(np.int64)
    occupied = counts[inside] > 0
    mass = np.bincount(level, weights=counts[inside], minlength=levels)
    members = np.bincount(level, weights=occupied, minlength=levels)
    quantized = np.where(occupied, mass[level] / np.maximum(members[level], 1.0), 0.0)
    p, q = real / real.sum(), quantized / max(quantized.sum(), 1e-300)
    present = p > 0
    return float(np.sum(p[present] * np.log(p[present] / np.maximum(q[present], SMOOTHING / len(p)))))
