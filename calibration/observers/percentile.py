"""The range without the farthest values."""

import numpy as np

from pocketport.calibration.observers.base import Histogram


class Percentile:
    """Clip the same share of values from both ends.

    Args:
        percentile: share of the values that lie inside each bound, in percent.
    """

    def __init__(self, percentile: float = 99.99) -> None:
        self.percentile = percentile

    def range(self, histogram: Histogram, levels: int, symmetric: bool) -> tuple[float, float]:
        """The two quantiles, linear inside a bin."""
        share = self.percentile / 100.0
        return self._quantile(histogram, 1.0 - share), self._quantile(histogram, share)

    @staticmethod
    def _quantile(histogram: Histogram, share: float) -> float:
        edges = (histogram.first + np.arange(len(histogram.counts) + 1)) * histogram.width
        below = np.concatenate(([0], np.cumsum(histogram.counts)))
        value = float(np.interp(share * below[-1], below, edges))
        return float(np.clip(value, histogram.minimum, histogram.maximum))
