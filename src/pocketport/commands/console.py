"""How Pocketport speaks on a terminal: one console, progress with an ETA, errors on one screen."""

import json
import os
import threading
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import PocketportError

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
MARKS = {"pass": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}

INDENT = (0, 0, 0, 4)  # of a diagnostic's lines below its first
LOG_WIDTH = 120  # where nobody says how wide the terminal is: CI logs, pipes


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = LOG_WIDTH
    return console


out = _console(stderr=False)
err = _console(stderr=True)


class BarProgress:
    """Live bars for work under way; one quiet line for each piece that is done. Safe to call from several threads."""

    def __init__(self) -> None:
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(),
        )  # fmt: skip
        self._bars = Progress(*columns, console=err, transient=True)
        self._tasks: dict[str, tuple[TaskID, str]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "BarProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, key: str, description: str, total: int | None) -> None:
        """Show a bar (or a spinner, when the total is unknown)."""
        with self._lock:
            self._tasks[key] = (self._bars.add_task(description, total=total), description)

    def advance(self, key: str, done: int) -> None:
        """Move the bar."""
        with self._lock:
            if key in self._tasks:
                self._bars.update(self._tasks[key][0], completed=done)

    def finish(self, key: str, note: str) -> None:
        """Replace the bar by a line."""
        with self._lock:
            task, description = self._tasks.pop(key, (None, key))
            if task is not None:
                self._bars.remove_task(task)
        self._bars.console.print(f"[green]✓[/] {description} [dim]{note}[/]")


def print_error(error: PocketportError, *, as_json: bool) -> None:
    """A typed error on one screen, or as a JSON document."""
    if as_json:
        document = {
            "schema": "pocketport.error/1",
            "kind": type(error).__name__,
            "where": error.where,
            "why": error.why,
            "fix": error.fix,
        }
        print_json(document)
        return
    body = Text.assemble((error.where, "bold"), "\n", error.why, "\n\n", ("fix  ", "green"), error.fix)
    err.print(Panel(body, title=type(error).__name__, title_align="left", border_style="red"))


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    out.print_json(json.dumps(document, ensure_ascii=False, default=str))


def print_diagnostics(diagnostics: list[Diagnostic], limit: int = 12) -> None:
    """Diagnostics, the gravest first."""
    order = list(Severity)
    for diagnostic in sorted(diagnostics, key=lambda d: order.index(d.severity))[:limit]:
        err.print(
            Text.assemble(
                (f"{diagnostic.severity} ", STYLES[diagnostic.severity]),
                (f"{diagnostic.code} ", "dim"),
                diagnostic.where,
            )
        )
        err.print(Padding(Text(diagnostic.why), INDENT, expand=False))
        err.print(Padding(Text.assemble(("fix ", "green"), diagnostic.fix), INDENT, expand=False))
    if len(diagnostics) > limit:
        err.print(f"    … and {len(diagnostics) - limit} more in run.json", style="dim")


def table(title: str, *columns: str, right: tuple[int, ...] = (), whole: tuple[int, ...] = ()) -> Table:
    """A table in the house style: columns named in `right` are numbers, cells of those named in `whole` stay on one line."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        show_lines=True,
        border_style="dim",
        pad_edge=False,
    )
    for index, name in enumerate(columns):
        justify: JustifyMethod = "right" if index in right else "left"
        made.add_column(name, justify=justify, no_wrap=index in whole, overflow="fold")
    return made
