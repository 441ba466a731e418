"""``pocketport compare``: two runs of one model side by side."""

from pathlib import Path
from typing import Annotated

import typer

from pocketport.commands.console import out, print_json, table
from pocketport.commands.options import Json
from pocketport.debugging.comparison import TargetPair, compare_runs
from pocketport.report.compare import change_of, figure_text, is_better, write_compare_page
from pocketport.report.figures import format_db

RunA = Annotated[Path, typer.Argument(help="A run's directory.", file_okay=False)]
RunB = Annotated[Path, typer.Argument(help="Another run of the same model.", file_okay=False)]
STYLES = {True: "green", False: "red", None: "dim"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(compare)


def compare(
    run_a: RunA,
    run_b: RunB,
    top: Annotated[int, typer.Option(min=1, help="How many tensors, plan changes and encodings to show.")] = 8,
    html: Annotated[Path | None, typer.Option(help="Write a page with everything.", dir_okay=False)] = None,
    json_output: Json = False,
) -> None:
    """Show what differs between two runs: settings, plans, encodings, SQNR, score, sizes, latency and memory."""
    found = compare_runs(run_a, run_b)
    if html is not None:
        write_compare_page(found, html)
    if json_output:
        print_json(found.model_dump(by_alias=True))
        return
    out.print(f"[bold]{found.model}[/]   A {found.a}   B {found.b}")
    for setting in found.settings:
        out.print(f"  {setting.name}: {setting.a} [dim]→[/] {setting.b}")
    for pair in found.targets:
        _print_pair(pair, top)
    for name, others in (("A", found.only_a), ("B", found.only_b)):
        if others:
            out.print(f"[dim]only in {name}: {', '.join(others)}[/]")
    if html is not None:
        out.print(f"\n[bold]{html}[/] has every tensor.")


def _print_pair(pair: TargetPair, top: int) -> None:
    title = pair.a if pair.a == pair.b else f"A {pair.a}, B {pair.b}"
    shown = table(title, "figure", "A", "B", "change", "provenance", right=(1, 2, 3))
    for figure in pair.figures:
        style = STYLES[is_better(figure)]
        shown.add_row(
            figure.name, figure_text(figure.a, figure.unit), figure_text(figure.b, figure.unit), f"[{style}]{change_of(figure)}[/]",
            f"[dim]{figure.provenance}[/]",
        )  # fmt: skip
    out.print(shown)
    shown = table(
        "Components",
        "component",
        "scheme",
        "SQNR A",
        "B",
        "change",
        "packed A",
        "B",
        "on device A",
        "B",
        right=(2, 3, 4, 5, 6, 7, 8),
    )
    for c in sorted(pair.components, key=lambda c: -abs((c.sqnr_b or 0.0) - (c.sqnr_a or 0.0))):
        scheme = c.scheme_a if c.scheme_a == c.scheme_b else f"{c.scheme_a} → {c.scheme_b}"
        sizes = (figure_text(n, "bytes") for n in (c.packed_a, c.packed_b, c.device_a, c.device_b))
        shown.add_row(c.name, scheme, format_db(c.sqnr_a), format_db(c.sqnr_b), _change(c.sqnr_a, c.sqnr_b), *sizes)
    out.print(shown)
    moved = [t for t in pair.tensors if t.sqnr_a != t.sqnr_b]
    if moved:
        shown = table(
            f"Tensors: {len(moved)} of {len(pair.tensors)} changed", "tensor", "SQNR A", "B", "change", right=(1, 2, 3)
        )
        for t in moved[:top]:
            name = f"{t.component}/{t.tensor}"
            shown.add_row(name, format_db(t.sqnr_a), format_db(t.sqnr_b), _change(t.sqnr_a, t.sqnr_b))
        out.print(shown)
    if pair.plans:
        shown = table("Planned otherwise", "component", "kind", "tensors", "A", "B", right=(2,))
        for p in pair.plans[:top]:
            shown.add_row(p.component, p.kind, str(len(p.tensors)), p.a, p.b)
        out.print(shown)
    if pair.encodings:
        title = f"Encodings: {len(pair.encodings)} changed, {pair.same_encodings} the same"
        shown = table(title, "tensor", "range A", "range B", "steps B : A", right=(1, 2, 3))
        for e in pair.encodings[:top]:
            shown.add_row(e.tensor, _range(e.range_a), _range(e.range_b), f"{2**e.octaves:.3g}")
        out.print(shown)
    elif pair.same_encodings:
        out.print(f"[dim]all {pair.same_encodings} encodings are the same[/]")


def _change(a: float | None, b: float | None) -> str:
    if a is None or b is None:
        return ""
    style = STYLES[None if abs(b - a) < 0.05 else b > a]
    return f"[{style}]{b - a:+.1f} dB[/]"


def _range(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.4g} … {bounds[1]:.4g}"
