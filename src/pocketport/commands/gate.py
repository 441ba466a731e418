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
            f"{directory} against {budget}", "", "target", "figure", "limit", "value", "provenance", "why",
            right=(3, 4), whole=(0, 1, 3, 4, 5),
        )  # fmt: skip
        for c in verdict.checks:
            of, name = f"{c.target}\n{c.scenario}".rstrip(), c.name.replace("_", " ")
            why = "" if c.status == "pass" else c.reason  # which only repeats the limit
            shown.add_row(MARKS[c.status], of, name, c.limit, c.shown, c.provenance, why)
        out.print(shown)
        out.print(f"Verdict: {VERDICTS[verdict.status]}")
    raise typer.Exit(1 if verdict.status == "fail" else 0)
