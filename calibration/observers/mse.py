"""The range with the least expected squared error."""

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.observers.base import Histogram

STEPS = 64
LEAST = 0.05  # narrowest range tried, as a share of the whole


class Mse:
    """Balance rounding against clipping (Banner et al. 2019, arXiv 1810.05723).

    A value inside the range is expected to err by step²/12, one outside by its distance to the bound. Ranges are the
    extremes shrunk by a common factor, then each bound by its own.
    """

    def range(self, histogram: Histogram, levels: int, symmetric: bool) -> tuple[float, float]:
        """The best of the ranges tried."""
        low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
        if symmetric:
            reach = max(-low, high)
            low, high = -reach, reach
        shrink = np.geomspace(1.0, LEAST, STEPS)
        low, high = _best(histogram, low * shrink, high * shrink, levels)
        if symmetric or low == 0.0 or high == 0.0:
            return low, high
        near = np.linspace(0.7, 1.3, STEPS)
        floor, ceiling = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
        low, high = _best(histogram, np.maximum(low * near, floor), np.full(STEPS, high), levels)
        return _best(histogram, np.full(STEPS, low), np.minimum(high * near, ceiling), levels)


def _best(
    histogram: Histogram, lows: NDArray[np.float64], highs: NDArray[np.float64], levels: int
) -> tuple[float, float]:
    """The pair with the least expected error; the widest one of equals."""
    centers, counts = histogram.centers, histogram.counts.astype(np.float64)
    low, high = lows[:, None], highs[:, None]
    clipped = np.maximum(low - centers, 0.0) + np.maximum(centers - high, 0.0)
    inside = counts @ (clipped == 0.0).T
    step = (highs - lows) / (levels - 1)
    error = np.square(clipped) @ counts + inside * np.square(step) / 12.0
    order = np.lexsort((lows - highs, error))
    return float(lows[order[0]]), float(highs[order[0]])
