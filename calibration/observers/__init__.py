"""Observers: from a tensor's histogram to the range that its integers cover."""

from collections.abc import Callable, Mapping

from pocketport.calibration.observers.base import Histogram, Observer
from pocketport.calibration.observers.entropy import Entropy
from pocketport.calibration.observers.min_max import MinMax
from pocketport.calibration.observers.mse import Mse
from pocketport.calibration.observers.percentile import Percentile
from pocketport.errors import UsageError
from pocketport.suggest import nearest

__all__ = ["EXTREMES", "OBSERVERS", "Histogram", "Observer", "make_observer"]

EXTREMES = "min_max"  # the observer that reads nothing but the extremes
OBSERVERS: Mapping[str, Callable[..., Observer]] = {
    EXTREMES: MinMax, "percentile": Percentile, "mse": Mse, "entropy": Entropy,
}  # fmt: skip


def make_observer(name: str, options: Mapping[str, float] | None = None) -> Observer:
    """The observer of that name with these options; UsageError with the nearest name when there is none."""
    if name not in OBSERVERS:
        raise UsageError(f"there is no observer {name!r}", where="calibration observer", fix=nearest(name, OBSERVERS))
    try:
        return OBSERVERS[name](**(options or {}))
    except TypeError as error:
        raise UsageError(
            f"wrong options {dict(options or {})}: {error}", where=f"observer {name}", fix="correct the options"
        ) from error
