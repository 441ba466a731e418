"""The range whose quantized distribution differs least from the real one, in information."""

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.observers.base import Histogram

STEPS = 48
LEAST = 0.05
SMOOTHING = 1e-4  # mass given to a bin that the quantized distribution leaves empty, so that the divergence is finite


class Entropy:
    """Least Kullback-Leibler divergence between the values and the values quantized (Migacz, GTC 2017).

    Values outside a range count at its bounds. Formats with more levels than the histogram has bins keep everything.
    """

    def range(self, histogram: Histogram, levels: int, symmetric: bool) -> tuple[float, float]:
        """The best of the ranges that shrink the extremes by a common factor."""
        low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
        if symmetric:
            reach = max(-low, high)
            low, high = -reach, reach
        if high == low or len(histogram.counts) <= levels:
            return low, high
        factors = np.geomspace(1.0, LEAST, STEPS)
        divergences = [_divergence(histogram, low * f, high * f, levels) for f in factors]
        best = float(factors[int(np.argmin(divergences))])
        return low * best, high * best


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
