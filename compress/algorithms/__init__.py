"""Weight algorithms by name."""

import difflib
from collections.abc import Mapping

from pocketport.compress.algorithms.base import RoundedWeight, WeightAlgorithm, WeightFormat, WeightProblem
from pocketport.compress.algorithms.gptq import gptq
from pocketport.compress.algorithms.mse import mse
from pocketport.compress.algorithms.rtn import rtn
from pocketport.errors import UsageError

__all__ = ["ALGORITHMS", "RoundedWeight", "WeightFormat", "WeightProblem", "round_weight"]

ALGORITHMS: Mapping[str, WeightAlgorithm] = {"rtn": rtn, "mse": mse, "gptq": gptq}


def round_weight(algorithm: str, problem: WeightProblem, options: Mapping[str, float] | None = None) -> RoundedWeight:
    """Run an algorithm by name; UsageError for a name or an option that it does not have."""
    if algorithm not in ALGORITHMS:
        near = difflib.get_close_matches(algorithm, ALGORITHMS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(ALGORITHMS)}"
        raise UsageError(f"there is no algorithm {algorithm!r}", where="recipe, algorithm", fix=hint)
    try:
        return ALGORITHMS[algorithm](problem, **(options or {}))
    except TypeError as error:
        raise UsageError(
            f"wrong options: {error}", where=f"algorithm {algorithm}", fix="correct the options"
        ) from error
