"""``report.html``: one self-contained page, no network."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

from pocketport import __version__
from pocketport.calibration.sources.rendered_text import RenderedText
from pocketport.compress.ingest import REFERENCE
from pocketport.files import write_text
from pocketport.profiles.units import format_quantity
from pocketport.report.charts import colour, layer_chart, memory_chart
from pocketport.report.figures import figure_rows, format_db, format_share, size_rows
from pocketport.run_document import RunDocument
from pocketport.tasks.read_text import HELD_OUT_SEED

REPORT_FILE = "report.html"


def render(document: RunDocument, directory: Path) -> Path:
    """Write ``report.html``; the reference model's held-out images are drawn again from their seeds."""
    images = {}
    if document.model.name == REFERENCE:
        source = RenderedText(seed=HELD_OUT_SEED, fonts="held_out")
        images = {i: source[i].image for i in shown_indices(document)}
    path = directory / REPORT_FILE
    write_report(document, images, path)
    return path


def write_report(document: RunDocument, images: dict[int, Image.Image], path: Path) -> None:
    """Render the report.

    Args:
        document: the run.
        images: held-out images by sample index, as many as should be shown.
        path: where to write the page.
    """
    page = render_page(
        "report.html", run=document, figures=figure_rows(document), sizes=size_rows(document), samples=_samples(document, images),
        layer_charts=_layer_charts(document), memory_chart=memory_chart(document.targets),
    )  # fmt: skip
    write_text(path, page)


def render_page(template: str, **content: Any) -> str:
    """One of the templates in the house style, self-contained."""
    environment = Environment(
        loader=PackageLoader("pocketport.report"), autoescape=select_autoescape(["html"]), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["bytes"] = lambda count: format_quantity(count, "bytes")
    environment.filters["db"] = format_db
    environment.filters["share"] = format_share
    environment.globals["colour"] = colour
    return environment.get_template(template).render(version=__version__, **content)


def _layer_charts(document: RunDocument) -> list[str]:
    charts = (layer_chart(c.name, document.targets) for c in document.model.components)
    return [chart for chart in charts if chart]


def _samples(document: RunDocument, images: dict[int, Image.Image]) -> list[dict[str, Any]]:
    """A row a held-out image: the picture, what it says, what float and each target read."""
    rows: dict[int, dict[str, Any]] = {}
    for target in document.targets:
        for sample in target.task.samples if target.task else []:
            row = rows.setdefault(
                sample.index,
                {
                    "expected": sample.expected,
                    "float": sample.float_text,
                    "read": {},
                    "image": _data_uri(images.get(sample.index)),
                },
            )
            row["read"][target.id] = sample.text
    return [rows[i] for i in sorted(rows)]


def _data_uri(image: Image.Image | None) -> str:
    if image is None:
        return ""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def shown_indices(document: RunDocument) -> Iterable[int]:
    """Sample indices that any target shows."""
    return sorted({s.index for t in document.targets if t.task for s in t.task.samples})
