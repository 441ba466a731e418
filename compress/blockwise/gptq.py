"""GPTQ for large matrices, float32 throughout: the Hessians of their inputs, and all weights that share one.

Groups are those of the original order of the columns (static groups), and the grids are searched beforehand, weighted by
the Hessian's diagonal.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from pocketport.compress.algorithms.column_rounding import (
    Factor,
    Rounding,
    damp,
    factored,
    propagated,
    symmetric_permuted,
)
from pocketport.compress.quantized_weights import Quantized
from pocketport.errors import VerificationError

RANK_BLOCK = 512  # columns of a Hessian that are summed at a time: about half of the products are left out


class ColumnGrid(Protocol):
    """What integers of a matrix [N, K] stand for."""

    def columns(self, order: Tensor) -> Rounding:
        """Rounding of columns that go in this order, [1, K]."""
        ...

    def dequantized(self, integers: Tensor) -> Tensor:
        """What integers [N, K] stand for, float32."""
        ...


G = TypeVar("G", bound=ColumnGrid)


class WeightForm(Protocol[G]):
    """How a matrix is written."""

    def searched(self, weight: Tensor, importance: Tensor | None = None) -> G:
        """The grid of least squared error for nearest integers.

        Args:
            weight: float32 [N, K].
            importance: float32 [K] ≥ 0, the mean square of each input; None: all the same.
        """
        ...

    def refined(self, weight: Tensor, hessian: Tensor, integers: Tensor, grid: G, sweeps: int) -> tuple[Tensor, G]:
        """Integers uint8 [N, K] and their grid made better under the whole Hessian [K, K]."""
        ...

    def stored(self, integers: Tensor, grid: G) -> Quantized:
        """Integers uint8 [N, K] with their grid, as files hold them."""
        ...


class Hessian:
    """Σ xᵀx over calibration rows x [K], float32; only the lower triangle is summed.

    Args:
        columns: K.
        device: where it lies.
        sums: that it starts with, taken over; None: 0.
    """

    def __init__(self, columns: int, device: torch.device, sums: Tensor | None = None) -> None:
        self._sum = torch.zeros(columns, columns, device=device) if sums is None else sums

    def add(self, rows: Tensor) -> None:
        """Take in [n, K]."""
        columns = rows.shape[1]
        for start in range(0, columns, RANK_BLOCK):
            stop = min(start + RANK_BLOCK, columns)
            self._sum[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])

    def merge(self, other: "Hessian") -> None:
        """Take over another one's sums."""
        self._sum += other._sum

    def copy(self) -> "Hessian":
        """The same sums once more."""
        return Hessian(len(self._sum), self._sum.device, self._sum.clone())

    def quadratic(self, matrix: Tensor) -> float:
        """tr(M H Mᵀ) of a matrix [N, K]."""
        below = torch.linalg.vecdot(matrix @ self._sum.tril(-1), matrix)
        return float((2 * below + matrix.square() @ self._sum.diagonal()).double().sum())

    def diagonal(self) -> Tensor:
        """Σ x², [K]."""
        return self._sum.diagonal().clone()

    def factor(self, damping: float, *, whole: bool = False) -> "InputFactor":
        """Order and factor for `solve`; the sums are used up, for their memory.

        Args:
            damping: share of the mean diagonal that is added to it.
            whole: keep the damped Hessian beside its factor, for sweeps.

        Raises:
            VerificationError: the Hessian is not positive definite even when damped, or not finite.
        """
        h, self._sum = self._sum[None], torch.empty(0)
        diagonal, places = h[0].diagonal().clone(), torch.arange(h.shape[1], device=h.device)
        if not bool(torch.isfinite(diagonal).all()):
            raise VerificationError(
                "calibration met numbers that are not finite", where="gptq", fix="check the data and the checkpoint"
            )
        damp(h, damping)
        kept = symmetric_permuted(h, places[None])[0] if whole else None
        found = factored(h)
        return InputFactor(found.order, found.reversed_upper, diagonal, kept)


@dataclass(frozen=True)
class InputFactor(Factor):
    """The factor of an input's Hessian, [1, …], and what else `solve` needs.

    Attributes:
        diagonal: Σ x², [K].
        hessian: damped, [K, K], where it was asked for.
    """

    diagonal: Tensor
    hessian: Tensor | None = None


def solve(weight: Tensor, factor: InputFactor, form: WeightForm[G], sweeps: int = 0) -> tuple[Tensor, G]:
    """Round column by column and spread each error over the columns still to come.

    Args:
        weight: float32 [N, K].
        factor: of the Hessian of its input; with the Hessian itself for sweeps.
        form: how it is written.
        sweeps: of `WeightForm.refined` afterwards.

    Returns:
        Integers uint8 [N, K] in the original order of the columns, and their grid.
    """
    grid = form.searched(weight, factor.diagonal)
    integers = propagated(weight[None], factor, grid.columns(factor.order), torch.uint8)[0]
    if not sweeps:
        return integers, grid
    assert factor.hessian is not None
    return form.refined(weight, factor.hessian, integers, grid, sweeps)
