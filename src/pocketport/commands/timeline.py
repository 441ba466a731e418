"""``pocketport profile MODEL --device PHONE --image 1344x1344``: one request of a multimodal model, phase by phase."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.text import Text

from pocketport.commands.console import MARKS, err, out, print_diagnostics, print_json, table
from pocketport.errors import UsageError
from pocketport.profiles.budget import Budget, load_budget, parse_size
from pocketport.profiles.device import slug
from pocketport.profiles.measurement import Measurement, Provenance
from pocketport.profiles.timeline.describe import describe, plan_image
from pocketport.profiles.timeline.description import PARTS, ModelDescription, Part
from pocketport.profiles.timeline.handset import Handset, find_configuration, find_handset
from pocketport.profiles.timeline.setting import (
    ANSWER_TOKENS,
    FLOAT_BITS,
    QUESTION_TOKENS,
    Scenario,
    Setting,
    Unit,
)
from pocketport.profiles.timeline.timeline import Phase, Timeline, timeline
from pocketport.profiles.timeline.verdict import RequestVerdict, judge
from pocketport.profiles.units import format_quantity
from pocketport.report.verdict import run_figures
from pocketport.run_document import load_document
from pocketport.suggest import nearest
from pocketport.targets.contract import Target

Image = Annotated[
    str | None, typer.Option("--image", help="Follow one request about an image of this size: 1344x1344.")
]
PromptTokens = Annotated[int, typer.Option(min=1, help="Tokens of the request's text.")]
AnswerTokens = Annotated[int, typer.Option(min=1, help="Tokens of its answer.")]
On = Annotated[
    list[str] | None, typer.Option("--on", help="Where a part runs: vision=npu, language=cpu; repeat for several.")
]
Encoded = Annotated[
    list[str] | None,
    typer.Option(
        "--weights", help="How a part's weights are encoded: language=q4_k_m, vision=fp16; repeat for several."
    ),
]
Engine = Annotated[str, typer.Option("--engine", help="llama.cpp's set-up: generic, native or tuned.")]
Resident = Annotated[bool, typer.Option("--resident", help="Load everything at once, release nothing.")]
CacheBits = Annotated[int, typer.Option("--cache-bits", help="Of a number in the key-value cache: 16, 8 or 4.")]
BudgetFile = Annotated[
    Path | None, typer.Option("--budget", help="budget.yaml with scenarios: hold every one of them against its limits.")
]
ScoresOf = Annotated[
    Path | None,
    typer.Option(
        "--run", help="A finished run of this model: its score_drop is held against the budget too.", file_okay=False
    ),
]
UNITS = ("cpu", "npu")
WIDTHS = (16, 8, 4)  # of a number in the cache
WIDTH = 32  # characters of a bar as long as the request


def follow_request(
    source: str,
    device: str,
    *,
    image: str | None,
    prompt_tokens: int = QUESTION_TOKENS,
    answer_tokens: int = ANSWER_TOKENS,
    on: Sequence[str] = (),
    weights: Sequence[str] = (),
    engine: str = "tuned",
    resident: bool = False,
    cache_bits: int = FLOAT_BITS,
    budget: Path | None = None,
    run: Path | None = None,
    json_output: bool = False,
) -> None:
    """Print the timeline of a request (with a budget, of each of its scenarios), and leave with 1 where a limit fails.

    Raises:
        UsageError: an option is wrong, or nothing is known of the device.
        InputError: the model or the budget is damaged.
    """
    if run is not None and budget is None:
        raise UsageError("only a budget asks for scores", where="--run", fix="give --budget too")
    if cache_bits not in WIDTHS:
        raise UsageError(f"{cache_bits} bits", where="--cache-bits", fix="give 16, 8 or 4")
    handset = find_handset(device)
    setting = replace(chosen_setting(on, weights, engine, resident), cache_bits=cache_bits)
    size = None if image is None else parse_size(image, "--image")
    limits = None if budget is None else load_budget(budget)
    with err.status(f"the shapes of {source}"):  # of a large preset, the first time, a minute
        model = describe(source)
    if limits is None:
        scenario = planned(source, size, prompt_tokens, answer_tokens)
        followed = timeline(model, handset, scenario, setting)
        if json_output:
            print_json(document(followed))
        else:
            print_timeline(followed)
        return
    known = {} if run is None else scores(run, handset)
    verdicts = judged(source, model, handset, setting, limits, known)
    if not verdicts:
        raise UsageError(
            f"it has no scenario with limits for {slug(handset.name)}",
            where=str(budget), fix="write version: 2, scenarios and devices",
        )  # fmt: skip
    if json_output:
        print_json({"schema": "pocketport.request-verdicts/1", "requests": [
            {"scenario": name, **document(followed), "verdict": verdict_document(verdict)}
            for name, (followed, verdict) in verdicts.items()
        ]})  # fmt: skip
    else:
        for name, (followed, verdict) in verdicts.items():
            print_timeline(followed)
            print_verdict(name, verdict)
    raise typer.Exit(1 if any(verdict.status == "fail" for _, verdict in verdicts.values()) else 0)


def chosen_setting(on: Sequence[str], weights: Sequence[str], engine: str, resident: bool) -> Setting:
    """The `Setting` that options describe; UsageError where one is wrong."""
    find_configuration(engine)
    setting = replace(Setting(), configuration=engine, sequential=not resident)
    for text in on:
        part, unit = _pair(text, "--on")
        if unit not in UNITS:
            raise UsageError(f"no unit {unit!r}", where="--on", fix=nearest(unit, UNITS))
        setting = setting.on(cast(Unit, unit), part)
    for text in weights:
        part, scheme = _pair(text, "--weights")
        setting = setting.encoded(scheme, part)
    return setting


def _pair(text: str, where: str) -> tuple[Part, str]:
    part, _, value = text.partition("=")
    if part not in PARTS or not value:
        raise UsageError(f"{text!r} names no part", where=where, fix=f"write part=value; parts: {', '.join(PARTS)}")
    return part, value


def planned(source: str, image: tuple[int, int] | None, prompt_tokens: int, answer_tokens: int) -> Scenario:
    """The request; its image is cut as the model's family does."""
    plan = None if image is None else plan_image(source, image)
    return Scenario(plan, prompt_tokens, answer_tokens)


