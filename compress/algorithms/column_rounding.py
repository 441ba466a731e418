"""Rounding a matrix column by column under the Hessian of its input: GPTQ's recursion, and coordinate descent.

Both are written for G problems side by side, mostly one: those of a convolution's groups. Whoever calls them says by a
`Rounding` what columns are rounded to, and by the dtypes how exactly: float64 for what is small, float32 for what is big.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pocketport.compress.torch_device import one_thread
from pocketport.errors import VerificationError

BLOCK = 128  # columns whose updates to the rest are applied at once
INNER = 32  # the same within a block
RUN = 128  # rows of a Hessian that are reordered at a time

Rounding: TypeAlias = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""Of a column's place in the order that they are rounded in, and its values [G, N]: integers, and what they stand for."""


def damp(hessian: Tensor, share: float) -> None:
    """Add a share of their means to the diagonals of [G, K, K], in place."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    diagonal += share * torch.where(mean > 0, mean, 1.0)


@dataclass(frozen=True)
class Factor:
    """Of damped Hessians [G, K, K].

    Attributes:
        order: columns by falling size of their input, [G, K].
        reversed_upper: upper Cholesky factors of the inverses in that order, rows and columns reversed [G, K, K].
    """

    order: Tensor
    reversed_upper: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start … stop of the upper factors, [G, stop − start, K]."""
        columns = self.order.shape[1]
        return self.reversed_upper[:, columns - stop : columns - start].flip(1, 2)

    def applied(self, matrix: Tensor) -> Tensor:
        """Matrices [G, N, K] times the inverses."""
        places = self.order.flip(1)[:, None].expand(matrix.shape)
        product = matrix.gather(2, places) @ self.reversed_upper.mT @ self.reversed_upper
        return torch.empty_like(matrix).scatter_(2, places, product)


def factored(hessian: Tensor) -> Factor:
    """Order and factor for `propagated`.

    Args:
        hessian: [G, K, K], damped; the lower triangles are read, and all of it is used up, for its memory.

    Raises:
        VerificationError: a Hessian is not positive definite.
    """
    order = torch.argsort(hessian.diagonal(dim1=1, dim2=2), dim=1, descending=True, stable=True)
    # inv(H) = UᵀU with U upper triangular: from the lower factor L of H with rows and columns reversed.
    inverse = symmetric_permuted(hessian, order.flip(1))
    failed = torch.empty(0, dtype=torch.int32, device=hessian.device)
    with one_thread():
        lower, failed = torch.linalg.cholesky_ex(inverse, out=(hessian.mT, failed))
        if bool(failed.any()):
            raise VerificationError(
                "the Hessian of a layer's input is not positive definite even when it is damped", where="gptq",
                fix="give more calibration data, or a greater damping in the recipe",
            )  # fmt: skip
        inverse.zero_().diagonal(dim1=1, dim2=2).fill_(1.0)
        torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    return Factor(order, inverse)


def symmetric_permuted(lower: Tensor, order: Tensor) -> Tensor:
    """Symmetric matrices [G, K, K], whose lower triangles are given, with rows and columns in other orders [G, K]."""
    columns = lower.shape[1]
    result = torch.empty_like(lower)
    for start in range(0, columns, RUN):
        rows, others = order[:, start : start + RUN, None], order[:, None]
        places = torch.maximum(rows, others).mul_(columns).add_(torch.minimum(rows, others))
        result[:, start : start + RUN] = lower.flatten(1).gather(1, places.flatten(1)).reshape(places.shape)
    return result


