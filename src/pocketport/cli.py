"""The command line: ``pocketport``."""

import sys

import typer

from pocketport import __version__
from pocketport.commands import (
    compare,
    debug,
    devices,
    gate,
    inspect,
    plan,
    port,
    profile,
    report,
    run,
    search,
    stages,
    synth,
    targets,
    tune,
)
from pocketport.commands.console import print_error
from pocketport.errors import PocketportError

app = typer.Typer(
    name="pocketport",
    help="Take a multimodal model to a phone chip: calibrate and quantize once, compile with every vendor's toolchain, verify, profile, gate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for module in (
    port,
    plan,
    inspect,
    synth,
    stages,
    profile,
    tune,
    run,
    gate,
    report,
    debug,
    compare,
    search,
    targets,
    devices,
):
    module.register(app)


@app.callback(invoke_without_command=True)
def version(
    show: bool = typer.Option(False, "--version", help="Print the version and leave.", is_eager=True),
) -> None:
    """Take a multimodal model to a phone chip."""
    if show:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point. Exit codes: 0 fine, 1 a verdict failed, 2 usage or environment."""
    try:
        app()
    except PocketportError as error:
        print_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_code)
