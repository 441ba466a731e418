"""Quantities as people write them: ``200 ms``, ``64 MB``, ``2 points``, ``95 %``."""

import re
from collections.abc import Mapping

# written unit → (unit of Measurements, factor)
UNITS: Mapping[str, tuple[str, float]] = {
    "us": ("ms", 1e-3), "µs": ("ms", 1e-3), "ms": ("ms", 1.0), "s": ("ms", 1e3),
    "B": ("bytes", 1.0), "bytes": ("bytes", 1.0), "kB": ("bytes", 1e3), "KB": ("bytes", 1e3), "MB": ("bytes", 1e6), "GB": ("bytes", 1e9),
    "KiB": ("bytes", 2.0**10), "MiB": ("bytes", 2.0**20), "GiB": ("bytes", 2.0**30),
    "tok/s": ("tok/s", 1.0), "points": ("points", 1.0), "point": ("points", 1.0),
    "%": ("share", 0.01), "share": ("share", 1.0),
}  # fmt: skip
_QUANTITY = re.compile(r"\s*(?P<number>[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(?P<unit>\S+)\s*")


def parse_quantity(text: str, unit: str) -> float:
    """The number that `text` says, in `unit` (a Measurement's).

    Raises:
        ValueError: `text` is no quantity, or one of another kind.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None or UNITS.get(match["unit"], ("", 0.0))[0] != unit:
        accepted = ", ".join(written for written, (kind, _) in UNITS.items() if kind == unit)
        raise ValueError(f"{text!r} is not a number with one of the units {accepted}")
    return float(match["number"]) * UNITS[match["unit"]][1]


def format_quantity(value: float, unit: str) -> str:
    """`value` for a person to read; three significant digits."""
    if unit == "bytes":
        for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.0f} B"
    if unit == "share":
        return f"{100 * value:.3g} %"
    return f"{_significant(value)} {unit}"


def _significant(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
