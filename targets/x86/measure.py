"""Latency and memory on this machine: warm-up discarded, engines interleaved, median with P10 and P90."""

import datetime
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.graph import load_graph, static_shape
from pocketport.errors import UsageError
from pocketport.profiles.measurement import Measurement, Provenance, ProvenanceKind
from pocketport.targets.contract import Arrays, Artifact, Executor, Target
from pocketport.targets.x86.engines import open_engine
from pocketport.targets.x86.target import cpu_model, require_host, threads

PROCESS_STATUS = Path("/proc/self/status")


def measure(
    component: str, artifact: Artifact, target: Target, feeds: Arrays, *, runs: int = 50, warmup: int = 5
) -> tuple[Measurement, ...]:
    """Measure one artifact in this process; call it in a fresh worker, or the memory is not the artifact's.

    Gives ``<component>_latency`` in ms and, where the system tells it, ``<component>_peak_memory`` in bytes: the
    peak resident set of the process, the Python that holds the engine included.
    """
    require_host(target)
    executor = open_engine(artifact.kind, artifact.path)
    try:
        times = interleaved({artifact.kind: executor}, feeds, runs=runs, warmup=warmup)[artifact.kind]
    finally:
        executor.close()
    low, median, high = np.percentile(times, (10, 50, 90))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    where = f"{cpu_model()}, {threads()} threads, {artifact.facts.get('engine', artifact.kind)}, {today}"
    spread = Provenance(ProvenanceKind.MEASURED, f"{where}, median of {runs} runs, P10 to P90")
    found = [Measurement(f"{component}_latency", float(median), "ms", spread, float(low), float(high))]
    peak = peak_resident_bytes()
    if peak is not None:
        source = Provenance(ProvenanceKind.MEASURED, f"{where}, peak resident set of the process")
        found.append(Measurement(f"{component}_peak_memory", float(peak), "bytes", source))
    return tuple(found)


def interleaved(
    executors: Mapping[str, Executor], feeds: Arrays, *, runs: int, warmup: int
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of every run by executor; they take turns, so that a busy machine slows all of them alike."""
    if runs < 1:
        raise UsageError(f"{runs} runs measure nothing", where="runs", fix="give at least 1")
    times = {name: np.empty(runs) for name in executors}
    for index in range(-warmup, runs):
        for name, executor in executors.items():
            start = time.perf_counter_ns()
            executor.run(feeds)
            if index >= 0:
                times[name][index] = (time.perf_counter_ns() - start) / 1e6
    return times


def arbitrary_feeds(pivot: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, NDArray[np.generic]]:
    """Feeds of the pivot's shapes, always the same: standard normal floats, zero integers (valid as any index).

    Args:
        pivot: the graph.
        shapes: of inputs whose dimensions it leaves open.

    Raises:
        UsageError: an input's shape is not static.
    """
    rng = np.random.default_rng(0)
    feeds: dict[str, NDArray[np.generic]] = {}
    for value in load_graph(pivot).graph.inputs:
        shape = static_shape(value) or tuple((shapes or {}).get(str(value.name), ())) or None
        if shape is None or value.dtype is None:
            raise UsageError("its shape is not static", where=f"{pivot}, input {value.name}", fix="give --shape")
        if value.dtype is ir.DataType.FLOAT:
            feeds[str(value.name)] = rng.standard_normal(shape, dtype=np.float32)
        else:
            feeds[str(value.name)] = np.zeros(shape, value.dtype.numpy())
    return feeds


def peak_resident_bytes() -> int | None:
    """Peak resident set of this process; None where the system has no ``/proc`` (rusage would count the parent's)."""
    if not PROCESS_STATUS.is_file():
        return None
    for line in PROCESS_STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
