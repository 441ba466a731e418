"""The page of ``pocketport debug``: the loss by component, the worst tensors with their histograms, every tensor."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pocketport.debugging.document import DebugDocument, TargetDebug, WorstRecord
from pocketport.files import write_text
from pocketport.report.charts import STYLE, to_svg
from pocketport.report.html import render_page

FLOAT_COLOUR, ROUNDED_COLOUR, RANGE_COLOUR = "#c3c9d6", "#3253dc", "#b3261e"


def write_debug_page(document: DebugDocument, path: Path) -> None:
    """Render the page to `path`."""
    charts = {t.id: [histogram(w) for w in t.worst] for t in document.targets}
    content = {"found": document, "charts": charts, "by_noise": by_noise}
    write_text(path, render_page("debug.html", **content))


def by_noise(target: TargetDebug) -> list[str]:
    """Components, the one first that makes most of the end-to-end noise."""
    return [c.name for c in sorted(target.components, key=lambda c: -c.share)]


def histogram(worst: WorstRecord) -> str:
    """Values in float and once rounded, on a logarithmic scale, and the range that the integers cover."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 1.5))
        axes = figure.add_subplot()
        edges = np.asarray(worst.edges)
        axes.stairs(worst.before, edges, fill=True, color=FLOAT_COLOUR, label="float")
        axes.stairs(worst.after, edges, color=ROUNDED_COLOUR, lw=1.1, label="rounded")
        for bound in (worst.chosen_low, worst.chosen_high):
            if edges[0] <= bound <= edges[-1]:
                axes.axvline(bound, color=RANGE_COLOUR, lw=1, ls=(0, (3, 2)))
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
        axes.tick_params(labelsize=7)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(visible=False)
        axes.legend(frameon=False, fontsize=7, ncols=2, loc="lower left", bbox_to_anchor=(0, 0.98), borderpad=0)
        return to_svg(figure)
