"""Intervals that hold what they promise: split conformal prediction on the logarithm of measured over predicted.

Vovk et al. 2005; Lei et al. 2018 (doi 10.1080/01621459.2017.1307116). Scores are those of held-out groups, so an interval
stands for a graph of a family that was not fitted (cross-conformal, Vovk 2015).
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.9


def bounds(log_ratios: ArrayLike, groups: ArrayLike | None = None, level: float = LEVEL) -> tuple[float, float]:
    """Factors (low, high) around a prediction within which a new measurement lies with probability ≥ `level`.

    Args:
        log_ratios: ln(measured / predicted) of held-out measurements.
        groups: of every measurement what makes some alike, such as the model: groups are exchangeable with that of the new one, and
            count alike however many measurements they have (Dunn et al. 2023, doi 10.1080/01621459.2022.2060112). None: each its own.
        level: of both ends together; each end may miss half of the rest.

    Returns:
        With K groups the quantiles at (1 + 1/K)(1 − α/2) and at its mirror. Where K is too small for the level, for which even the most
        extreme scores promise less, what Student's t says of one more group, as of normal errors.
    """
    scores = np.asarray(log_ratios, np.float64)
    _, inverse, counts = np.unique(
        np.arange(len(scores)) if groups is None else np.asarray(groups), return_inverse=True, return_counts=True
    )
    order, number = np.argsort(scores), len(counts)
    share = 1 / counts[inverse]
    wanted = (number + 1) * (1 - (1 - level) / 2)
    high = _quantile(scores[order], share[order], wanted)
    low = -_quantile(-scores[order[::-1]], share[order[::-1]], wanted)
    if 1 < number < wanted:
        middle = float(share @ scores) / number
        deviation = math.sqrt(float(share @ (scores - middle) ** 2) / (number - 1))
        width = _student((1 + level) / 2, number - 1) * deviation * math.sqrt(1 + 1 / number)
        low, high = middle - width, middle + width
    return float(np.exp(min(low, 0.0))), float(np.exp(max(high, 0.0)))


def _quantile(scores: NDArray[np.float64], shares: NDArray[np.float64], wanted: float) -> float:
    """The first of ascending scores up to which the shares sum to `wanted`, else the last."""
    index = int(np.searchsorted(np.cumsum(shares), wanted - 1e-9))
    return float(scores[min(index, len(scores) - 1)])


def _student(p: float, freedom: int) -> float:
    """Student's t quantile from the normal one (Cornish and Fisher; Abramowitz and Stegun 26.7.5); 1 % short at two degrees."""
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(z + sum(term / freedom**k for k, term in enumerate(terms, 1)))


def widened(interval: tuple[float, float], log_spread: float) -> tuple[float, float]:
    """An interval with an independent error of `log_spread` (a half-width, natural logarithm) added to it."""
    low, high = (math.log(v) for v in interval)
    return math.exp(-math.hypot(low, log_spread)), math.exp(math.hypot(high, log_spread))


def covered(log_ratios: Sequence[float], interval: tuple[float, float]) -> list[bool]:
    """Which measurements lie in the interval."""
    return [interval[0] <= math.exp(r) <= interval[1] for r in log_ratios]
