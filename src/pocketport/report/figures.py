"""The rows that the terminal summary and the report share: target × figure, and sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pocketport.calibration.metrics import EXACT_DB
from pocketport.profiles.units import format_quantity
from pocketport.run_document import MeasurementRecord, RunDocument, TargetRecord

BARS = " ▁▂▃▄▅▆▇█"
SHOWN_FIGURES = ("image_encode", "time_to_first_token", "tokens_per_second", "latency", "peak_memory")
TITLES = {
    "image_encode": "image encode", "time_to_first_token": "first token", "tokens_per_second": "tokens/s", "latency": "latency",
    "peak_memory": "peak memory",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One figure as text, with its spread and provenance."""

    text: str
    spread: str = ""
    provenance: str = ""
    detail: str = ""


def show_measurement(record: MeasurementRecord) -> Cell:
    """Value, spread and provenance of a figure, in the unit that reads best."""
    spread = ""
    if record.low is not None and record.high is not None:
        low, _, unit = format_quantity(record.low, record.unit).partition(" ")
        high, _, high_unit = format_quantity(record.high, record.unit).partition(" ")
        spread = f"{low} – {high} {unit}" if unit == high_unit else f"{low} {unit} – {high} {high_unit}"
    return Cell(format_quantity(record.value, record.unit), spread, record.provenance, record.detail)


def shown_names(document: RunDocument) -> list[str]:
    """The figures that any target has, in a fixed order."""
    present = {m.name for t in document.targets if t.profile for m in t.profile.measurements}
    return [n for n in SHOWN_FIGURES if n in present]


def artifact_bytes(target: TargetRecord) -> int:
    """Bytes of what is shipped: the primary artifacts."""
    return sum(a.bytes for c in target.components for a in c.artifacts if a.primary)


def offload(target: TargetRecord) -> Cell:
    """NPU ops over all ops, of the components for which somebody counted; ≤ where the count is an upper bound."""
    counted = [c.offload for c in target.components if c.offload]
    if not counted:
        return Cell("–")
    npu, total = sum(o.npu_ops for o in counted), sum(o.total_ops for o in counted)
    bound = "≤ " if any("upper bound" in o.source for o in counted) else ""
    share = f"{bound}{100 * npu / total:.1f} %" if total else ""
    return Cell(f"{npu}/{total}", share, "", "; ".join(sorted({o.source for o in counted})))


def least_sqnr(target: TargetRecord) -> Cell:
    """The least SQNR of its components, and which one it is."""
    verified = [(c.verify.sqnr_db, c.name, c.verify) for c in target.components if c.verify]
    if not verified:
        return Cell("–")
    value, name, record = min(verified, key=lambda v: v[0])
    return Cell(f"{value:.1f} dB", name, record.provenance, record.engine)


def score(target: TargetRecord) -> Cell:
    """Task score float → as executed."""
    task = target.task
    if task is None:
        return Cell("–")
    if task.metric == "exact_match":
        text = f"{100 * task.float_value:.1f} → {100 * task.value:.1f} %"
    else:
        text = f"{task.float_value:.3f} → {task.value:.4f}"
    return Cell(text, f"n = {task.n}", task.provenance, task.engine)


def cache(target: TargetRecord) -> Cell:
    """Bytes of a key-value cache in integers."""
    found = target.cache
    if found is None:
        return Cell("–")
    return Cell(
        format_quantity(found.bytes, "bytes"), f"{found.name}, float32 {format_quantity(found.float_bytes, 'bytes')}"
    )


def figure_rows(document: RunDocument) -> tuple[list[str], list[tuple[TargetRecord, list[Cell]]]]:
    """Column titles and a row of cells a target."""
    names = shown_names(document)
    metric = next((t.task.metric.replace("_", " ") for t in document.targets if t.task), "score")
    columns = ["artifacts", "NPU ops", "least SQNR", f"{metric}: float → here", *(TITLES[n] for n in names)]
    cached = any(t.cache for t in document.targets)
    if cached:
        columns.append("key-value cache")
    rows = []
    for target in document.targets:
        by_name = {m.name: m for m in target.profile.measurements} if target.profile else {}
        cells = [
            Cell(format_quantity(artifact_bytes(target), "bytes")) if artifact_bytes(target) else Cell("–"),
            offload(target),
            least_sqnr(target),
            score(target),
        ]
        cells += [show_measurement(by_name[n]) if n in by_name else Cell("–") for n in names]
        if cached:
            cells.append(cache(target))
        rows.append((target, cells))
    return columns, rows


def size_rows(document: RunDocument) -> list[tuple[str, int, list[tuple[str, int, int]]]]:
    """Component → float32 bytes, and per target (id, pivot bytes, artifact bytes)."""
    rows: list[tuple[str, int, list[tuple[str, int, int]]]] = []
    for component in document.model.components:
        cells: Sequence[tuple[str, int, int]] = [
            (t.id, c.pivot_bytes, sum(a.bytes for a in c.artifacts if a.primary))
            for t in document.targets
            for c in t.components
            if c.name == component.name
        ]
        rows.append((component.name, component.bytes, list(cells)))
    return rows


def format_db(value: float | None) -> str:
    """SQNR for a table; tensors that are equal have no noise."""
    if value is None:
        return "–"
    return "equal" if value >= EXACT_DB else f"{value:.1f} dB"


def format_share(value: float) -> str:
    """A share for a table, in percent."""
    if value == 0.0:
        return "0"
    return f"{100 * value:.1f} %" if value >= 1e-3 else "< 0.1 %"


def sparkline(counts: Sequence[int], width: int = 12) -> str:
    """A histogram as a line of bars; heights are logarithms, so that rare values show."""
    bins = np.add.reduceat(
        np.asarray(counts, np.float64), np.linspace(0, len(counts), width, endpoint=False).astype(int)
    )
    heights = np.log1p(bins)
    steps = np.ceil(heights / max(float(heights.max()), 1e-9) * (len(BARS) - 1)).astype(int)
    return "".join(BARS[step] for step in steps)
