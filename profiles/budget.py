"""Budgets: what a model may cost on a target, from ``budget.yaml``.

::

    targets:
      "*":
        score_drop: 2 points
      qualcomm/*:
        time_to_first_token: 150 ms
        tokens_per_second: {limit: 20 tok/s, hard: false}

Patterns are shell-style on ``vendor/soc``. Every pattern that matches counts; the one further down wins for a figure
that two of them name. Version 2 adds requests, and limits by device and request (patterns again)::

    version: 2
    scenarios:
      photo: {image: 1344x1344, prompt_tokens: 32, answer_tokens: 128}
    devices:
      xiaomi-14-pro:
        photo: {time_to_first_token: 20 s, peak_memory: 6 GB}
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from pocketport.errors import InputError, PocketportError, UsageError
from pocketport.profiles.units import parse_quantity
from pocketport.suggest import nearest

KEYS: Mapping[int, tuple[str, ...]] = {1: ("targets", "version"), 2: ("targets", "version", "scenarios", "devices")}
REQUEST_KEYS = ("image", "prompt_tokens", "answer_tokens")
MOST_PIXELS, MOST_TOKENS = 16384, 1 << 20


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
    "load_time": Rule("ms"),
    "peak_memory": Rule("bytes"),
    "steady_memory": Rule("bytes"),
    "artifact_size": Rule("bytes"),
    "app_size": Rule("bytes"),
    "score_drop": Rule("points"),
    "npu_offload": Rule("share", floor=True),
}


@dataclass(frozen=True)
class Request:
    """What is asked of a multimodal model.

    Attributes:
        image: width and height in pixels; None: text alone.
        prompt_tokens: of text.
        answer_tokens: of the answer.
    """

    image: tuple[int, int] | None
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Budget:
    """Limits by pattern and figure, in the file's order.

    Attributes:
        targets: by pattern of the target.
        scenarios: requests by name.
        devices: by pattern of the device, then of the scenario.
    """

    targets: Mapping[str, Mapping[str, Limit]]
    scenarios: Mapping[str, Request] = field(default_factory=dict)
    devices: Mapping[str, Mapping[str, Mapping[str, Limit]]] = field(default_factory=dict)

    def request_limits(self, device: str, scenario: str) -> dict[str, Limit]:
        """The limits that hold for a request on a device (``xiaomi-14-pro``), by figure."""
        found: dict[str, Limit] = {}
        for pattern, scenarios in self.devices.items():
            for name, limits in scenarios.items():
                if fnmatchcase(device, pattern) and fnmatchcase(scenario, name):
                    found.update(limits)
        return found

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
    except OSError as error:
        raise InputError(f"it can't be read: {error.strerror}", where=str(path), fix="check the path") from error
    except UnicodeDecodeError as error:
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
    version = top.get("version", 1)
    if type(version) is not int or version not in KEYS:
        raise UsageError(f"version {version!r} is not known", where=where, fix=f"known: {', '.join(map(str, KEYS))}")
    for key in top:
        if key not in KEYS[version]:
            fix = "write version: 2 above it" if key in KEYS[2] else nearest(str(key), KEYS[version])
            raise UsageError(f"unknown key {key!r}", where=where, fix=fix)
    by_target = "targets" in top or "devices" not in top
    devices = _mapping(top["devices"], f"{where}: devices") if "devices" in top else {}
    scenarios = _mapping(top["scenarios"], f"{where}: scenarios") if "scenarios" in top else {}
    return Budget(
        _patterns(top.get("targets"), f"{where}: targets") if by_target else {},
        {str(n): _request(_mapping(v, f"{where}: {n}"), f"{where}: {n}") for n, v in scenarios.items()},
        {str(d): _patterns(v, f"{where}: {d}") for d, v in devices.items()},
    )


def _patterns(value: Any, where: str) -> dict[str, dict[str, Limit]]:
    return {str(p): _limits(_mapping(v, f"{where}: {p}"), f"{where}: {p}") for p, v in _mapping(value, where).items()}


def _request(entries: Mapping[str, Any], where: str) -> Request:
    for key in entries:
        if key not in REQUEST_KEYS:
            raise _unknown(key, REQUEST_KEYS, where)
    tokens = [entries.get("prompt_tokens", 32), entries.get("answer_tokens", 128)]
    if any(type(n) is not int or not 0 < n <= MOST_TOKENS for n in tokens):
        raise UsageError("a number of tokens is expected", where=where, fix="write prompt_tokens: 32")
    image = entries.get("image")
    return Request(None if image is None else parse_size(str(image), where), *tokens)


def parse_size(text: str, where: str) -> tuple[int, int]:
    """``1344x1344`` → (width, height); UsageError otherwise."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(s.isdecimal() and 0 < int(s) <= MOST_PIXELS for s in sides):
        raise UsageError(f"{text!r} is not an image size", where=where, fix="write it as 1344x1344")
    return int(sides[0]), int(sides[1])


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
