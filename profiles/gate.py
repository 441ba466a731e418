"""The gate: figures against a budget, one verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from pocketport.errors import UsageError
from pocketport.profiles.budget import FIGURES, Budget, Limit
from pocketport.profiles.measurement import Measurement, ProvenanceKind
from pocketport.profiles.units import format_quantity


class Status(StrEnum):
    """Of a check and of the whole: a WARN does not fail a run."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One figure of one target against its limit.

    Attributes:
        target: ``vendor/soc``.
        name: the figure.
        limit: in the figure's unit.
        value: the figure, None if nobody could say.
        unit: of both.
        provenance: kind of the figure's provenance, None if there is no figure.
        status: the outcome.
        hard: whether the limit is a hard one.
        reason: in a sentence.
        scenario: the request that the figure is of; "" where it is of the run.
    """

    target: str
    name: str
    limit: float
    value: float | None
    unit: str
    provenance: str | None
    status: Status
    hard: bool
    reason: str
    scenario: str = ""


@dataclass(frozen=True)
class RequestFigures:
    """What one of a budget's requests costs on one device.

    Attributes:
        device: as budgets name it: a phone, or ``vendor/soc``.
        scenario: the request's name.
        figures: by name.
        missing: why figures are missing, "" where none is.
    """

    device: str
    scenario: str
    figures: Mapping[str, Measurement]
    missing: str = ""


@dataclass(frozen=True)
class Verdict:
    """All checks, and the worst status among them."""

    status: Status
    checks: tuple[Check, ...]


def gate(
    budget: Budget, figures: Mapping[str, Mapping[str, Measurement]], requests: Sequence[RequestFigures] = ()
) -> Verdict:
    """Judge a run.

    A figure over a hard limit fails, over a soft one warns. A figure that has a limit and is missing counts as over
    it. A predicted figure whose interval holds the limit warns: nobody can tell. Others are judged by their value.

    Args:
        budget: the limits.
        figures: target id → figure name → Measurement.
        requests: figures of the budget's requests.

    Raises:
        UsageError: no limit of the budget concerns any target or request of the run, so there is nothing to say.
    """
    checks = [
        check(target, name, limit, known.get(name))
        for target, known in figures.items()
        for name, limit in budget.limits(target).items()
    ]
    checks += [
        replace(check(r.device, name, limit, r.figures.get(name), r.missing), scenario=r.scenario)
        for r in requests
        for name, limit in budget.request_limits(r.device, r.scenario).items()
    ]
    if not checks:
        raise UsageError(
            f"no limit applies to {', '.join(figures) or 'an empty run'}",
            where=f"budget with patterns {', '.join((*budget.targets, *budget.devices))}",
            fix="name the run's targets in the budget",
        )
    order = [Status.PASS, Status.WARN, Status.FAIL]
    return Verdict(max((c.status for c in checks), key=order.index), tuple(checks))


def meets(name: str, value: float, limit: float) -> bool:
    """Whether a figure's value is within its limit, be that a floor or a ceiling."""
    return _meets(value, limit, FIGURES[name].floor)


def check(target: str, name: str, limit: Limit, figure: Measurement | None, missing: str = "") -> Check:
    """One figure against its limit; see `gate`. `missing` says why there may be no figure."""
    rule = FIGURES[name]
    missed = Status.FAIL if limit.hard else Status.WARN
    bound = format_quantity(limit.value, rule.unit)
    if figure is None:
        reason = f"no figure to hold against {bound}{': ' if missing else ''}{missing}"
        return Check(target, name, limit.value, None, rule.unit, None, missed, limit.hard, reason)
    predicted = figure.provenance.kind is ProvenanceKind.PREDICTED
    low = figure.low if predicted and figure.low is not None else figure.value
    high = figure.high if predicted and figure.high is not None else figure.value
    worst, best = (low, high) if rule.floor else (high, low)
    status, reason = Status.PASS, f"{_side(rule.floor, True)} {bound}"
    if not _meets(best, limit.value, rule.floor):
        status, reason = missed, f"{_side(rule.floor, False)} {bound}"
    elif not _meets(worst, limit.value, rule.floor):
        status = Status.WARN
        reason = (
            f"{bound} lies within its interval, {format_quantity(low, rule.unit)} to {format_quantity(high, rule.unit)}"
        )
    return Check(
        target,
        name,
        limit.value,
        figure.value,
        rule.unit,
        figure.provenance.kind.value,
        status,
        limit.hard,
        reason,
    )


def _meets(value: float, limit: float, floor: bool) -> bool:
    return value >= limit if floor else value <= limit


def _side(floor: bool, met: bool) -> str:
    return "at least" if floor and met else "within" if met else "below" if floor else "over"
