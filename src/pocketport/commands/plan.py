"""``pocketport plan``: what every tensor will become, in how many bytes, how long it will take; before it is done."""

from collections import defaultdict
from dataclasses import asdict
from math import prod
from typing import Annotated, Any

import typer

from pocketport.commands.console import out, print_diagnostics, print_json, table
from pocketport.commands.options import Formats, Json, MemoryLimit, Targets, parse_bytes
from pocketport.compress.blockwise.estimate import Estimate, estimate
from pocketport.compress.formats.contract import WeightPlan
from pocketport.compress.planning.plan import Plan
from pocketport.compress.recipe import load_recipe
from pocketport.diagnostics import Diagnostic
from pocketport.errors import UsageError
from pocketport.profiles.units import format_quantity
from pocketport.request import Request
from pocketport.stages.calibrate import float_bytes
from pocketport.stages.quantize import plan_targets
from pocketport.stages.weights import WeightJob, memory_limit, plan_formats


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(plan)


def plan(
    source: Annotated[
        str, typer.Argument(help="`reference`, a checkpoint or ONNX folder, a .gguf, .onnx or .pt2 file.")
    ],
    target: Targets = None,
    format_: Formats = None,
    recipe: Annotated[str, typer.Option(help="A named recipe or a YAML file.")] = "default",
    calibration_samples: Annotated[int, typer.Option(min=1, help="Calibration sequences.")] = 64,
    sequence_length: Annotated[int, typer.Option(min=8, help="Tokens of a calibration sequence.")] = 512,
    limit: MemoryLimit = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor, not only sums.")] = False,
    json_output: Json = False,
) -> None:
    """Show what would be done to every tensor: schemes, bytes, memory, time, and what a target would refuse."""
    if not target and not format_:
        raise UsageError(
            "there is nothing to plan for",
            where="plan",
            fix="name a --target (qualcomm/sm8650) or a --format (gguf:q4_k_m)",
        )
    request = Request(
        source=source, targets=target or [], formats=format_ or [], recipe=recipe, sequence_length=sequence_length,
        calibration_samples=calibration_samples, memory_limit=parse_bytes(limit),
    )  # fmt: skip
    jobs = plan_formats(request) if request.formats else []
    estimates = {job.label: estimate_of(job, request) for job in jobs}
    plans: dict[str, Plan] = {}
    findings: dict[str, tuple[Diagnostic, ...]] = {}
    rounding: dict[str, Estimate] = {}
    if request.targets:
        plans, findings, rounding = plan_targets(request)
    if json_output:
        print_json(_document(jobs, estimates, plans, findings, rounding))
        return
    for job in jobs:
        print_job(job, estimates[job.label], tensors=tensors)
    conditioning = [step.rewrite for step in load_recipe(recipe).conditioning]
    if conditioning:
        out.print(f"before it is calibrated, the float model is conditioned: {', '.join(conditioning)}")
    for text, one in plans.items():
        _print_target(text, one)
        if text in rounding:
            out.print(f"rounding on samples: {_taken(rounding[text])}")
        print_diagnostics(list(findings[text]))
    if plans:
        needed = max(map(float_bytes, plans.values()))
        out.print(f"calibrating holds the float graphs: at least {_size(needed)} of memory")


def estimate_of(job: WeightJob, request: Request) -> Estimate:
    """Seconds and peak memory of quantizing, from a quick benchmark of this machine."""
    tokens = 0 if job.sequences is None else job.sequences.rows
    return estimate([p for p in job.plans if p.quantized], tokens, memory_limit(request))


def print_job(job: WeightJob, estimated: Estimate, *, tensors: bool) -> None:
    """One format's plan as tables."""
    shown = table(
        f"{job.bundle.name} → {job.label}", "component", "scheme", "algorithm", "tensors", "parameters", "before", "after",
        right=(3, 4, 5, 6),
    )  # fmt: skip
    for (component, scheme, algorithm), plans in _grouped(job.plans).items():
        shown.add_row(
            component or "(host)", scheme, algorithm, str(len(plans)), f"{sum(prod(p.shape) for p in plans):,}",
            _size(sum(p.bytes_before for p in plans)), _size(sum(p.bytes_after for p in plans)),
        )  # fmt: skip
    parameters = sum(prod(p.shape) for p in job.plans)
    shown.add_row(
        "[bold]all[/]", "", "", str(len(job.plans)), f"[bold]{parameters:,}[/]",
        f"[bold]{_size(sum(p.bytes_before for p in job.plans))}[/]", f"[bold]{_size(sum(p.bytes_after for p in job.plans))}[/]",
    )  # fmt: skip
    out.print(shown)
    if tensors:
        listed = table("tensors", "tensor", "shape", "scheme", "algorithm", "why", "after", right=(5,))
        for p in job.plans:
            listed.add_row(p.tensor, "×".join(map(str, p.shape)), p.scheme, p.algorithm, p.why, _size(p.bytes_after))
        out.print(listed)
    out.print(f"{_taken(estimated)}\n")


def _taken(estimated: Estimate) -> str:
    seconds, memory = _duration(estimated.seconds), _size(estimated.peak_bytes)
    return f"about {seconds}, peak memory about {memory} [dim]({estimated.basis})[/]"


def _grouped(plans: list[WeightPlan]) -> dict[tuple[str, str, str], list[WeightPlan]]:
    groups: defaultdict[tuple[str, str, str], list[WeightPlan]] = defaultdict(list)
    for p in plans:
        groups[p.component, p.scheme, p.algorithm].append(p)
    return dict(sorted(groups.items()))


def _print_target(text: str, plan: Plan) -> None:
    shown = table(
        f"→ {text}", "component", "scheme", "tensors", "integers", "float32", "as planned", right=(2, 3, 4, 5)
    )
    for component in plan:
        quantized = sum(t.quantized for t in component.tensors)
        shown.add_row(
            component.component, component.scheme, str(len(component.tensors)), str(quantized),
            _size(component.bytes_before), _size(component.bytes_after),
        )  # fmt: skip
    out.print(shown)
    if plan.cache is not None:
        before, after = _size(plan.cache.bytes_before), _size(plan.cache.bytes_after)
        out.print(f"key-value cache: {plan.cache.name}, {after} ({before} in float32): {plan.cache.why}")


def _document(
    jobs: list[WeightJob],
    estimates: dict[str, Estimate],
    plans: dict[str, Plan],
    findings: dict[str, tuple[Diagnostic, ...]],
    rounding: dict[str, Estimate],
) -> dict[str, Any]:
    return {
        "schema": "pocketport.plan/1",
        "formats": [
            {
                "format": job.label,
                "estimate": asdict(estimates[job.label]),
                "bytes_before": sum(p.bytes_before for p in job.plans),
                "bytes_after": sum(p.bytes_after for p in job.plans),
                "tensors": [asdict(p) for p in job.plans],
            }
            for job in jobs
        ],
        "targets": {
            text: {
                "plan": one.to_json(),
                "diagnostics": [d.to_json() for d in findings[text]],
                "estimate": asdict(rounding[text]) if text in rounding else None,
            }
            for text, one in plans.items()
        },
    }


def _size(count: int) -> str:
    return format_quantity(count, "bytes")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
