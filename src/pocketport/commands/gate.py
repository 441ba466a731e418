"""``pocketport gate``: a finished run against a budget; exit 0 within, 1 over, 2 usage."""

from pathlib import Path
from typing import Annotated

import typer

from pocketport.commands.console import MARKS, out, print_json, table
from pocketport.commands.options import Json, RunDirectory
from pocketport.commands.summary import VERDICTS
from pocketport.report.verdict import gate_document, read_budget
from pocketport.run_document import load_document


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(gate)


def gate(
    directory: RunDirectory,
    budget: Annotated[Path, typer.Option(help="budget.yaml, or `default` for the reference model's.")],
    json_output: Json = False,
) -> None:
    """Hold a run's figures against a budget."""
    verdict = gate_document(load_document(directory), read_budget(str(budget)), directory)
    if json_output:
        print_json({"schema": "pocketport.verdict/1", **verdict.model_dump()})
    else:
        shown = table(
            f"{directory} against {budget}",
            "",
            "target",
            "request",
            "figure",
            "limit",
            "value",
            "provenance",
            "why",
            right=(4, 5),
        )
        for c in verdict.checks:
            name = c.name.replace("_", " ")
            shown.add_row(MARKS[c.status], c.target, c.scenario, name, c.limit, c.shown, c.provenance, c.reason)
        out.print(shown)
        out.print(f"Verdict: {VERDICTS[verdict.status]}")
    raise typer.Exit(1 if verdict.status == "fail" else 0)
