"""GPTQ (Frantar et al. 2022, arXiv 2210.17323) in float64: rounding whose error later columns make good."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.algorithms.base import RoundedWeight, WeightProblem, dequantized, expanded
from pocketport.compress.algorithms.mse import searched_grid
from pocketport.errors import VerificationError

DAMPING = 0.01


def gptq(problem: WeightProblem, *, damping: float = DAMPING) -> RoundedWeight:
    """Round column by column, most important input first; spread each error over the columns still to come.

    Grids are searched beforehand on the original weights (static groups), weighted by the Hessian's diagonal, so
    that the order does not change what a group is. Inputs that were never seen keep their nearest integers.

    Args:
        problem: must have a Hessian.
        damping: share of the mean diagonal added to it.

    Raises:
        VerificationError: the Hessian is missing, or not positive definite even when damped.
    """
    grid = searched_grid(problem)
    # Transposed, so that a column is contiguous.
    scale, zero = (np.ascontiguousarray(v.T, np.float64) for v in expanded(grid, problem))

    def rounded(column: int, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        q = np.clip(np.rint(values / scale[column]) + zero[column], problem.format.low, problem.format.high)
        return q, (q - zero[column]) * scale[column]

    integers = propagated(problem.weight, problem.hessian, damping, rounded)
    return RoundedWeight(integers, grid)


def propagated(
    weight: NDArray[np.float32],
    hessian: NDArray[np.float32] | None,
    damping: float,
    rounded: Callable[[int, NDArray[np.float64]], tuple[NDArray[Any], NDArray[np.float64]]],
) -> NDArray[np.int32]:
    """`column_rounding.propagated` for one matrix of numpy's; torch is loaded for it.

    Args:
        weight: [N, K].
        hessian: [K, K], Σ xᵀx.
        damping: share of the mean diagonal added to it.
        rounded: of a column's index and its values [N], the integers and what they stand for.

    Returns:
        Integers [N, K].

    Raises:
        VerificationError: the Hessian is missing, or not positive definite even when damped.
    """
    import torch

    from pocketport.compress.algorithms import column_rounding

    if hessian is None:
        raise VerificationError(
            "it needs the Hessian of the layer's input", where="gptq", fix="calibrate with the plan's hessians"
        )
    damped = torch.from_numpy(hessian.astype(np.float64))[None]
    column_rounding.damp(damped, damping)
    factor = column_rounding.factored(damped)
    columns = factor.order[0].tolist()

    def in_torch(place: int, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        integers, real = rounded(columns[place], values[0].numpy())
        return torch.from_numpy(integers)[None], torch.from_numpy(real)[None]

    wanted = torch.from_numpy(weight.astype(np.float64))[None]
    found: NDArray[np.int32] = column_rounding.propagated(wanted, factor, in_torch, torch.int32)[0].numpy()
    return found


def output_error(problem: WeightProblem, rounded: RoundedWeight) -> float:
    """tr((W − Ŵ) H (W − Ŵ)ᵀ): the layer's summed squared error on the calibration data."""
    assert problem.hessian is not None
    difference = (problem.weight - dequantized(rounded, problem)).astype(np.float64)
    return float(np.einsum("nk,nk->", difference @ problem.hessian.astype(np.float64), difference))
