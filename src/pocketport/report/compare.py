"""The page of ``pocketport compare``, and how its figures are written."""

from pathlib import Path

from pocketport.debugging.comparison import CompareDocument, Figure
from pocketport.files import write_text
from pocketport.profiles.units import format_quantity
from pocketport.report.html import render_page


def write_compare_page(document: CompareDocument, path: Path) -> None:
    """Render the page to `path`."""
    content = {"found": document, "change_of": change_of, "is_better": is_better, "figure_text": figure_text}
    write_text(path, render_page("compare.html", **content))


def figure_text(value: float | None, unit: str) -> str:
    """A figure with its unit; scores have none."""
    if value is None:
        return "–"
    return format_quantity(value, unit) if unit else f"{value:.4f}"


def change_of(figure: Figure) -> str:
    """From A to B: points of a score, percent of what has a unit."""
    if figure.a is None or figure.b is None:
        return ""
    if figure.a == figure.b:
        return "the same"
    if not figure.unit:
        return f"{100 * (figure.b - figure.a):+.2f} points"
    return f"{100 * (figure.b / figure.a - 1):+.1f} %" if figure.a else ""


def is_better(figure: Figure) -> bool | None:
    """Whether B is the better one; None where they are alike or one is missing."""
    if figure.a is None or figure.b is None or figure.a == figure.b:
        return None
    return (figure.b > figure.a) == (figure.better == "more")
