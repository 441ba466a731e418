"""Two things measured turn by turn: how much longer one takes, and how sure that is.

Drift and noise of a machine hit both sides of a turn alike, so it is the ratio within each turn that says something. The
interval of its median comes from order statistics (Conover, Practical Nonparametric Statistics, section 3.2) and assumes
nothing about the noise but that turns are independent.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pocketport.errors import UsageError

LEVEL = 0.95
FEWEST_TURNS = 6  # with fewer, not even the extremes enclose the median at that level


@dataclass(frozen=True)
class Ratio:
    """Median of the ratios of all turns, with its interval at LEVEL.

    Attributes:
        value: the median; over 1 where the first thing takes longer.
        low: lower end.
        high: upper end.
        turns: how many there were.
    """

    value: float
    low: float
    high: float
    turns: int

    @property
    def longer(self) -> bool:
        """Whether the first thing surely takes longer."""
        return self.low > 1

    @property
    def shorter(self) -> bool:
        """Whether it surely takes less."""
        return self.high < 1


def paired_ratio(first: ArrayLike, second: ArrayLike) -> Ratio:
    """The ratio ``first / second`` of positive numbers [n], turn by turn.

    With fewer than FEWEST_TURNS the interval is open: 0 to infinity.

    Raises:
        UsageError: there is no turn, or the two differ in length.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise UsageError(
            f"{a.shape} and {b.shape} are no turns", where="paired ratio", fix="measure both in every turn"
        )
    ratios = np.sort(a / b)
    rank = _rank(len(ratios))
    low, high = (float(ratios[rank]), float(ratios[-1 - rank])) if rank is not None else (0.0, math.inf)
    return Ratio(float(np.median(ratios)), low, high, len(ratios))


def _rank(count: int) -> int | None:
    """How many ratios to leave out at each end: the most with which the interval still holds the median at LEVEL."""
    rank, tail = None, 0.0
    for index in range(count // 2):
        tail += math.comb(count, index) / 2**count
        if 2 * tail > 1 - LEVEL:
            break
        rank = index
    return rank


def median_deviation(values: ArrayLike) -> float:
    """Median of the absolute deviations from the median."""
    array = np.asarray(values, np.float64)
    return float(np.median(np.abs(array - np.median(array))))
