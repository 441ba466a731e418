"""One pass over the calibration data: every intermediate tensor of the float graphs into Statistics."""

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.drawn_rows import DrawnRows
from pocketport.calibration.layer_inputs import convolution_inputs, linear_inputs, windows
from pocketport.calibration.observers import Histogram
from pocketport.calibration.reductions import (
    KEYS,
    channel_moment,
    channel_range,
    key_range,
    real_rows,
    row_moment,
    without_padding,
)
from pocketport.calibration.statistics import ChannelRange, SecondMoment, Statistics
from pocketport.errors import InputError, UsageError
from pocketport.workers import processors

MOVEMENT_OPS = frozenset(
    {"Identity", "Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Tile",
     "DepthToSpace", "SpaceToDepth", "MaxPool"}
)  # fmt: skip
"""Ops whose outputs hold nothing but values of their first input: both share one encoding."""

COUNTED = 1 << 14  # values of a tensor that each sample adds to its histogram
CHUNK_BYTES = 256 << 20  # intermediates fetched by one run of a session
MOST_THREADS = 4  # each holds the intermediates of one run


@dataclass(frozen=True)
class Selection:
    """What one plan reads of a component's calibration.

    Attributes:
        tensors: whose extremes and, where layers read them, channels and moments are wanted.
        counted: those among them whose histograms are wanted too; of the others the extremes do.
    """

    tensors: frozenset[str]
    counted: frozenset[str]


