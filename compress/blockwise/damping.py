"""The damping of a Hessian, chosen by output errors on samples that it has not seen.

Frantar et al. 2022 (arXiv 2210.17323, section 3.3) add a hundredth of the mean diagonal for numerical reasons. It is a ridge
too: what few samples say of columns that vary little does not hold for others, and errors are spread by it all the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pocketport.compress.blockwise.drift import target
from pocketport.compress.blockwise.gptq import InputFactor, WeightForm, solve
from pocketport.compress.blockwise.sums import Sums

CANDIDATES = (0.01, 0.03, 0.1, 0.3, 1.0)
ROWS = 128  # of each weight that are rounded on trial


@dataclass(frozen=True)
class Sharer:
    """One of the weights that share an input.

    Attributes:
        weight: float32 [N, K].
        form: how it is written.
        residual: that its outputs are added to, "" for none.
        propagation: the share of the drift that it makes up for.
    """

    weight: Tensor
    form: WeightForm[Any]
    residual: str
    propagation: float


def searched_damping(sums: Sums, sharers: Sequence[Sharer]) -> float:
    """Of `CANDIDATES` the one under which weights err least on the samples held out.

    Some rows of every weight are rounded under the other samples' Hessian; the squared errors of its outputs count by their
    share of the outputs' own squares.

    Args:
        sums: with `held`; they are left as they are.
        sharers: all weights that meet the activation.

    Raises:
        VerificationError: the Hessian is not positive definite even when damped, or not finite.
    """
    trials, errors = [_Trial(sharer, sums) for sharer in sharers], []
    for damping in CANDIDATES:
        factor = sums.hessian.copy().factor(damping)
        errors.append(sum(trial.error(factor) for trial in trials))
        del factor  # before the next one is made
    return CANDIDATES[errors.index(min(errors))]


class _Trial:
    """Some rows of a weight, evenly spread."""

    def __init__(self, sharer: Sharer, sums: Sums) -> None:
        assert sums.held is not None
        rows = slice(None, None, max(1, len(sharer.weight) // ROWS))
        self._sharer, self._held = sharer, sums.held.hessian
        self._weight = sharer.weight[rows]
        self._outputs = self._held.quadratic(self._weight) or 1.0
        self._missing, self._missing_held = (
            s.drift.missing(sharer.weight, sharer.residual, rows)
            if s.drift is not None and sharer.propagation
            else None
            for s in (sums, sums.held)
        )

    def error(self, factor: InputFactor) -> float:
        """On the samples held out, but for what no rounding changes."""
        weight = self._weight
        if self._missing is not None:
            weight = target(weight, self._missing, factor, self._sharer.propagation)
        integers, grid = solve(weight, factor, self._sharer.form)
        difference = grid.dequantized(integers).sub_(self._weight)
        error = self._held.quadratic(difference)
        if self._missing_held is not None:
            error -= 2 * float(torch.linalg.vecdot(difference, self._missing_held).double().sum())
        return error / self._outputs
