"""Weight algorithms by name."""

from collections.abc import Mapping

from pocketport.compress.algorithms.base import RoundedWeight, WeightAlgorithm, WeightFormat, WeightProblem
from pocketport.compress.algorithms.gptq import gptq
from pocketport.compress.algorithms.mse import mse
from pocketport.compress.algorithms.rtn import rtn
from pocketport.errors import UsageError
from pocketport.suggest import nearest

__all__ = ["ALGORITHMS", "RoundedWeight", "WeightFormat", "WeightProblem", "round_weight"]

ALGORITHMS: Mapping[str, WeightAlgorithm] = {"rtn": rtn, "mse": mse, "gptq": gptq}


def round_weight(algorithm: str, problem: WeightProblem, options: Mapping[str, float] | None = None) -> RoundedWeight:
    """Run an algorithm by name; UsageError for a name or an option that it does not have."""
    if algorithm not in ALGORITHMS:
        raise UsageError(
            f"there is no algorithm {algorithm!r}", where="recipe, algorithm", fix=nearest(algorithm, ALGORITHMS)
        )
    try:
        return ALGORITHMS[algorithm](problem, **(options or {}))
    except TypeError as error:
        raise UsageError(
            f"wrong options: {error}", where=f"algorithm {algorithm}", fix="correct the options"
        ) from error
