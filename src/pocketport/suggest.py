"""The fix for a name that does not exist."""

import difflib
from collections.abc import Iterable

MOST_NAMES, FEW_NAMES = 50, 6  # that are listed whole; that stand for more


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean a or b?`` with up to three near names, or ``use one of …`` when none is near (not all of very many)."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if len(names) > MOST_NAMES:
        return f"use one of {len(names)}, e.g. {', '.join(names[:: len(names) // FEW_NAMES][:FEW_NAMES])}"
    return f"use one of {', '.join(names)}" if len(names) > 1 else f"use {names[0]}"
