"""``pocketport report``: the page of a finished run, made again from its ``run.json``."""

import typer

from pocketport.commands.console import out, print_json
from pocketport.commands.options import Json, RunDirectory
from pocketport.commands.summary import print_run
from pocketport.report.html import render
from pocketport.run_document import load_document


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(directory: RunDirectory, json_output: Json = False) -> None:
    """Write DIR/report.html from DIR/run.json and print the summary."""
    document = load_document(directory)
    path = render(document, directory)
    if json_output:
        print_json(document.model_dump(by_alias=True))
    else:
        print_run(document)
        out.print(f"\n[bold]{path}[/]")