def scores(run: Path, handset: Handset) -> dict[str, Measurement]:
    """``score_drop`` of a finished run: on the device's chip, or on the run's only target.

    Raises:
        UsageError: no such run, it has several targets and none is the device's, or it was not scored.
        InputError: it is damaged.
    """
    targets = load_document(run).targets
    fitting = [t for t in targets if str(Target.parse(t.id)).partition("@")[0] == handset.target]
    found = fitting[0] if fitting else targets[0] if len(targets) == 1 else None
    if found is None:
        names = ", ".join(t.id for t in targets) or "none"
        raise UsageError(f"its targets are {names}", where=str(run), fix=f"port the model to {handset.target}")
    drop = run_figures(found).get("score_drop")
    if drop is None:
        raise UsageError(f"{found.id} was not scored", where=str(run), fix="port the model again, see its diagnostics")
    provenance = Provenance(drop.provenance.kind, f"{run}, {found.id}: {drop.provenance.detail}")
    return {"score_drop": replace(drop, provenance=provenance)}


def judged(
    source: str, model: ModelDescription, handset: Handset, setting: Setting, budget: Budget,
    known: Mapping[str, Measurement],
) -> dict[str, tuple[Timeline, RequestVerdict]]:  # fmt: skip
    """Every scenario of a budget that has limits for the device, with its verdict; `known`: what no timeline has."""
    found = {}
    for name, request in budget.scenarios.items():
        limits = budget.request_limits(slug(handset.name), name)
        if limits:
            scenario = planned(source, request.image, request.prompt_tokens, request.answer_tokens)
            followed = timeline(model, handset, scenario, setting)
            found[name] = (followed, judge(followed, limits, f"{slug(handset.name)}, {name}", known))
    return found


