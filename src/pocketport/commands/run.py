"""``pocketport run``: ask a ported model about an image, on this machine."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pocketport.commands.console import err, print_json
from pocketport.commands.options import Json, RunDirectory
from pocketport.compress.families.chat import Generation
from pocketport.data import open_image
from pocketport.running import LocalModel, Speed, answer, open_model


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(run)


def run(
    directory: RunDirectory,
    image: Annotated[Path, typer.Option(help="A .png, .jpg, .bmp or .webp file.", dir_okay=False)],
    prompt: Annotated[str, typer.Option(help="The question about it.")],
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of the answer at most.")] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Which x86 target of the run.")] = None,
    configuration: Annotated[
        Path | None,
        typer.Option(
            help="By `pocketport tune` (default: x86.json in the run's directory, if there is one).", dir_okay=False
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Answer a question about an image with a run's x86 artifacts, token by token, and say how fast it was."""
    picture = open_image(image)
    with open_model(directory, target, configuration) as model:
        for difference in model.differences:
            err.print(f"[yellow]The configuration was found elsewhere: {difference}[/]")
        read, speed = answer(model, picture, prompt, max_tokens, _hidden if json_output else _show)
        if json_output:
            print_json(document(model, read, speed))
            return
    print()
    rate = "" if speed.tokens_per_second is None else f", {speed.tokens_per_second:.0f} tokens/s"
    err.print(
        f"[dim]{len(read.token_ids)} tokens behind {read.prompt_tokens} ({read.views} views): first token {speed.first_token_ms:.0f} ms, "
        f"of it image {speed.image_ms:.0f} ms{rate}[/]"
    )  # fmt: skip


def document(model: LocalModel, read: Generation, speed: Speed) -> dict[str, Any]:
    """``pocketport.answer/1``."""
    return {
        "schema": "pocketport.answer/1",
        "model": model.bundle.name,
        "tuned": model.configuration is not None,
        "text": read.text,
        "token_ids": read.token_ids,
        "prompt_tokens": read.prompt_tokens,
        "views": read.views,
        "image_ms": speed.image_ms,
        "first_token_ms": speed.first_token_ms,
        "tokens_per_second": speed.tokens_per_second,
        "total_ms": speed.total_ms,
        "component_ms": {name: 1e3 * seconds for name, seconds in read.seconds.items()},
    }


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _hidden(text: str) -> None:
    """With --json the whole answer is in the document."""