def propagated(weight: Tensor, factor: Factor, rounded: Rounding, dtype: torch.dtype) -> Tensor:
    """Round column by column in the factor's order; each error goes over the columns still to come.

    GPTQ (Frantar et al. 2022, arXiv 2210.17323), whose updates are applied lazily.

    Args:
        weight: [G, N, K], in the dtype that errors are computed in.
        factor: of the Hessian of its input.
        rounded: see `Rounding`.
        dtype: of the integers.

    Returns:
        Integers [G, N, K] in the original order of the columns.
    """
    # Transposed, so that a column is contiguous.
    places = factor.order[..., None].expand(weight.mT.shape)
    w = weight.mT.gather(1, places)
    integers = torch.empty(w.shape, dtype=dtype, device=w.device)
    for start in range(0, w.shape[1], BLOCK):
        stop = min(start + BLOCK, w.shape[1])
        upper = factor.rows(start, stop).to(w.dtype)
        errors = _block(w[:, start:stop], integers[:, start:stop], upper[..., start:stop], start, rounded)
        _add_products(w[:, stop:], upper[..., stop:], errors, -1)
    return torch.empty_like(integers).scatter_(1, places, integers).mT.contiguous()


def _block(w: Tensor, integers: Tensor, upper: Tensor, first: int, rounded: Rounding) -> Tensor:
    """Round the columns (here rows) of one block in place; returns their errors over the factor's diagonal [G, B, N]."""
    errors = torch.empty_like(w)
    diagonal = upper.diagonal(dim1=1, dim2=2)[..., None]
    for start in range(0, w.shape[1], INNER):
        stop = min(start + INNER, w.shape[1])
        for j in range(start, stop):
            integers[:, j], real = rounded(first + j, w[:, j])
            torch.sub(w[:, j], real, out=errors[:, j]).div_(diagonal[:, j])
            w[:, j + 1 : stop].addcmul_(upper[:, j, j + 1 : stop, None], errors[:, j, None], value=-1)
        _add_products(w[:, stop:], upper[:, start:stop, stop:], errors[:, start:stop], -1)
    return errors


def descended(weight: Tensor, hessian: Tensor, now: Tensor, rounded: Rounding, dtype: torch.dtype) -> Tensor:
    """One sweep of cyclic coordinate descent: each column takes the integers that are best beside all the others.

    QuantEase (Behdin et al. 2023, arXiv 2309.01885, algorithm 1).

    Args:
        weight: [G, N, K], what the integers should stand for.
        hessian: [G, K, K], symmetric, positive definite.
        now: [G, N, K], what the integers so far stand for.
        rounded: see `Rounding`; columns go in their own order.
        dtype: of the integers.

    Returns:
        Integers [G, N, K].
    """
    now = now.mT.contiguous()  # so that a column is
    gradient = hessian @ (now - weight.mT)
    integers = torch.empty(now.shape, dtype=dtype, device=now.device)
    for start in range(0, now.shape[1], INNER):
        part = slice(start, min(start + INNER, now.shape[1]))
        change = descended_columns(
            hessian[:, part, part], now[:, part], gradient[:, part], integers[:, part], start, rounded
        )
        _add_products(gradient[:, part.stop :], hessian[:, part, part.stop :], change, 1)
    return integers.mT.contiguous()


def descended_columns(
    hessian: Tensor, now: Tensor, gradient: Tensor, integers: Tensor, first: int, rounded: Rounding
) -> Tensor:
    """The same of a few columns beside all others, which stay as they are.

    Args:
        hessian: [G, B, B], of these columns.
        now: [G, B, N], what the integers so far stand for.
        gradient: [G, B, N], of half the error by each weight; it is used up.
        integers: [G, B, N], written.
        first: place of the first of these columns.
        rounded: see `Rounding`.

    Returns:
        What was added to `now`, [G, B, N].
    """
    change = torch.empty_like(gradient)
    curvature = hessian.diagonal(dim1=1, dim2=2)[..., None]
    for j in range(now.shape[1]):
        integers[:, j], real = rounded(first + j, now[:, j] - gradient[:, j] / curvature[:, j])
        torch.sub(real, now[:, j], out=change[:, j])
        gradient[:, j + 1 :].addcmul_(hessian[:, j + 1 :, j, None], change[:, j, None])
    return change


def _add_products(rest: Tensor, rows: Tensor, columns: Tensor, sign: int) -> None:
    """Add rowsᵀ · columns of each problem in place, where anything is left."""
    if rest.shape[1]:
        for own, left, right in zip(rest, rows, columns, strict=True):
            own.addmm_(left.T, right, alpha=sign)
