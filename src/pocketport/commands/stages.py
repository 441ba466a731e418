"""The road's stages as commands. Run one by one on a directory they give the same bytes as `port`."""

from pathlib import Path
from typing import Annotated

import typer

from pocketport.commands.console import out, print_diagnostics, print_json, table
from pocketport.commands.options import Cache, Json, Out, RunDirectory, Shapes, Targets, opened, parse_shapes
from pocketport.pipeline import Run, run_until
from pocketport.profiles.units import format_quantity
from pocketport.request import Request
from pocketport.stages.compile import load_compiled
from pocketport.stages.verify import load_verified


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (ingest, calibrate, quantize, compile_, verify):
        app.command(name=command.__name__.rstrip("_"))(command)


def ingest(
    source: Annotated[
        str, typer.Argument(help="`reference`, a checkpoint or ONNX folder, a .gguf, .onnx or .pt2 file.")
    ],
    out_dir: Out,
    shape: Shapes = None,
    cache: Cache = None,
    json_output: Json = False,
) -> None:
    """Read a model into a bundle of components, and check that they compute what the original does."""
    request = Request(source=source, shapes=parse_shapes(shape))
    with opened(request, out_dir, cache, quiet=json_output) as context:
        run = run_until(context, "ingest")
    _report(run, json_output)


def calibrate(
    directory: RunDirectory,
    data: Annotated[str | None, typer.Option(help=".npz file or folder, or a folder of images.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples that ranges are taken from.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    target: Targets = None,
    cache: Cache = None,
    json_output: Json = False,
) -> None:
    """Collect activation statistics through the whole float chain."""
    request = Request.load(directory).model_copy(update={"calibration_samples": samples, "seed": seed})
    continue_run(_with(request, target, data=data), directory, "calibrate", cache, json_output)


def quantize(
    directory: RunDirectory,
    target: Targets = None,
    recipe: Annotated[
        str | None, typer.Option(help="A named recipe or a YAML file (default: as asked for before, or `default`).")
    ] = None,
    cache: Cache = None,
    json_output: Json = False,
) -> None:
    """Make the pivot (QDQ ONNX) for each target."""
    continue_run(_with(Request.load(directory), target, recipe=recipe), directory, "quantize", cache, json_output)


def compile_(directory: RunDirectory, target: Targets = None, cache: Cache = None, json_output: Json = False) -> None:
    """Compile the pivot with each vendor's toolchain."""
    continue_run(_with(Request.load(directory), target), directory, "compile", cache, json_output)


def verify(
    directory: RunDirectory,
    task: Annotated[
        str | None, typer.Option(help="read-text, ctc-recognition, agreement or segmentation (default: by family).")
    ] = None,
    task_samples: Annotated[
        int | None, typer.Option(min=1, help="Held-out samples of the task score on fast runtimes.")
    ] = None,
    emulated_task_samples: Annotated[int | None, typer.Option(min=1, help="The same on slow emulators.")] = None,
    cache: Cache = None,
    json_output: Json = False,
) -> None:
    """Execute every artifact with its vendor's runtime: SQNR and task score."""
    request = _with(
        Request.load(directory),
        None,
        task=task,
        task_samples=task_samples,
        emulated_task_samples=emulated_task_samples,
    )
    continue_run(request, directory, "verify", cache, json_output)


def _with(request: Request, targets: list[str] | None, **changes: object) -> Request:
    given = {k: v for k, v in changes.items() if v is not None}
    if targets:
        given["targets"] = list(dict.fromkeys([*request.targets, *targets]))
    return request.model_copy(update=given)


def continue_run(request: Request, directory: Path, last: str, cache: Path | None, json_output: bool) -> None:
    """Go on with a run up to the stage `last`, and report."""
    with opened(request, directory, cache, quiet=json_output) as context:
        run = run_until(context, last)
    _report(run, json_output)


def _report(run: Run, json_output: bool) -> None:
    """What the stages made: as JSON the stages and their digests, else a table a target."""
    failed = [t for t in run.targets.values() if any(d.severity == "error" for d in t.diagnostics)]
    if json_output:
        stages = {
            name: {"key": r.key, "digest": r.digest, "seconds": r.seconds, "cached": r.cached}
            for name, r in run.context.results.items()
        }
        diagnostics = {t.target: [d.to_json() for d in t.diagnostics] for t in run.targets.values()}
        print_json(
            {
                "schema": "pocketport.stages/1",
                "directory": str(run.context.out),
                "stages": stages,
                "diagnostics": diagnostics,
            }
        )
    else:
        for one in run.targets.values():
            shown = table(one.target, "component", "artifact", "size", "SQNR", right=(2, 3))
            for name, compiled in one.compiled().items():
                verified = (
                    {v.kind: v for v in load_verified(one.stages[f"verify/{name}"])}
                    if f"verify/{name}" in one.stages
                    else {}
                )
                for artifact in load_compiled(compiled).artifacts:
                    sqnr = f"{verified[artifact.kind].sqnr_db:.1f} dB" if artifact.kind in verified else ""
                    shown.add_row(name, artifact.kind, format_quantity(artifact.bytes, "bytes"), sqnr)
            if shown.row_count:
                out.print(shown)
            print_diagnostics(one.diagnostics)
    raise typer.Exit(2 if failed else 0)
