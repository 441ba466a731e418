"""The report's charts, as inline SVG drawn by matplotlib."""

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from pocketport.run_document import TargetRecord

PALETTE = {"qualcomm": "#3253dc", "apple": "#5b5f66", "mediatek": "#e0902b", "x86": "#1a9a84"}
FALLBACK_COLOUR = "#a23ba2"
GOOD_DB = 30.0
STYLE = {
    "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9aa3b2",
    "axes.labelcolor": "#4a5468", "xtick.color": "#4a5468", "ytick.color": "#4a5468", "axes.grid": True, "grid.color": "#e6e9ef",
    "svg.fonttype": "none", "svg.hashsalt": "pocketport", "figure.constrained_layout.use": True,
}  # fmt: skip


def colour(target: str) -> str:
    """One colour a vendor, the same in every chart."""
    return PALETTE.get(target.partition("/")[0], FALLBACK_COLOUR)


def to_svg(figure: Figure) -> str:
    """The figure as an inline ``<svg>`` element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    head, _, rest = buffer.getvalue().partition("<metadata>")
    _, _, body = rest.partition("</metadata>")  # it only names vocabularies on the network
    return head[head.index("<svg") :] + body


def layer_chart(component: str, targets: Sequence[TargetRecord]) -> str | None:
    """SQNR of each tensor between float and pivot along one component; None when nothing was compared."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 2.5))
        axes = figure.add_subplot()
        drawn = False
        for target in targets:
            layers = next((c.layers for c in target.components if c.name == component), [])
            if len(layers) > 1:
                axes.plot([e.sqnr_db for e in layers], color=colour(target.id), lw=1.4, label=target.id)
                drawn = True
        if not drawn:
            return None
        axes.axhline(GOOD_DB, color="#c2c8d2", lw=1, ls=(0, (4, 3)))
        axes.set_ylabel("SQNR, dB")
        axes.set_xlabel(f"{component}: quantized tensors in graph order")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        axes.legend(frameon=False, ncols=4, loc="lower left", fontsize=8)
        return to_svg(figure)


def memory_chart(targets: Sequence[TargetRecord]) -> str | None:
    """Planned resident memory over the steps of one request; None when no target has a plan."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 2.8))
        axes = figure.add_subplot()
        steps: list[str] = []
        for target in targets:
            points = target.profile.memory if target.profile else []
            if points:
                steps = [p.step for p in points] if len(points) > len(steps) else steps
                axes.step(
                    range(len(points)),
                    [p.bytes / 1e6 for p in points],
                    where="mid",
                    color=colour(target.id),
                    lw=1.6,
                    label=target.id,
                )
        if not steps:
            return None
        axes.set_xticks(range(len(steps)), steps, rotation=20, ha="right")
        axes.set_ylabel("resident, MB")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, ncols=4, fontsize=8)
        return to_svg(figure)
