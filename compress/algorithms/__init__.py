"""Weight algorithms by name."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from pocketport.compress.algorithms.base import RoundedWeight, WeightAlgorithm, WeightFormat, WeightProblem
from pocketport.compress.algorithms.gptq import gptq
from pocketport.compress.algorithms.kmeans import kmeans
from pocketport.compress.algorithms.mse import mse
from pocketport.compress.algorithms.palette import PaletteAlgorithm, PaletteProblem, PalettizedMatrix
from pocketport.compress.algorithms.palette_gptq import palette_gptq
from pocketport.compress.algorithms.rtn import rtn
from pocketport.errors import UsageError
from pocketport.suggest import nearest

__all__ = [
    "ALGORITHMS", "PALETTE_ALGORITHMS", "PaletteProblem", "PalettizedMatrix", "RoundedWeight", "WeightFormat", "WeightProblem",
    "palettize", "round_weight",
]  # fmt: skip

ALGORITHMS: Mapping[str, WeightAlgorithm] = {"rtn": rtn, "mse": mse, "gptq": gptq}
PALETTE_ALGORITHMS: Mapping[str, PaletteAlgorithm] = {"kmeans": kmeans, "gptq": palette_gptq}

P = TypeVar("P")
R = TypeVar("R")


def round_weight(algorithm: str, problem: WeightProblem, options: Mapping[str, float] | None = None) -> RoundedWeight:
    """Run an algorithm by name; UsageError for a name or an option that it does not have."""
    return _run(ALGORITHMS, algorithm, problem, options)


def palettize(algorithm: str, problem: PaletteProblem, options: Mapping[str, float] | None = None) -> PalettizedMatrix:
    """Run a palette's algorithm by name; UsageError for a name or an option that it does not have."""
    return _run(PALETTE_ALGORITHMS, algorithm, problem, options)


def _run(known: Mapping[str, Callable[..., R]], algorithm: str, problem: P, options: Mapping[str, float] | None) -> R:
    if algorithm not in known:
        raise UsageError(
            f"there is no algorithm {algorithm!r}", where="recipe, algorithm", fix=nearest(algorithm, known)
        )
    try:
        return known[algorithm](problem, **(options or {}))
    except TypeError as error:
        raise UsageError(
            f"wrong options: {error}", where=f"algorithm {algorithm}", fix="correct the options"
        ) from error
