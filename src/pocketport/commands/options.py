"""Options that several commands share, and the Context they make."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pocketport.commands.console import BarProgress
from pocketport.errors import UsageError
from pocketport.request import Request
from pocketport.stages.context import Context, SilentProgress
from pocketport.store import Store

Out = Annotated[Path, typer.Option("--out", "-o", help="The run's directory.", file_okay=False)]
SAMPLES = "Samples"  # a panel of its own in the help: the longest names, beside which no other column has room
RunDirectory = Annotated[
    Path, typer.Argument(help="A run's directory, as made by `ingest` or `port`.", file_okay=False)
]
Targets = Annotated[list[str] | None, typer.Option("--target", "-t", help=r"vendor/soc\[@sdk]; repeat for several.")]
Formats = Annotated[
    list[str] | None,
    typer.Option("--format", "-f", help="Checkpoint format, name[:variant], e.g. gguf:q4_k_m; repeat for several."),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option("--memory-limit", help="Memory for quantizing, e.g. 8GB (default: 70 % of what is free)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", help="The store's folder (default: $POCKETPORT_CACHE or the user's cache)."),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", help="Static shape of an ONNX input: name=1,3,48,320; repeat for several."),
]
LlamaCpp = Annotated[
    Path | None,
    typer.Option(
        "--llama-cpp", help="Of a .gguf file: the folder of llama.cpp's programs (default: the PATH).", file_okay=False
    ),
]


def parse_shapes(texts: Sequence[str] | None) -> dict[str, list[int]]:
    """``["x=1,3,48,320"]`` → ``{"x": [1, 3, 48, 320]}``; UsageError otherwise."""
    shapes = {}
    for text in texts or []:
        name, _, dims = text.partition("=")
        try:
            shapes[name] = [int(d) for d in dims.split(",")]
        except ValueError:
            shapes[name] = []
        if not name or not shapes[name] or min(shapes[name]) < 1:
            raise UsageError(f"{text!r} is not a shape", where="--shape", fix="write it as name=1,3,48,320")
    return shapes


def parse_bytes(text: str | None) -> int | None:
    """``8GB``, ``900 MB`` or a number of bytes → bytes; UsageError otherwise."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)i?B?\s*", text)
    if match is None:
        raise UsageError(f"{text!r} is not a size", where="--memory-limit", fix="write it as 8GB or 900MB")
    return int(float(match[1]) * 1000 ** " kMGT".index(match[2] or " "))


@contextmanager
def opened(request: Request, out: Path, cache: Path | None, *, quiet: bool) -> Iterator[Context]:
    """A Context that shows progress on the terminal (on standard error), unless `quiet`."""
    out.mkdir(parents=True, exist_ok=True)
    if quiet:
        yield Context(request, Store(cache), out, SilentProgress())
        return
    with BarProgress() as progress:
        yield Context(request, Store(cache), out, progress)
