"""Intervals that hold what they promise: split conformal prediction on the logarithm of measured over predicted.

Vovk et al. 2005; Lei et al. 2018 (doi 10.1080/01621459.2017.1307116). Scores are those of held-out groups, so an interval
stands for a graph of a family that was not fitted (cross-conformal, Vovk 2015).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.9


def bounds(log_ratios: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Factors (low, high) around a prediction within which a new measurement lies with probability ≥ `level`.

    Args:
        log_ratios: ln(measured / predicted) of held-out measurements, exchangeable with the new one.
        level: of both ends together; each end may miss half of the rest.

    Returns:
        The ⌈(n + 1)(1 − α/2)⌉-th score and its mirror; the most extreme scores where n is too small for the level.
    """
    scores = np.sort(np.asarray(log_ratios, np.float64))
    rank = math.ceil((len(scores) + 1) * (1 - (1 - level) / 2))
    index = min(rank, len(scores)) - 1
    return float(np.exp(min(scores[-1 - index], 0.0))), float(np.exp(max(scores[index], 0.0)))


def widened(interval: tuple[float, float], log_spread: float) -> tuple[float, float]:
    """An interval with an independent error of `log_spread` (a half-width, natural logarithm) added to it."""
    low, high = (math.log(v) for v in interval)
    return math.exp(-math.hypot(low, log_spread)), math.exp(math.hypot(high, log_spread))


def covered(log_ratios: Sequence[float], interval: tuple[float, float]) -> list[bool]:
    """Which measurements lie in the interval."""
    return [interval[0] <= math.exp(r) <= interval[1] for r in log_ratios]
