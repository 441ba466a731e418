"""``pocketport port``: the whole road in one command."""

import webbrowser
from typing import Annotated

import typer

from pocketport.commands.console import err, out, print_json
from pocketport.commands.options import (
    SAMPLES,
    Cache,
    Formats,
    Json,
    MemoryLimit,
    Out,
    Shapes,
    Targets,
    opened,
    parse_bytes,
    parse_shapes,
)
from pocketport.commands.summary import print_run
from pocketport.request import Request


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(port)


def port(
    source: Annotated[
        str, typer.Argument(help="`reference`, a checkpoint or ONNX folder, a .gguf, .onnx or .pt2 file.")
    ],
    out_dir: Out,
    target: Targets = None,
    format_: Formats = None,
    data: Annotated[
        str | None,
        typer.Option(
            help=".npz file or folder, a folder of images, or (for formats) a text, to calibrate and verify on."
        ),
    ] = None,
    shape: Shapes = None,
    recipe: Annotated[str, typer.Option(help="A named recipe or a YAML file.")] = "default",
    budget: Annotated[
        str | None, typer.Option(help="budget.yaml to gate against; `default` for the reference model's.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="read-text, ctc-recognition, agreement or segmentation (default: by family).")
    ] = None,
    calibration_samples: Annotated[
        int, typer.Option(min=1, help="Samples that ranges are taken from.", rich_help_panel=SAMPLES)
    ] = 64,
    task_samples: Annotated[
        int,
        typer.Option(min=1, help="Held-out samples of the task score on fast runtimes.", rich_help_panel=SAMPLES),
    ] = 200,
    emulated_task_samples: Annotated[
        int, typer.Option(min=1, help="The same on slow emulators.", rich_help_panel=SAMPLES)
    ] = 64,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    sequence_length: Annotated[
        int,
        typer.Option(
            min=8,
            help="Tokens of a calibration sequence, where weights are calibrated block by block.",
            rich_help_panel=SAMPLES,
        ),
    ] = 512,
    visual_weight: Annotated[
        float, typer.Option(min=0, help="What a vision token counts where a text token counts 1 (formats).")
    ] = 1.0,
    limit: MemoryLimit = None,
    cache: Cache = None,
    json_output: Json = False,
    open_report: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
) -> None:
    """Port a model: ingest, calibrate, quantize, compile, verify, profile, gate, report."""
    from pocketport.commands.formats import write_formats  # every stage, and torch: help and mistakes do without
    from pocketport.pipeline import run_until
    from pocketport.report.document import finish_run

    request = Request(
        source=source, shapes=parse_shapes(shape), recipe=recipe, targets=list(dict.fromkeys(target or [])), data=data, task=task,
        budget=budget, calibration_samples=calibration_samples, task_samples=task_samples,
        emulated_task_samples=emulated_task_samples, seed=seed, formats=list(dict.fromkeys(format_ or [])),
        sequence_length=sequence_length, visual_weight=visual_weight, memory_limit=parse_bytes(limit),
    )  # fmt: skip
    if request.formats:
        written = write_formats(request, out_dir, cache, quiet=json_output)
        if not request.targets:
            if json_output:
                print_json({"schema": "pocketport.formats/1", "formats": written})
            raise typer.Exit
    with opened(request, out_dir, cache, quiet=json_output) as context:
        document = finish_run(run_until(context, "profile"))
    if json_output:
        print_json(document.model_dump(by_alias=True))
    else:
        print_run(document)
        out.print(
            f"\n[bold]{out_dir / 'report.html'}[/] has the charts; [bold]{out_dir / 'run.json'}[/] has everything."
        )
    if open_report and not webbrowser.open((out_dir / "report.html").absolute().as_uri()):
        err.print(f"[dim]No browser here; open {out_dir / 'report.html'} yourself.[/]")
    raise typer.Exit(exit_code(document.verdict.status, [t.status for t in document.targets]))


def exit_code(verdict: str, statuses: list[str]) -> int:
    """0 fine, 1 a verdict failed, 2 a target could not be built (toolchain or environment)."""
    if verdict == "fail":
        return 1
    return 2 if any(s != "ok" for s in statuses) else 0
