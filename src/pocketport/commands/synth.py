"""``pocketport synth``: a checkpoint of a published shape with random weights."""

from pathlib import Path
from typing import Annotated

import typer

from pocketport.commands.console import BarProgress, out, print_json
from pocketport.commands.options import Json
from pocketport.compress.synthesis.preset import preset_names
from pocketport.compress.synthesis.write import synthesize
from pocketport.profiles.units import format_quantity
from pocketport.stages.context import Progress, SilentProgress


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(synth)


def synth(
    preset: Annotated[str, typer.Argument(help=f"One of {', '.join(preset_names())}.", metavar="PRESET")],
    directory: Annotated[Path, typer.Option("--out", "-o", help="The checkpoint's folder.", file_okay=False)],
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
    scale: Annotated[float, typer.Option(help="Factor on widths, depth and vocabulary.")] = 1.0,
    layers: Annotated[int | None, typer.Option(min=1, help="At most so many layers in every stack.")] = None,
    json_output: Json = False,
) -> None:
    """Write a checkpoint of the published shapes with random weights, tensor by tensor; for tests and benchmarks."""
    if json_output:
        files = _write(preset, directory, seed, scale, layers, SilentProgress())
    else:
        with BarProgress() as progress:
            files = _write(preset, directory, seed, scale, layers, progress)
    total = sum(f.stat().st_size for f in files)
    if json_output:
        names = {f.name: f.stat().st_size for f in files}
        print_json({"schema": "pocketport.synth/1", "directory": str(directory), "bytes": total, "files": names})
    else:
        out.print(f"[bold]{directory}[/]: {len(files)} files, {format_quantity(total, 'bytes')}")


def _write(preset: str, directory: Path, seed: int, scale: float, layers: int | None, progress: Progress) -> list[Path]:
    progress.start("synth", f"write {preset}", None)
    files = synthesize(
        preset,
        directory,
        seed=seed,
        scale=scale,
        layers=layers,
        progress=lambda done, _: progress.advance("synth", done),
    )
    progress.finish("synth", f"{len(files)} files")
    return files
