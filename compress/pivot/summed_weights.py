"""Layers whose outputs are added up, rounded one after the other: each makes up for what rounding did to those before it.

y = Σ Wₚ·xₚ. An error E of the first weight adds E·x₁ to y, of which the other inputs say a part: B·x₂, B = H₁₂·H₂₂⁻¹, is what
they tell of x₁ in the least squares over the calibration data (H are the second moments of all inputs side by side). Adding
E·B to the others' weights before they are rounded leaves E·(x₁ − B·x₂) of it. So the first weight is rounded under the second
moment of x₁ − B·x₂. That is what GPTQ (Frantar et al. 2022, arXiv 2210.17323) does from column to column of one matrix, here
from matrix to matrix, each of which may have a scheme and an algorithm of its own. As there, the loudest inputs come first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.statistics import SecondMoment
from pocketport.compress.algorithms.gptq import DAMPING

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Residual:
    """What the inputs of the later layers of a sum leave unsaid of a layer's input.

    Attributes:
        moment: of x − B·x_later.
        later: places of the layers that are rounded after it, in their order.
        shares: B, [K, K of all later ones].
    """

    moment: SecondMoment
    later: tuple[int, ...]
    shares: Matrix


def rounding_order(inputs: Sequence[SecondMoment]) -> list[int]:
    """Places of a sum's layers in the order in which they are rounded.

    Args:
        inputs: second moments of what each layer reads.
    """
    loudness = [float(moment.mean().diagonal.mean()) for moment in inputs]
    return sorted(range(len(inputs)), key=lambda place: -loudness[place])


def residuals(
    moment: SecondMoment, widths: Sequence[int], order: Sequence[int], *, damping: float = DAMPING
) -> list[Residual]:
    """One for each layer of a sum, at its place.

    Args:
        moment: of all inputs side by side, with `full`.
        widths: columns of each.
        order: places in the order in which they are rounded.
        damping: share of the mean diagonal that is added to the later ones' moments for B.
    """
    assert moment.full is not None
    whole = moment.full.astype(np.float64)
    mean = float(moment.diagonal.mean()) or 1.0
    columns = np.split(np.arange(len(whole)), np.cumsum(widths)[:-1])
    found: dict[int, Residual] = {}
    for turn, place in enumerate(order):
        later = tuple(order[turn + 1 :])
        own, rest = columns[place], np.concatenate([columns[p] for p in later] or [columns[place][:0]])
        across, others = whole[np.ix_(rest, own)], whole[np.ix_(rest, rest)]
        shares = np.linalg.solve(others + damping * mean * np.eye(len(rest)), across).T
        explained = shares @ across
        left = whole[np.ix_(own, own)] - explained - explained.T + shares @ others @ shares.T
        diagonal = np.maximum(left.diagonal(), 0.0)
        unsaid = SecondMoment(diagonal, moment.rows, left.astype(np.float32))
        found[place] = Residual(unsaid, later, shares.astype(np.float32))
    return [found[place] for place in range(len(widths))]


class SummedWeights:
    """The weights of a sum on their way through rounding.

    Args:
        left: of `residuals`.
    """

    def __init__(self, left: Sequence[Residual]) -> None:
        self._left = left
        self._added: dict[int, Matrix] = {}

    def moment(self, place: int) -> SecondMoment:
        """Under which the weight at this place is rounded."""
        return self._left[place].moment

    def later(self, place: int) -> tuple[int, ...]:
        """Places of the weights that come after it."""
        return self._left[place].later

    def wanted(self, place: int, weight: Matrix) -> Matrix:
        """The weight at this place [N, K], with what it makes up for."""
        return weight + self._added[place] if place in self._added else weight

    def rounded(self, place: int, error: Matrix) -> None:
        """Hand the error of a weight, as wanted less as rounded, [N, K], on to the later ones."""
        own = self._left[place]
        widths = [len(self._left[later].moment.diagonal) for later in own.later]
        for later, handed in zip(own.later, np.split(error @ own.shares, np.cumsum(widths)[:-1], axis=1), strict=False):
            self._added[later] = self._added[later] + handed if later in self._added else handed
