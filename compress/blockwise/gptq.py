"""GPTQ (Frantar et al. 2022, arXiv 2210.17323) for large matrices, in torch, float32 throughout.

All weights that share an input are solved at once, as further rows of one matrix. Columns go in the order of their
inputs' size, groups are those of the original order (static groups), and the grids are searched beforehand, weighted by
the Hessian's diagonal.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pocketport.compress.blockwise.grids import Form, Grid, searched_grid
from pocketport.compress.blockwise.refine import refined
from pocketport.errors import VerificationError

BLOCK = 128  # columns whose updates to the rest are applied at once
INNER = 32  # the same within a block
RANK_BLOCK = 512  # columns of a Hessian that are summed at a time: about half of the products are left out


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

    def diagonal(self) -> Tensor:
        """Σ x², [K]."""
        return self._sum.diagonal().clone()

    def factor(self, damping: float, *, whole: bool = False) -> "Factor":
        """Order and factor for `solve`; the sums are used up, for their memory.

        Args:
            damping: share of the mean diagonal that is added to it.
            whole: keep the damped Hessian beside its factor, for sweeps.

        Raises:
            VerificationError: the Hessian is not positive definite even when damped, or not finite.
        """
        h, self._sum = self._sum, torch.empty(0)
        diagonal = h.diagonal().clone()
        if not bool(torch.isfinite(diagonal).all()):
            raise VerificationError(
                "calibration met numbers that are not finite", where="gptq", fix="check the data and the checkpoint"
            )
        order = torch.argsort(diagonal, descending=True, stable=True)
        reverse = order.flip(0)
        h = _symmetric_permuted(h, reverse)
        ordered = h.diagonal()
        ordered[ordered <= 0] = 1.0
        ordered += damping * (float(diagonal.mean()) or 1.0)
        kept = _symmetric_permuted(h, torch.argsort(reverse)) if whole else None
        # inv(H) = UᵀU with U upper triangular: from the lower factor L of H with rows and columns reversed.
        lower, failed = torch.linalg.cholesky_ex(h)
        if int(failed):
            raise VerificationError(
                f"the Hessian is not positive definite at column {int(failed)} with damping {damping}",
                where="gptq",
                fix="give more calibration sequences, or a greater damping in the recipe",
            )
        torch.eye(len(h), out=h)
        inverse = torch.linalg.solve_triangular(lower, h, upper=False, out=h)
        del lower
        return Factor(order, inverse, diagonal, kept)


@dataclass(frozen=True)
class Factor:
    """What `solve` needs of a Hessian.

    Attributes:
        order: columns by falling size of their input, [K].
        reversed_upper: the upper Cholesky factor of the inverse Hessian in that order, rows and columns reversed [K, K].
        diagonal: Σ x², [K], in the original order.
        hessian: damped, in the original order [K, K], where it was asked for.
    """

    order: Tensor
    reversed_upper: Tensor
    diagonal: Tensor
    hessian: Tensor | None = None

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start … stop of the upper factor, [stop − start, K]."""
        columns = len(self.order)
        return self.reversed_upper[columns - stop : columns - start].flip(0, 1)

    def applied(self, matrix: Tensor) -> Tensor:
        """A matrix [N, K] times the damped Hessian's inverse."""
        reverse = self.order.flip(0)
        result = torch.empty_like(matrix)
        result[:, reverse] = matrix[:, reverse] @ self.reversed_upper.T @ self.reversed_upper
        return result


def solve(weight: Tensor, factor: Factor, form: Form, sweeps: int = 0) -> tuple[Tensor, Grid]:
    """Round column by column and spread each error over the columns still to come.

    Args:
        weight: float32 [N, K].
        factor: of the Hessian of its input; with the Hessian itself for sweeps.
        form: see `Form`.
        sweeps: of `refined` afterwards.

    Returns:
        Integers uint8 [N, K] in the original order of the columns, and their grid.
    """
    grid = searched_grid(weight, form, factor.diagonal)
    group = factor.order // form.group
    # Transposed, so that a column is contiguous.
    w = weight.T[factor.order].contiguous()
    integers = torch.empty(w.shape, dtype=torch.uint8, device=w.device)
    scale, zero = grid.scale.T.contiguous(), grid.zero.T.contiguous()
    for start in range(0, len(w), BLOCK):
        stop = min(start + BLOCK, len(w))
        upper = factor.rows(start, stop)
        places = group[start:stop]
        errors = _block(w[start:stop], integers[start:stop], upper[:, start:stop], scale[places], zero[places], form)
        if stop < len(w):
            w[stop:].addmm_(upper[:, stop:].T, errors, alpha=-1)
    result = torch.empty_like(integers)
    result[factor.order] = integers
    rounded = result.T.contiguous()
    if not sweeps:
        return rounded, grid
    assert factor.hessian is not None
    return refined(weight, factor.hessian, rounded, grid, form, sweeps)


def _block(w: Tensor, integers: Tensor, upper: Tensor, scale: Tensor, zero: Tensor, form: Form) -> Tensor:
    """Round the columns (here rows) of one block in place; returns their errors over the factor's diagonal [B, N]."""
    errors = torch.empty_like(w)
    diagonal = upper.diagonal().tolist()
    for start in range(0, len(w), INNER):
        stop = min(start + INNER, len(w))
        for j in range(start, stop):
            q = (w[j] / scale[j]).round_().add_(zero[j]).clamp_(0, form.highest)
            integers[j] = q.to(torch.uint8)
            torch.sub(w[j], q.sub_(zero[j]).mul_(scale[j]), out=errors[j]).div_(diagonal[j])
            if j + 1 < stop:
                w[j + 1 : stop].addr_(upper[j, j + 1 : stop], errors[j], alpha=-1)
        if stop < len(w):
            w[stop:].addmm_(upper[start:stop, stop:].T, errors[start:stop], alpha=-1)
    return errors


def _symmetric_permuted(lower: Tensor, order: Tensor) -> Tensor:
    """The symmetric matrix whose lower triangle is given, rows and columns in another order; by rows, for the memory."""
    upper = lower.T
    result = torch.empty_like(lower)
    columns = torch.arange(len(lower), device=lower.device)
    for start in range(0, len(lower), RANK_BLOCK):
        stop = min(start + RANK_BLOCK, len(lower))
        rows = order[start:stop]
        below = columns[None] <= rows[:, None]
        result[start:stop] = torch.where(below, lower[rows], upper[rows])[:, order]
    return result
