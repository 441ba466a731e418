"""Budgets: what a model may cost on a target, from ``budget.yaml``.

::

    targets:
      "*":
        score_drop: 2 points
      qualcomm/*:
        time_to_first_token: 150 ms
        tokens_per_second: {limit: 20 tok/s, hard: false}

Patterns are shell-style on ``vendor/soc``. Every pattern that matches counts; the one further down wins for a figure
that two of them name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from pocketport.errors import InputError, PocketportError, UsageError
from pocketport.profiles.units import parse_quantity
from pocketport.suggest import nearest


@dataclass(frozen=True)
class Limit:
    """A limit on one figure.

    Attributes:
        value: in the figure's unit.
        hard: whether missing it fails the run; a soft limit warns.
    """

    value: float
    hard: bool = True


@dataclass(frozen=True)
class Rule:
    """How a figure is judged: its unit, and whether the limit is a floor (more is better) or a ceiling."""

    unit: str
    floor: bool = False


FIGURES: Mapping[str, Rule] = {
    "image_encode": Rule("ms"),
    "time_to_first_token": Rule("ms"),
    "tokens_per_second": Rule("tok/s", floor=True),
    "latency": Rule("ms"),
    "request_latency": Rule("ms"),
    "peak_memory": Rule("bytes"),
    "artifact_size": Rule("bytes"),
    "score_drop": Rule("points"),
    "npu_offload": Rule("share", floor=True),
}


@dataclass(frozen=True)
class Budget:
    """Limits by target pattern and figure, in the file's order."""

    targets: Mapping[str, Mapping[str, Limit]]

    def limits(self, target: str) -> dict[str, Limit]:
        """The limits that hold for ``vendor/soc[@sdk]``, by figure."""
        identity = target.partition("@")[0]
        found: dict[str, Limit] = {}
        for pattern, limits in self.targets.items():
            if fnmatchcase(identity, pattern):
                found.update(limits)
        return found


def load_budget(path: Path) -> Budget:
    """Read a budget file.

    Raises:
        InputError: it can't be read, or is no YAML.
        UsageError: an unknown key (with the nearest known one), or a limit in the wrong unit.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"not a readable budget: {error}", where=str(path), fix="check the path") from error
    return parse_budget(text, str(path))


def default_budget() -> Budget:
    """The reference model's budget, as shipped."""
    text = (resources.files("pocketport.profiles") / "default_budget.yaml").read_text(encoding="utf-8")
    return parse_budget(text, "default_budget.yaml")


def parse_budget(text: str, where: str) -> Budget:
    """Parse a budget's YAML; raises as `load_budget`."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {error}", where=where, fix="correct the file") from error
    top = _mapping(document, where)
    for key in top:
        if key != "targets":
            raise _unknown(key, ["targets"], where)
    patterns = _mapping(top.get("targets"), f"{where}: targets")
    return Budget({str(p): _limits(_mapping(v, f"{where}: {p}"), f"{where}: {p}") for p, v in patterns.items()})


def _limits(entries: Mapping[str, Any], where: str) -> dict[str, Limit]:
    found = {}
    for name, entry in entries.items():
        rule = FIGURES.get(name)
        if rule is None:
            raise _unknown(name, FIGURES, where)
        fields = _mapping(entry, f"{where}: {name}") if isinstance(entry, dict) else {"limit": entry}
        for key in fields:
            if key not in ("limit", "hard"):
                raise _unknown(key, ["limit", "hard"], f"{where}: {name}")
        hard = fields.get("hard", True)
        if not isinstance(hard, bool):
            raise UsageError(f"hard is {hard!r}", where=f"{where}: {name}", fix="write hard: true or hard: false")
        try:
            found[name] = Limit(parse_quantity(str(fields.get("limit", "")), rule.unit), hard)
        except ValueError as error:
            raise UsageError(
                str(error), where=f"{where}: {name}", fix="write a number and its unit, e.g. 200 ms"
            ) from error
    return found


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not value:
        raise UsageError(
            "a mapping with at least one entry is expected",
            where=where,
            fix="write targets, then a pattern such as qualcomm/*, then figures with their limits",
        )
    return value


def _unknown(key: object, known: Any, where: str) -> PocketportError:
    return UsageError(f"unknown key {key!r}", where=where, fix=nearest(str(key), known))
