"""``port --format``: the plan, the work, and how the estimate held."""

import json
import time
from pathlib import Path
from typing import Any

from pocketport.commands.console import err, out, table
from pocketport.commands.options import opened
from pocketport.commands.plan import estimate_of, print_job
from pocketport.compress.blockwise.estimate import Estimate
from pocketport.files import write_json
from pocketport.profiles.units import format_quantity
from pocketport.request import Request
from pocketport.stages.weights import WeightJob, plan_formats, port_format, timing_file, written_files
from pocketport.workers import peak_rss

FORMATS_FILE = "formats.json"


def write_formats(request: Request, directory: Path, cache: Path | None, *, quiet: bool) -> list[dict[str, Any]]:
    """Write every format that the request names below `directory`; returns what ``formats.json`` says of each."""
    jobs = plan_formats(request)
    records = []
    request.save(directory)
    for job in jobs:
        estimated = estimate_of(job, request)
        if not quiet:
            print_job(job, estimated, tensors=False)
        start = time.perf_counter()
        with opened(request, directory, cache, quiet=quiet) as context:
            folder = port_format(context, job)
            cached = context.results[f"quantize {job.label}"].cached
        records.append(
            _record(job, folder, estimated, time.perf_counter() - start, timing_file(directory, job), cached=cached)
        )
        if not quiet:
            _print(records[-1])
    write_json(directory / FORMATS_FILE, {"schema": "pocketport.formats/1", "formats": records})
    return records


def _record(
    job: WeightJob, folder: Path, estimated: Estimate, seconds: float, timing: Path, *, cached: bool
) -> dict[str, Any]:
    files = written_files(folder)
    return {
        "format": job.label,
        "folder": folder.name,
        "bytes_before": sum(p.bytes_before for p in job.plans),
        "bytes_planned": sum(p.bytes_after for p in job.plans),
        "bytes": sum(int(f["bytes"]) for f in files.values()),
        "files": files,
        "seconds": round(seconds, 1),
        "seconds_estimated": round(estimated.seconds, 1),
        "peak_rss_bytes": peak_rss(),
        "peak_rss_estimated": estimated.peak_bytes,
        "from_cache": cached,
        "timing": None if cached else json.loads(timing.read_text("utf-8")),
    }


def _print(record: dict[str, Any]) -> None:
    shown = table(f"{record['folder']}/", "file", "size", right=(1,))
    for name, entry in record["files"].items():
        shown.add_row(name, format_quantity(entry["bytes"], "bytes"))
    out.print(shown)
    figures = table("", "", "planned", "actual", right=(1, 2))
    figures.add_row(
        "weights", format_quantity(record["bytes_planned"], "bytes"), format_quantity(record["bytes"], "bytes")
    )
    figures.add_row("seconds", f"{record['seconds_estimated']:.0f}", f"{record['seconds']:.0f}")
    figures.add_row(
        "peak memory",
        format_quantity(record["peak_rss_estimated"], "bytes"),
        format_quantity(record["peak_rss_bytes"], "bytes"),
    )
    out.print(figures)
    if record["timing"]:
        phases = record["timing"]["seconds"]
        where = table("", "where the time went", "seconds", right=(1,))
        for name, seconds in sorted(phases.items(), key=lambda item: -item[1]):
            where.add_row(name, f"{seconds:.1f}")
        out.print(where)
    if record["from_cache"]:
        err.print("[dim]the quantized weights came from the cache: only writing was timed[/]")
