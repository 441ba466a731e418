"""``pocketport profile``: what a model costs on a device: a finished run's stage, or a model that was never compiled."""

from pathlib import Path
from typing import Annotated

import typer

from pocketport.commands.console import out, print_diagnostics, print_json, table
from pocketport.commands.options import Cache, Json, Shapes, parse_shapes
from pocketport.commands.timeline import (
    AnswerTokens,
    BudgetFile,
    CacheBits,
    Encoded,
    Engine,
    Image,
    On,
    PromptTokens,
    Resident,
    ScoresOf,
    follow_request,
)
from pocketport.compress.synthesis.preset import preset_names
from pocketport.errors import UsageError
from pocketport.latency import LatencyReport, predict_latency
from pocketport.request import Request


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(profile)


def profile(
    source: Annotated[str, typer.Argument(help="A run's directory; with --device any model, e.g. an .onnx file.")],
    device: Annotated[
        str | None, typer.Option(help="A phone or chip, e.g. galaxy-s25 (`pocketport devices list`).")
    ] = None,
    precision: Annotated[str, typer.Option(help="float, w8a8, w8a16 or w4a16.")] = "float",
    runtime: Annotated[str, typer.Option(help="qnn_dlc, qnn_context_binary, onnx or tflite.")] = "qnn_dlc",
    quick: Annotated[bool, typer.Option("--quick", help="Only look at the graph; don't ask the compiler.")] = False,
    shape: Shapes = None,
    image: Image = None,
    prompt_tokens: PromptTokens = 32,
    answer_tokens: AnswerTokens = 128,
    on: On = None,
    weights: Encoded = None,
    engine: Engine = "tuned",
    resident: Resident = False,
    cache_bits: CacheBits = 16,
    budget: BudgetFile = None,
    run: ScoresOf = None,
    cache: Cache = None,
    json_output: Json = False,
) -> None:
    """Measure (x86) or predict (NPUs) latency and memory of a run; with --device, latency of a float model.

    With --image or --budget, or of a preset, one request of a multimodal model is followed, phase by phase.
    """
    if device is None:
        from pocketport.commands.stages import continue_run  # imports every stage, which a prediction does without

        directory = Path(source)
        if not directory.is_dir():
            raise UsageError("not a run's directory", where=source, fix="name a --device to predict a model's latency")
        continue_run(Request.load(directory), directory, "profile", cache, json_output)
        return
    if image is not None or budget is not None or source in preset_names():
        follow_request(
            source, device, image=image, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens, on=on or (),
            weights=weights or (), engine=engine, resident=resident, cache_bits=cache_bits, budget=budget, run=run,
            json_output=json_output,
        )  # fmt: skip
        return
    report = predict_latency(
        source, device, precision=precision, runtime=runtime, shapes=parse_shapes(shape), quick=quick
    )
    if json_output:
        print_json(report.to_json())
        return
    _print(source, report)


def _print(source: str, report: LatencyReport) -> None:
    title = f"{source} on {report.device.name}, {report.precision}, {report.runtime}"
    shown = table(title, "component", "latency", "90 % interval", "predictor", right=(1, 2))
    for c in report.components:
        p = c.chosen
        shown.add_row(c.name, f"{p.ms:.2f} ms", f"{p.low:.2f} to {p.high:.2f} ms", p.predictor)
    out.print(shown)
    for c in report.components:
        out.print(f"{c.name}: {c.chosen.evidence}")
        for warning in c.chosen.warnings:
            out.print(f"[yellow]{c.name}: {warning}[/]")
    print_diagnostics(list(report.diagnostics))