def calibrate(
    graphs: Mapping[str, ir.Model],
    feeds: Iterable[tuple[str, Mapping[str, NDArray[Any]]]],
    *,
    hessians: Mapping[str, Sequence[str]] | None = None,
    only: Mapping[str, Selection] | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Statistics:
    """Run the float graphs on `feeds` and sum up every float tensor that data movement does not merely repeat.

    Samples run side by side, and are summed up in their order: the number of threads changes no bit of the result.

    Args:
        graphs: component → float graph.
        feeds: (component, inputs by name) pairs, in any order; read once.
        hessians: component → inputs of linear layers (by column) and convolutions (by channel) whose full Σ xᵀx is wanted; the diagonal is always kept.
        only: component → what is wanted; everything, for any plan, where it is None. Knowing it, onnxruntime may join and
            reorder the rest of the graph, so that numbers differ in the last digits of float32.
        threads: runs at once; by default as many as there are processors, at most `MOST_THREADS`.
        progress: called with the number of feeds done.

    Raises:
        UsageError: `feeds` is empty, or names a component that is not in `graphs`.
        InputError: onnxruntime refuses a graph or a feed, or a tensor holds NaN or infinity.
    """
    statistics = Statistics()
    threads = threads or min(MOST_THREADS, len(processors()))
    captures: dict[str, _Capture] = {}
    with (
        tempfile.TemporaryDirectory(prefix="pocketport-calibration-") as folder,
        ThreadPoolExecutor(threads) as pool,
    ):

        def runs() -> Iterator[_Run]:
            for component, inputs in feeds:
                if component not in graphs:
                    raise UsageError(
                        f"no component {component!r}", where="calibration feeds", fix=f"use one of {', '.join(graphs)}"
                    )
                if component not in captures:
                    wanted = frozenset((hessians or {}).get(component, ()))
                    selection = None if only is None else only.get(component, Selection(frozenset(), frozenset()))
                    captures[component] = _Capture(component, graphs[component], wanted, selection, Path(folder))
                yield from captures[component].runs(inputs)

        done = 0
        for run, found in _in_order(pool, runs(), threads):
            run.capture.sum_up(run, found, statistics)
            done += run.last
            if progress and run.last:
                progress(done)
    for capture in captures.values():
        capture.finish(statistics)
    if not statistics.samples:
        raise UsageError("there was no calibration data", where="calibration", fix="give at least one sample")
    return statistics


@dataclass(frozen=True)
class _Run:
    """One run of one of a component's sessions; `first` and `last` of those on the same inputs."""

    capture: "_Capture"
    inputs: Mapping[str, NDArray[Any]]
    session: int
    first: bool
    last: bool


@dataclass(frozen=True)
class _Seen:
    """One tensor of one run.

    Attributes:
        value: all of it.
        low: its least value, and `high` its greatest, where its range is wanted.
        moment: of a layer's input; None of other tensors.
        extremes: of its channels, likewise; of keys without padding.
        taps: what the convolutions that read it see on average, by their weight.
    """

    value: NDArray[Any]
    low: float | None = None
    high: float | None = None
    moment: SecondMoment | None = None
    extremes: ChannelRange | None = None
    taps: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def _in_order(pool: ThreadPoolExecutor, runs: Iterable[_Run], ahead: int) -> Iterator[tuple[_Run, dict[str, _Seen]]]:
    """Every run and its results, in the order of `runs`; the next `ahead` are under way meanwhile."""
    waiting: deque[tuple[_Run, Future[dict[str, _Seen]]]] = deque()
    for run in runs:
        waiting.append((run, pool.submit(run.capture.execute, run)))
        if len(waiting) > ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


class _Capture:
    """Sessions of one component that give its intermediates as outputs."""

    def __init__(
        self, component: str, graph: ir.Model, hessians: frozenset[str], only: Selection | None, folder: Path
    ) -> None:
        self._component = component
        self._hessians = hessians
        self._only = only
        self._inputs = [v.name or "" for v in graph.graph.inputs]
        produced = [v for node in graph.graph if node.op_type not in MOVEMENT_OPS for v in node.outputs if _is_float(v)]
        self._linear = linear_inputs(graph)
        self._convolved = convolution_inputs(graph)
        self._windows = windows(graph)
        self._drawn: dict[str, DrawnRows] = {}
        self._keys = {v.name or "" for v in graph.graph.outputs if (v.name or "").startswith(KEYS)}
        # These may be the outputs of data movement: fetched for their moments or channels, not for their range.
        by_channel = {*self._linear, *self._convolved, *self._keys}
        moved = [v for node in graph.graph for v in node.outputs if v.name in by_channel]
        extra = [v for v in moved if v not in produced]
        self._ranged = {v.name or "" for v in produced}
        self._float_inputs = [v.name or "" for v in graph.graph.inputs if _is_float(v) and self._wants(v)]
        fetched = [v for v in (*produced, *extra) if self._wants(v)]
        self._sessions = [
            (names, _session(graph, names, folder / component / str(i), optimize=only is not None))
            for i, names in enumerate(_chunks(fetched))
        ]

    def _wants(self, value: ir.Value) -> bool:
        return self._only is None or value.name in self._only.tensors

    def runs(self, inputs: Mapping[str, NDArray[Any]]) -> Iterator[_Run]:
        """All that there is to be run on these inputs."""
        last = len(self._sessions) - 1
        for i in range(len(self._sessions)):
            yield _Run(self, inputs, i, first=i == 0, last=i == last)

    def execute(self, run: _Run) -> dict[str, _Seen]:
        """A run's tensors and what is known of each by itself; several threads may be here at once."""
        names, session = self._sessions[run.session]
        try:
            values: list[NDArray[Any]] = session.run(names, dict(run.inputs))
        except Exception as error:  # onnxruntime raises its own kinds
            raise InputError(
                f"onnxruntime refuses the calibration feed: {error}", where=f"component {self._component}",
                fix=f"feed exactly {', '.join(self._inputs)} with the graph's shapes and dtypes",
            ) from error  # fmt: skip
        given = {name: run.inputs[name] for name in self._float_inputs if run.first and name in run.inputs}
        real = real_rows(run.inputs)
        found = given | dict(zip(names, values, strict=False))
        return {name: self._seen(name, value, real) for name, value in found.items()}

    def _seen(self, name: str, value: NDArray[Any], real: NDArray[np.bool_] | None) -> _Seen:
        linear = name in self._linear
        moment = extremes = low = high = None
        if linear or name in self._convolved:
            extremes = channel_range(value, value.ndim - 1 if linear else 1)
            full = name in self._hessians
            moment = row_moment(without_padding(value, real), full=full) if linear else channel_moment(value, full=full)
        if value.size and (name in self._ranged or name in self._float_inputs):
            lows, highs = (value, value) if extremes is None else (extremes.low, extremes.high)
            low, high = float(lows.min()), float(highs.max())
        if name in self._keys:
            extremes = key_range(value, real)
        taps = {weight: window.means(value) for weight, window in self._windows.get(name, ())}
        return _Seen(value, low, high, moment, extremes, taps)

    def sum_up(self, run: _Run, found: Mapping[str, _Seen], statistics: Statistics) -> None:
        """Add what came out of a run to `statistics`."""
        real = real_rows(run.inputs)
        for name, seen in found.items():
            self._add(name, seen, real, statistics)
        if run.last:
            statistics.samples[self._component] = statistics.samples.get(self._component, 0) + 1

    def _add(self, name: str, seen: _Seen, real: NDArray[np.bool_] | None, statistics: Statistics) -> None:
        value = seen.value
        if seen.low is not None and seen.high is not None:
            self._histogram(name, value, seen.low, seen.high, statistics)
        if seen.extremes is not None:
            _widen(statistics, f"{self._component}/{name}", seen.extremes)
        if seen.moment is not None:
            _sum(statistics, f"{self._component}/{name}", seen.moment)
            linear = name in self._linear
            drawn = self._drawn.setdefault(name, DrawnRows())
            drawn.add(without_padding(value, real) if linear else value, value.ndim - 1 if linear else 1)
        for weight, means in seen.taps.items():
            key = f"{self._component}/{weight}"
            known = statistics.taps.get(key)
            statistics.taps[key] = means if known is None else known + means

    def _histogram(self, name: str, value: NDArray[Any], low: float, high: float, statistics: Statistics) -> None:
        """Take in a tensor's extremes, and count its values where they are wanted."""
        key = f"{self._component}/{name}"
        histogram = statistics.histograms.setdefault(key, Histogram())
        try:
            histogram.widen(low, high)
        except InputError as error:
            raise InputError(error.why, where=f"tensor {key}", fix=error.fix) from None
        if self._only is None or name in self._only.counted:
            histogram.count(value, most=COUNTED)

    def finish(self, statistics: Statistics) -> None:
        """Add what is known only behind the last sample."""
        for name, drawn in self._drawn.items():
            statistics.rows[f"{self._component}/{name}"] = drawn.rows()


def _sum(statistics: Statistics, key: str, moment: SecondMoment) -> None:
    known = statistics.moments.get(key)
    statistics.moments[key] = moment if known is None else known.merged(moment)


def _widen(statistics: Statistics, key: str, extremes: ChannelRange) -> None:
    known = statistics.channels.get(key)
    statistics.channels[key] = extremes if known is None else known.merged(extremes)


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _chunks(values: Sequence[ir.Value]) -> list[list[str]]:
    """Names in groups of at most CHUNK_BYTES (unknown dimensions count as 1)."""
    chunks: list[list[str]] = [[]]
    size = 0
    for value in values:
        dims = [d if isinstance(d, int) else 1 for d in value.shape or ()]
        nbytes = 4 * int(np.prod(dims, dtype=np.int64))
        if chunks[-1] and size + nbytes > CHUNK_BYTES:
            chunks.append([])
            size = 0
        chunks[-1].append(value.name or "")
        size += nbytes
    return chunks


def _session(graph: ir.Model, names: Sequence[str], folder: Path, *, optimize: bool) -> Any:
    """A session of `graph` with these values as its outputs; weights are mapped from a file."""
    import onnxruntime as ort

    copy = graph.clone()
    values = {v.name: v for node in copy.graph for v in node.outputs}
    copy.graph.outputs[:] = [values[name] for name in names] or list(copy.graph.outputs)
    folder.mkdir(parents=True)
    ir.save(copy, folder / "graph.onnx", external_data="graph.data", size_threshold_bytes=256)
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(folder / "graph.onnx"), options, providers=["CPUExecutionProvider"])
