"""The whole range that was seen: nothing is clipped."""

from pocketport.calibration.observers.base import Histogram


class MinMax:
    """[min, max]; right where integers are plenty (16 bits)."""

    def range(self, histogram: Histogram, levels: int, symmetric: bool) -> tuple[float, float]:
        """The extremes."""
        return histogram.minimum, histogram.maximum
