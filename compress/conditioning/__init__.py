"""Conditioning: exact rewrites that make a float model easier to quantize, by name."""

from collections.abc import Callable, Mapping

from pocketport.compress.conditioning.awq import Awq
from pocketport.compress.conditioning.base import Rewrite
from pocketport.compress.conditioning.center_values import CenterValues
from pocketport.compress.conditioning.equalize import Equalize
from pocketport.compress.conditioning.fold_gain import FoldGain
from pocketport.compress.conditioning.reorder import Reorder
from pocketport.compress.conditioning.rotate import Rotate
from pocketport.compress.conditioning.rotate_online import RotateOnline
from pocketport.compress.conditioning.smoothquant import SmoothQuant
from pocketport.compress.conditioning.split_hidden import SplitHidden
from pocketport.errors import UsageError
from pocketport.suggest import nearest

__all__ = ["REWRITES", "Rewrite", "make_rewrite"]

REWRITES: Mapping[str, Callable[..., Rewrite]] = {
    "awq": Awq, "center_values": CenterValues, "equalize": Equalize, "fold_gain": FoldGain, "reorder": Reorder, "rotate": Rotate,
    "rotate_online": RotateOnline, "smoothquant": SmoothQuant, "split_hidden": SplitHidden,
}  # fmt: skip


def make_rewrite(name: str, options: Mapping[str, float | str] | None = None) -> Rewrite:
    """The rewrite of that name with these options.

    Raises:
        UsageError: there is no such rewrite or option, or an option is out of its range.
    """
    if name not in REWRITES:
        raise UsageError(f"there is no rewrite {name!r}", where="recipe, conditioning", fix=nearest(name, REWRITES))
    try:
        return REWRITES[name](**(options or {}))
    except TypeError as error:
        raise UsageError(
            f"wrong options {dict(options or {})}: {error}", where=f"recipe, {name}", fix="correct the options"
        ) from error
