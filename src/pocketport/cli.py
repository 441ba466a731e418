"""The command line: ``pocketport``."""

import errno
import gc
import os
import sys
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand
from typer.main import get_group

from pocketport import __version__
from pocketport.commands.console import print_error
from pocketport.errors import PocketportError, UsageError

# In the order of the road; the first paragraphs of the commands' own help, for a list that imports none of them.
COMMANDS = {
    "port": "Port a model: ingest, calibrate, quantize, compile, verify, profile, gate, report.",
    "plan": "Show what would be done to every tensor: schemes, bytes, memory, time, and what a target would refuse.",
    "inspect": "Show a model's components and, for each target named, the ops that it can't take.",
    "synth": "Write a checkpoint of the published shapes with random weights, tensor by tensor; for tests and benchmarks.",
    "ingest": "Read a model into a bundle of components, and check that they compute what the original does.",
    "calibrate": "Collect activation statistics through the whole float chain.",
    "quantize": "Make the pivot (QDQ ONNX) for each target.",
    "compile": "Compile the pivot with each vendor's toolchain.",
    "verify": "Execute every artifact with its vendor's runtime: SQNR and task score.",
    "profile": "Measure (x86) or predict (NPUs) latency and memory of a run; with --device, latency of a float model.",
    "tune": "Search threads, engine, precision and memory settings on this machine; write what runs fastest.",
    "run": "Answer a question about an image with a run's x86 artifacts, token by token, and say how fast it was.",
    "gate": "Hold a run's figures against a budget.",
    "report": "Write DIR/report.html from DIR/run.json and print the summary.",
    "debug": "Show which component, and which tensor of it, costs what, and why.",
    "compare": "Show what differs between two runs: settings, plans, encodings, SQNR, score, sizes, latency and memory.",
    "search": "Choose a scheme for each layer: least loss of quality within a budget of bytes.",
    "targets": "List every target, and say which toolchains are installed.",
    "devices": "Chips and phones: what is known, compare them, add one's own.",
}
MODULES = dict.fromkeys(
    ("ingest", "calibrate", "quantize", "compile", "verify"), "stages"
)  # the others' by their names

REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT)  # of a file system


class LazyCommand(TyperCommand):
    """Stands for a command until it is called."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """The context of the command itself, whose module is imported now."""
        name, home = str(self.name), typer.Typer()
        import_module(f"pocketport.commands.{MODULES.get(name, name)}").register(home)
        gc.freeze()  # modules live to the end: collections need not go through them
        return get_group(home).commands[name].make_context(*args, **kwargs)


app = typer.Typer(
    name="pocketport",
    help="Take a multimodal model to a phone chip: calibrate and quantize once, compile with every vendor's toolchain, verify, profile, gate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for name, summary in COMMANDS.items():
    app.command(name, cls=LazyCommand, help=summary)(lambda: None)


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
        _leave(error)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        place = "the file system" if error.filename is None else os.fsdecode(error.filename)
        why = os.strerror(error.errno).lower()
        _leave(UsageError(f"the system says: {why}", where=place, fix="name a place that can be written, or make room"))


def _leave(error: PocketportError) -> NoReturn:
    print_error(error, as_json="--json" in sys.argv)
    sys.exit(error.exit_code)
