"""Errors of layers put right by what a few groups of them measure."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ROUNDS = 100


def raked(errors: Floats, groupings: Sequence[Sequence[str]], measured: Sequence[Mapping[str, float]]) -> Floats:
    """Factors [L] with which the errors of every group sum to what it measures.

    Each layer's factor is the product of one for its group in every grouping: iterative proportional fitting (Deming and
    Stephan 1940, doi 10.1214/aoms/1177731829). Groupings whose sums differ, since errors of layers don't quite add up,
    are put to the mean of their sums first.

    Args:
        errors: of the layers, [L], at least 0.
        groupings: of each, the group of every layer.
        measured: of each grouping, group → what it measures.
    """
    total = np.mean([sum(sums.values()) for sums in measured])
    factors = np.ones(len(errors))
    for _ in range(ROUNDS):
        for grouping, sums in zip(groupings, measured, strict=True):
            scale = total / (sum(sums.values()) or 1.0)
            for group, wanted in sums.items():
                own = np.array([g == group for g in grouping])
                if (now := float((errors * factors)[own].sum())) > 0:  # what costs nothing stays so
                    factors[own] *= scale * wanted / now
    return factors
