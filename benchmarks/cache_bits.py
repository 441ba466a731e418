"""A key-value cache in integers: its bytes, and what the model loses.

``python benchmarks/cache_bits.py [--samples 100] [--json FILE]``

The reference model is scored on held-out images. Its weights stay float, so that the cache is all there is.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pocketport.calibration.capture import calibrate
from pocketport.commands.console import out, table
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.cache.integer_cache import BITS, key_ranges, with_integer_cache
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.ingest import REFERENCE, ingest
from pocketport.data import load_data
from pocketport.files import write_json
from pocketport.profiles.memory import memory_plan
from pocketport.request import Request
from pocketport.tasks import choose_task
from pocketport.tasks.base import mean_score

CALIBRATION = 8  # images


@dataclass(frozen=True)
class Row:
    """One cache. `cache_bytes` with floats of 32 bits, as x86 keeps them; figures by name."""

    model: str
    cache: str
    cache_bytes: int
    figures: dict[str, float]


def cache_bytes(bundle: ModelBundle) -> int:
    """Of the step in which decode runs."""
    return max(s.cache for s in memory_plan({c.name: c.graph for c in bundle}, float_bits=32).steps)


def executors(bundle: ModelBundle) -> dict[str, OrtExecutor]:
    """All components in onnxruntime."""
    return {c.name: OrtExecutor(c.graph) for c in bundle}


def reference_rows(samples: int) -> list[Row]:
    """Exact match of the reference model."""
    request = Request(source=REFERENCE, calibration_samples=CALIBRATION)
    bundle = ingest(REFERENCE)
    ranges = key_ranges(calibrate({c.name: c.graph for c in bundle}, load_data(bundle, request).calibration()))
    task = choose_task(bundle, request)
    rows = []
    for cache, own in [("float", bundle), *((f"{b} bits", with_integer_cache(bundle, ranges, b)) for b in BITS[::-1])]:
        score = mean_score(task.evaluate(executors(own), samples))
        rows.append(Row(REFERENCE, cache, cache_bytes(own), {"exact match": score}))
    return rows


def show(rows: Sequence[Row]) -> None:
    """The table."""
    shown = table("key-value cache", "model", "cache", "bytes", "", right=(2,))
    for row in rows:
        figures = ", ".join(f"{name} {value:.5g}" for name, value in row.figures.items())
        shown.add_row(row.model, row.cache, f"{row.cache_bytes:,}", figures)
    out.print(shown)


def main() -> None:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100, help="images")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = reference_rows(options.samples)
    show(rows)
    if options.json:
        write_json(options.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
