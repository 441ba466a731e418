"""GPTQ (Frantar et al. 2022, arXiv 2210.17323) onto palettes: errors are propagated, tables are those of k-means."""

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.algorithms.gptq import DAMPING, propagated
from pocketport.compress.algorithms.kmeans import kmeans
from pocketport.compress.algorithms.palette import PaletteProblem, PalettizedMatrix, nearest


def palette_gptq(problem: PaletteProblem, *, damping: float = DAMPING) -> PalettizedMatrix:
    """Give every weight an entry column by column, and spread each error over the columns still to come.

    Args:
        problem: must have a Hessian.
        damping: share of the mean diagonal added to it.

    Raises:
        VerificationError: the Hessian is missing, or not positive definite even when damped.
    """
    table = kmeans(problem).table

    def chosen(column: int, values: NDArray[np.float64]) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
        found = nearest(table, values.astype(np.float32).reshape(len(table), -1))
        real = np.take_along_axis(table, found.astype(np.intp), axis=1)
        return found.ravel(), real.ravel().astype(np.float64)

    indices = propagated(problem.weight, problem.hessian, damping, chosen)
    return PalettizedMatrix(indices.astype(np.uint8), table)