def document(followed: Timeline) -> dict[str, Any]:
    """``pocketport.timeline/1``."""
    image = followed.scenario.image
    return {
        "schema": "pocketport.timeline/1",
        "model": followed.model.name,
        "device": followed.handset.name,
        "request": {
            "image": None if image is None else image.model_dump(),
            "prompt_tokens": followed.scenario.tokens, "answer_tokens": followed.scenario.answer_tokens,
        },
        "setting": {
            "weights": dict(followed.setting.schemes), "units": dict(followed.setting.units),
            "engine": followed.setting.configuration, "sequential": followed.setting.sequential,
            "context": followed.setting.context, "cache_bits": followed.setting.cache_bits,
        },
        "phases": [
            {
                "name": p.name, "parts": list(p.parts), "unit": p.unit, "start_ms": p.start_ms, "end_ms": p.end_ms,
                "paged_bytes": p.paged_bytes, "memory": {
                    "weights": p.memory.weights, "cache": p.memory.cache, "activations": p.memory.activations,
                    "total": p.memory.total,
                },
            }
            for p in followed.phases
        ],
        "figures": {name: _figure(m) for name, m in followed.figures.items()},
        "diagnostics": [d.to_json() for d in followed.diagnostics],
    }  # fmt: skip


def _figure(m: Measurement) -> dict[str, Any]:
    return {
        "value": m.value, "unit": m.unit, "low": m.low, "high": m.high,
        "provenance": m.provenance.kind.value, "detail": m.provenance.detail,
    }  # fmt: skip


def verdict_document(verdict: RequestVerdict) -> dict[str, Any]:
    """Status and findings."""
    return {
        "status": verdict.status.value,
        "findings": [
            {
                "figure": f.check.name, "limit": f.check.limit, "value": f.check.value, "unit": f.check.unit,
                "status": f.check.status.value, "hard": f.check.hard, "reason": f.check.reason,
                "blame": f.blame, "remedy": f.remedy, "then": f.then,
            }
            for f in verdict.findings
        ],
    }  # fmt: skip


def print_timeline(followed: Timeline) -> None:
    """Phases as bars along time, with the memory in use; then the figures."""
    total = max(followed.phases[-1].end_ms, 1e-9)
    scenario = followed.scenario
    about = f"{scenario.tokens} tokens in, {scenario.answer_tokens} out"
    if scenario.image is not None:
        about = f"{scenario.image.width}x{scenario.image.height} in {scenario.views} views, {about}"
    shown = table(
        f"{followed.model.name} on {followed.handset.name}: {about}", "phase", "on", "time", "paging", "memory", "", right=(2, 3, 4)
    )  # fmt: skip
    for phase in followed.phases:
        paging = "" if phase.paging_ms is None else f"{phase.paging_ms.value / 1e3:.2f} s"
        shown.add_row(
            phase.title, phase.unit, f"{phase.ms.value / 1e3:.2f} s", paging,
            format_quantity(phase.memory.total, "bytes"), _bar(phase, total),
        )  # fmt: skip
    out.print(shown)
    figures = table("", "figure", "predicted", "interval", right=(1, 2))
    for name, m in followed.figures.items():
        interval = ""
        if m.low is not None and m.high is not None:
            interval = f"{format_quantity(m.low, m.unit)} to {format_quantity(m.high, m.unit)}"
        figures.add_row(name.replace("_", " "), format_quantity(m.value, m.unit), interval)
    out.print(figures)
    print_diagnostics(followed.diagnostics)


def _bar(phase: Phase, total: float) -> Text:
    start = round(WIDTH * phase.start_ms / total)
    length = round(WIDTH * phase.end_ms / total) - start
    return Text(" " * start + "█" * length if length else " " * start + "▏")


def print_verdict(name: str, verdict: RequestVerdict) -> None:
    """Every limit; under those that are missed what is to blame, and what would help."""
    shown = table(f"{name} against its budget", "", "figure", "limit", "value", "why", right=(2, 3))
    for finding in verdict.findings:
        c = finding.check
        value = "" if c.value is None else format_quantity(c.value, c.unit)
        limit = format_quantity(c.limit, c.unit)
        shown.add_row(MARKS[c.status], c.name.replace("_", " "), limit, value, c.reason)
        if finding.blame:
            shown.add_row("", "", "", "", Text(f"to blame: {finding.blame}", style="dim"))
        if finding.remedy and finding.then is not None:
            then = format_quantity(finding.then, c.unit)
            shown.add_row("", "", "", "", Text(f"cheapest: {finding.remedy} → {then}", style="dim"))
        elif finding.blame:
            shown.add_row("", "", "", "", Text("nothing known here would meet it", style="dim"))
    out.print(shown)
