"""The options of algorithms that round on samples, as recipes give them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from pocketport.errors import UsageError
from pocketport.suggest import nearest


@dataclass(frozen=True)
class SequentialMse:
    """Of ``sequential_mse``.

    Attributes:
        candidates: scales that are tried of each channel (or block), evenly from its whole range down.
    """

    candidates: int = 20


@dataclass(frozen=True)
class AdaRound:
    """Of ``adaround``.

    Attributes:
        iterations: steps of the optimizer for each layer.
        rows: of the layer's input in one step.
    """

    iterations: int = 1000
    rows: int = 512


@dataclass(frozen=True)
class Brecq:
    """Of ``brecq``.

    Attributes:
        iterations: steps of the optimizer for each block.
        samples: in one step.
    """

    iterations: int = 400
    samples: int = 2


@dataclass(frozen=True)
class SequentialGptq:
    """Of ``gptq`` where it has `propagation` or `sweeps`: each layer is rounded on what the rounded layers before it give.

    Attributes:
        damping: share of the Hessian's mean diagonal that is added to it.
        propagation: 0 … 1, how much of the error of earlier layers each weight makes up for.
        sweeps: rounds of scales by least squares and of coordinate descent over the integers after rounding.
    """

    damping: float = 0.01
    propagation: float = 0.0
    sweeps: int = 0


Options: TypeAlias = SequentialMse | AdaRound | Brecq | SequentialGptq

OPTIONS: Mapping[str, type[Options]] = {
    "adaround": AdaRound, "brecq": Brecq, "gptq": SequentialGptq, "sequential_mse": SequentialMse,
}  # fmt: skip
"""Of algorithms that round on samples; `gptq` is one of them only with the options that it has nowhere else."""

START: Mapping[str, str] = {"adaround": "mse", "brecq": "mse", "gptq": "mse", "sequential_mse": "rtn"}
"""The algorithms that the grids come from, and the integers until samples are there."""


def rounds_on_samples(algorithm: str, options: Mapping[str, float]) -> bool:
    """Whether an algorithm needs the samples themselves, not only statistics of them."""
    if algorithm == "gptq":
        return bool(options.get("propagation") or options.get("sweeps"))
    return algorithm in OPTIONS


def read_options(algorithm: str, options: Mapping[str, float]) -> Options:
    """Read a recipe's options.

    Raises:
        UsageError: there is no such option, or its value is out of range.
    """
    kind: Any = OPTIONS[algorithm]
    known = {f.name: f.type for f in fields(kind)}
    for name, value in options.items():
        if name not in known:
            fix = nearest(name, known)
            raise UsageError(f"{algorithm} has no option {name!r}", where="recipe, algorithm_options", fix=fix)
        least = {"damping": 1e-9, "propagation": 0, "sweeps": 0}.get(name, 1)
        if not least <= value <= (1 if name == "propagation" else 1e9):
            raise UsageError(
                f"{name}: {value:g} is out of range", where="recipe, algorithm_options",
                fix=f"give at least {least:g}" + (", at most 1" if name == "propagation" else ""),
            )  # fmt: skip
    made: Options = kind(**{n: v if known[n] is float else int(v) for n, v in options.items()})
    return made
