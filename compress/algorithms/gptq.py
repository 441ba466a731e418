"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): rounding whose error later columns make good."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.algorithms.base import RoundedWeight, WeightProblem, dequantized, expanded
from pocketport.compress.algorithms.mse import searched_grid
from pocketport.errors import VerificationError

DAMPING = 0.01
BLOCK = 32  # columns whose updates to the rest are applied at once


def gptq(problem: WeightProblem, *, damping: float = DAMPING) -> RoundedWeight:
    """Round column by column, most important input first; spread each error over the columns still to come.

    Grids are searched beforehand on the original weights (static groups), weighted by the Hessian's diagonal, so
    that the order does not change what a group is. Inputs that were never seen keep their nearest integers.

    Args:
        problem: must have a Hessian.
        damping: share of the mean diagonal added to it.

    Raises:
        VerificationError: the Hessian is missing.
    """
    order, factor = ordered_factor(problem.hessian, damping)
    grid = searched_grid(problem)
    scale, zero = expanded(grid, problem)
    # Transposed, so that a column is contiguous.
    steps, zeros = (np.ascontiguousarray(v[:, order].T, np.float64) for v in (scale, zero))

    def rounded(column: int, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        q = np.clip(np.rint(values / steps[column]) + zeros[column], problem.format.low, problem.format.high)
        return q, (q - zeros[column]) * steps[column]

    integers = np.empty(problem.weight.shape, np.int32)
    integers[:, order] = propagated(problem.weight[:, order], factor, rounded)
    return RoundedWeight(integers, grid)


def ordered_factor(hessian: NDArray[np.float32] | None, damping: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The order of the columns, and the upper Cholesky factor of the inverse Hessian in that order.

    Raises:
        VerificationError: the Hessian is missing.
    """
    if hessian is None:
        raise VerificationError(
            "it needs the Hessian of the layer's input", where="gptq", fix="calibrate with the plan's hessians"
        )
    h = hessian.astype(np.float64)
    diagonal = np.diagonal(h).copy()
    unseen = diagonal <= 0.0
    h[unseen, unseen] = 1.0
    h[np.diag_indices_from(h)] += damping * (float(diagonal.mean()) or 1.0)
    order = np.argsort(-diagonal, kind="stable")
    ordered = h[np.ix_(order, order)]
    # inv(H) = UᵀU with U upper triangular: from the lower factor of H with rows and columns reversed.
    reversed_lower = np.linalg.cholesky(ordered[::-1, ::-1])
    upper_of_h = reversed_lower[::-1, ::-1]  # H = upper · upperᵀ
    inverse = np.linalg.inv(upper_of_h)  # inv(H) = inverseᵀ · inverse, inverse upper triangular
    return order, np.triu(inverse)


def propagated(
    weight: NDArray[np.float32],
    factor: NDArray[np.float64],
    rounded: Callable[[int, NDArray[np.float64]], tuple[NDArray[Any], NDArray[np.float64]]],
) -> NDArray[np.int32]:
    """Round column by column; each error goes over the columns still to come.

    Args:
        weight: [N, K], its columns in the order that they are rounded in.
        factor: [K, K], the upper Cholesky factor of the inverse Hessian in that order.
        rounded: of a column's index and its values [N], the integers and what they stand for.

    Returns:
        Integers [N, K].
    """
    w = np.ascontiguousarray(weight.T, np.float64)
    columns = len(w)
    integers = np.empty(w.shape, np.int32)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = np.empty((stop - start, w.shape[1]))
        for j in range(start, stop):
            integers[j], real = rounded(j, w[j])
            errors[j - start] = (w[j] - real) / factor[j, j]
            w[j + 1 : stop] -= factor[j, j + 1 : stop, None] * errors[j - start]
        w[stop:] -= factor[start:stop, stop:].T @ errors
    return integers.T


def output_error(problem: WeightProblem, rounded: RoundedWeight) -> float:
    """tr((W − Ŵ) H (W − Ŵ)ᵀ): the layer's summed squared error on the calibration data."""
    assert problem.hessian is not None
    difference = (problem.weight - dequantized(rounded, problem)).astype(np.float64)
    return float(np.einsum("nk,nk->", difference @ problem.hessian.astype(np.float64), difference))
