"""One candidate in a process of its own: opened, checked, timed turn by turn."""

import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.metrics import EXACT_DB
from pocketport.errors import ToolchainError, UsageError
from pocketport.targets.contract import Arrays, Executor
from pocketport.targets.x86.choose import FIDELITY_DB, REPEATS, SENSITIVITY_MARGIN_DB, decibels
from pocketport.targets.x86.engines import (
    MODEL_FILE,
    REFERENCE,
    OnnxRuntimeExecutor,
    OpenVinoExecutor,
    Shapes,
    open_engine,
)
from pocketport.targets.x86.measure import peak_resident_bytes
from pocketport.targets.x86.sensitivity import shaken_outputs
from pocketport.targets.x86.settings import ONNX, OnnxRuntimeSettings, Settings

TURN_MS = 20.0  # a turn lasts at least this long: one run of a small model says nothing
MOST_RUNS = 200  # of a turn
PROFILED_RUNS = 9


@dataclass(frozen=True)
class Opened:
    """A candidate that runs.

    Attributes:
        cold_ms: opening it and the first run.
        run_ms: the fastest of three more.
        fidelity_db: of its worst output, against the graph run op by op.
    """

    cold_ms: float
    run_ms: float
    fidelity_db: float


@dataclass(frozen=True)
class Expected:
    """What the graph gives when it is run op by op, and how near a candidate has to come.

    Attributes:
        outputs: by name.
        least_db: FIDELITY_DB, or less where the graph is that sensitive to the last bit (see `choose.Trial`).
    """

    outputs: Mapping[str, NDArray[np.generic]]
    least_db: float


def expected_of(pivot: Path, feeds: Arrays) -> Expected:
    """Run the graph op by op; called in a worker."""
    with closing(open_engine(ONNX, pivot, REFERENCE)) as reference:
        outputs = reference.run(feeds)
    sensitivity = decibels(outputs, shaken_outputs(pivot, feeds))
    if any(not np.isfinite(array).all() for array in outputs.values() if np.issubdtype(array.dtype, np.floating)):
        raise UsageError(
            "these inputs give NaN or infinity, so nothing can be checked",
            where=str(pivot),
            fix="give real ones with --data",
        )
    return Expected(outputs, min(FIDELITY_DB, sensitivity - SENSITIVITY_MARGIN_DB))


class Bench:
    """Lives in a worker and holds at most one candidate."""

    def __init__(self) -> None:
        self._executor: Executor | None = None
        self._feeds: Arrays = {}

    def open(
        self, kind: str, path: Path, settings: Settings, shapes: Shapes | None, feeds: Arrays, expected: Expected
    ) -> Opened:
        """Open a candidate and compare what it computes; ToolchainError when the engine refuses it."""
        self.close()
        if not isinstance(settings, OnnxRuntimeSettings):
            import openvino  # noqa: F401  the library's own start is not the model's
        start = time.perf_counter()
        self._executor, self._feeds = open_engine(kind, path, settings, shapes=shapes), feeds
        found = self._run()
        cold = time.perf_counter() - start
        warm, again = zip(*(self._timed() for _ in range(REPEATS)), strict=True)
        fidelity = min(_fidelity(expected.outputs, results) for results in (found, *again))
        return Opened(1e3 * cold, min(warm), fidelity)

    def turn(self) -> float:
        """Milliseconds of a run: the median of as many as fill TURN_MS, behind one that is not counted.

        That one reads the weights into the caches, which whoever ran before has filled with its own, and waits until
        its threads sleep.
        """
        self._run()
        times: list[float] = []
        end = time.perf_counter() + TURN_MS / 1e3
        while len(times) < MOST_RUNS and (not times or time.perf_counter() < end):
            times.append(self._timed()[0])
        return float(np.median(times))

    def peak(self) -> int | None:
        """Most bytes that this process ever had resident."""
        return peak_resident_bytes()

    def close(self) -> None:
        """Close the candidate, if there is one."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    def _timed(self) -> tuple[float, Mapping[str, NDArray[np.generic]]]:
        """Milliseconds of a run, and its results."""
        start = time.perf_counter()
        found = self._run()
        return 1e3 * (time.perf_counter() - start), found

    def _run(self) -> Mapping[str, NDArray[np.generic]]:
        assert self._executor is not None
        try:
            return self._executor.run(self._feeds)
        except Exception as error:  # both runtimes raise their own kinds
            raise ToolchainError(f"{type(error).__name__}: {error}", where="run", fix="use other settings") from error


def _fidelity(expected: Mapping[str, NDArray[np.generic]], found: Mapping[str, NDArray[np.generic]]) -> float:
    """As `decibels`; NaN where there was none is as wrong as can be."""
    if any(not np.isfinite(a).all() for a in found.values() if np.issubdtype(a.dtype, np.floating)):
        return -EXACT_DB
    return decibels(expected, found)


def op_times(
    kind: str, path: Path, settings: Settings, shapes: Shapes | None, feeds: Arrays
) -> list[tuple[str, int, float]]:
    """Kind of op, how many there are, milliseconds a run of all of them; the most expensive first. Called in a worker."""
    file = path / MODEL_FILE[kind] if path.is_dir() else path
    if isinstance(settings, OnnxRuntimeSettings):
        return _by_kind(_onnxruntime_nodes(file, settings, feeds))
    plugin = OpenVinoExecutor(file, settings, shapes, profile=True)
    plugin.run(feeds)
    runs = []
    for _ in range(PROFILED_RUNS):
        plugin.run(feeds)
        infos = plugin.request.get_profiling_info()
        executed = [i for i in infos if i.status == type(i).Status.EXECUTED]
        runs.append([(str(i.node_type), 1e3 * i.real_time.total_seconds()) for i in executed])
    return _by_kind(runs)


def _onnxruntime_nodes(file: Path, settings: OnnxRuntimeSettings, feeds: Arrays) -> list[list[tuple[str, float]]]:
    """Kind and milliseconds of every node, run by run; the first run is left out."""
    with tempfile.TemporaryDirectory(prefix="pocketport-ops-") as folder:
        timed = OnnxRuntimeExecutor(file, settings, profile=Path(folder) / "ops")
        for _ in range(1 + PROFILED_RUNS):
            timed.run(feeds)
        events = json.loads(Path(timed.session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [(str(e["args"]["op_name"]), e["dur"] / 1e3) for e in events if e["name"].endswith("_kernel_time")]
    each = len(nodes) // (1 + PROFILED_RUNS)
    return [nodes[each * run : each * (run + 1)] for run in range(1, 1 + PROFILED_RUNS)]


def _by_kind(runs: list[list[tuple[str, float]]]) -> list[tuple[str, int, float]]:
    """Kinds with their number of nodes and the median over the runs of what all of them take together."""
    counts = Counter(kind for kind, _ in runs[0])
    sums = [defaultdict[str, float](float) for _ in runs]
    for run, known in zip(runs, sums, strict=True):
        for kind, ms in run:
            known[kind] += ms
    found = [(kind, count, float(np.median([known[kind] for known in sums]))) for kind, count in counts.items()]
    return sorted(found, key=lambda entry: -entry[2])
