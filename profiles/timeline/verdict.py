"""A request against its budget: which part and phase are to blame for what is over, and the cheapest change that would do."""

from collections.abc import Mapping
from dataclasses import dataclass

from pocketport.errors import UsageError
from pocketport.profiles.budget import Limit
from pocketport.profiles.gate import Check, Status, check, meets
from pocketport.profiles.measurement import Measurement
from pocketport.profiles.timeline.remedies import applied, remedies
from pocketport.profiles.timeline.residence import weight_bytes
from pocketport.profiles.timeline.timeline import Phase, Timeline, timeline
from pocketport.profiles.units import format_quantity

PHASES_OF: Mapping[str, tuple[str, ...]] = {
    "image_encode": ("encode",), "load_time": ("load",), "tokens_per_second": ("decode",),
    "time_to_first_token": ("load", "encode", "prefill"),
    "request_latency": ("load", "encode", "prefill", "decode"),
}  # fmt: skip
"""Figure → names of the phases that it is made of."""


@dataclass(frozen=True)
class Finding:
    """One limit.

    Attributes:
        check: the figure against it.
        blame: the part and phase that weigh most, where the figure is over; else "".
        remedy: the cheapest change that brings this figure within its limit and no other one over; "" where nothing is
            over, or where nothing that is known helps.
        then: the figure after it, None without a remedy.
    """

    check: Check
    blame: str = ""
    remedy: str = ""
    then: float | None = None


@dataclass(frozen=True)
class RequestVerdict:
    """All limits of one request on one device, and the worst status among them."""

    status: Status
    findings: tuple[Finding, ...]


def judge(
    followed: Timeline, limits: Mapping[str, Limit], name: str, known: Mapping[str, Measurement] | None = None
) -> RequestVerdict:
    """Hold a timeline against limits.

    Args:
        followed: the request.
        limits: by figure, see `Budget.request_limits`.
        name: of device and scenario, for the checks.
        known: figures that no timeline has, of a run: ``score_drop``.

    Raises:
        UsageError: there is no limit.
    """
    if not limits:
        raise UsageError("no limit applies to it", where=name, fix="name the device and the scenario in the budget")
    figures = {**(known or {}), **followed.figures}
    findings = []
    for figure, limit in limits.items():
        checked = check(name, figure, limit, figures.get(figure))
        over = checked.value is not None and not meets(figure, checked.value, limit.value)
        findings.append(_explained(checked, followed, limits, figures) if over else Finding(checked))
    order = [Status.PASS, Status.WARN, Status.FAIL]
    return RequestVerdict(max((f.check.status for f in findings), key=order.index), tuple(findings))


def _explained(
    checked: Check, followed: Timeline, limits: Mapping[str, Limit], figures: Mapping[str, Measurement]
) -> Finding:
    blame = _blame(checked.name, followed)
    if checked.name not in followed.figures:
        return Finding(checked, blame)
    kept = [n for n, limit in limits.items() if n in figures and meets(n, figures[n].value, limit.value)]
    for chosen in remedies(followed.model, followed.scenario, followed.setting):
        try:
            scenario, setting = applied(chosen, followed.scenario, followed.setting)
            then = timeline(followed.model, followed.handset, scenario, setting).figures
        except UsageError:  # nothing is known of that placement or scheme there
            continue
        if all(n not in then or meets(n, then[n].value, limits[n].value) for n in (checked.name, *kept)):
            words = "; ".join(change.what for change in chosen)
            return Finding(checked, blame, words, then[checked.name].value)
    return Finding(checked, blame)


def _blame(figure: str, followed: Timeline) -> str:
    if figure in ("peak_memory", "steady_memory"):
        memory = [p for p in followed.phases if figure == "peak_memory" or p.name == "decode"]
        return _heaviest(max(memory, key=lambda p: p.memory.total), followed)
    if figure == "app_size":
        sizes = {part: weight_bytes(followed.model, part, followed.setting) for part in followed.model.parts}
        part = max(sizes, key=lambda p: sizes[p])
        return f"{part}: {format_quantity(sizes[part], 'bytes')} as {followed.setting.schemes[part]}"
    names = PHASES_OF.get(figure, ())
    phases = [p for p in followed.phases if p.name in names]
    if not phases:
        return ""
    slowest = max(phases, key=lambda p: p.end_ms - p.start_ms)
    taken = slowest.end_ms - slowest.start_ms
    share = taken / sum(p.end_ms - p.start_ms for p in phases)
    paged = f", {slowest.paging_ms.value / 1e3:.1f} s of it paging" if slowest.paging_ms is not None else ""
    where = f" on the {slowest.unit}" if slowest.unit != "storage" else ""
    return f"{', '.join(slowest.parts)}: {slowest.name}{where}, {taken / 1e3:.2f} s, {share:.0%} of it{paged}"


def _heaviest(phase: Phase, followed: Timeline) -> str:
    """What weighs most in a phase's memory."""
    found = {"key-value cache": phase.memory.cache, "activations": phase.memory.activations}
    loaded = [part for part in followed.model.parts if _loaded(part, phase, followed)]
    found |= {f"weights of {part}": weight_bytes(followed.model, part, followed.setting) for part in loaded}
    what = max(found, key=lambda w: found[w])
    share = found[what] / max(phase.memory.total, 1)
    return f"{what} during {phase.title}: {format_quantity(found[what], 'bytes')}, {share:.0%} of it"


def _loaded(part: str, phase: Phase, followed: Timeline) -> bool:
    if not followed.setting.sequential:
        return True
    return (part == "language") == ("language" in phase.parts)
