"""The table that `port`, `gate` and `report` print."""

from pocketport.commands.console import MARKS, out, print_diagnostics, table
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.report.figures import Cell, figure_rows
from pocketport.run_document import RunDocument, TargetRecord

VERDICTS = {
    "pass": "[bold green]within budget[/]", "warn": "[bold yellow]within budget, with warnings[/]", "fail": "[bold red]over budget[/]",
    "none": "[dim]no budget given[/]",
}  # fmt: skip


def print_run(document: RunDocument) -> None:
    """One column a target, one row a figure; then the verdict, and what needs attention."""
    titles, rows = figure_rows(document)
    size = f"{document.model.parameters / 1e6:.2f} M parameters"
    shown = table(
        f"{document.model.name}: {size}", "", *(_heading(t) for t, _ in rows), right=tuple(range(1, len(rows) + 1))
    )
    for index, title in enumerate(titles):
        shown.add_row(title, *(_cell(cells[index]) for _, cells in rows))
    out.print(shown)
    for target in document.targets:
        grave = [d for d in target.diagnostics if d.severity != "note"]
        print_diagnostics([Diagnostic(d.code, Severity(d.severity), d.where, d.why, d.fix) for d in grave], limit=6)
    for check in document.verdict.checks:
        if check.status != "pass":
            of = f"{check.target} {check.scenario}".rstrip()
            out.print(
                f" {MARKS[check.status]} {of} {check.name.replace('_', ' ')}: {check.shown}, limit {check.limit}. {check.reason}"
            )
    passed = sum(c.status == "pass" for c in document.verdict.checks)
    of = f" ({passed} of {len(document.verdict.checks)} checks passed)" if document.verdict.checks else ""
    out.print(f"Verdict: {VERDICTS[document.verdict.status]}{of}")


def _heading(target: TargetRecord) -> str:
    return target.id if target.status == "ok" else f"{target.id} [red]{target.status}[/]"


def _cell(cell: Cell) -> str:
    lines = [cell.text, *(f"[dim]{part}[/]" for part in (cell.spread, cell.provenance) if part)]
    return "\n".join(lines)
