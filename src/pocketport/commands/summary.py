"""The table that `port`, `gate` and `report` print."""

from pocketport.commands.console import MARKS, out, print_diagnostics, table
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.report.figures import Cell, figure_rows
from pocketport.run_document import RunDocument

VERDICTS = {
    "pass": "[bold green]within budget[/]", "warn": "[bold yellow]within budget, with warnings[/]", "fail": "[bold red]over budget[/]",
    "none": "[dim]no budget given[/]",
}  # fmt: skip


def print_run(document: RunDocument) -> None:
    """One row a target, the verdict, and what needs attention."""
    columns, rows = figure_rows(document)
    shown = table(
        f"{document.model.name}: {document.model.parameters / 1e6:.2f} M parameters",
        "target",
        *columns,
        right=tuple(range(1, len(columns) + 1)),
    )
    for target, cells in rows:
        name = target.id if target.status == "ok" else f"{target.id}\n[red]{target.status}[/]"
        shown.add_row(name, *(_cell(c) for c in cells), end_section=True)
    out.print(shown)
    for target in document.targets:
        grave = [d for d in target.diagnostics if d.severity != "note"]
        print_diagnostics([Diagnostic(d.code, Severity(d.severity), d.where, d.why, d.fix) for d in grave], limit=6)
    for check in document.verdict.checks:
        if check.status != "pass":
            out.print(
                f" {MARKS[check.status]} {check.target} {check.name.replace('_', ' ')}: {check.shown}, limit {check.limit}. {check.reason}"
            )
    passed = sum(c.status == "pass" for c in document.verdict.checks)
    of = f" ({passed} of {len(document.verdict.checks)} checks passed)" if document.verdict.checks else ""
    out.print(f"Verdict: {VERDICTS[document.verdict.status]}{of}")


def _cell(cell: Cell) -> str:
    lines = [cell.text, *(f"[dim]{part}[/]" for part in (cell.spread, cell.provenance) if part)]
    return "\n".join(lines)
