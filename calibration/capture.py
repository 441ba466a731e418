"""One pass over the calibration data: every intermediate tensor of the float graphs into Statistics."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.drawn_rows import DrawnRows, drawn_rows
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
from pocketport.calibration.sessions import open_session
from pocketport.calibration.statistics import ChannelRange, SecondMoment, Statistics, tensors_of
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
        hessians: component → inputs of linear layers (by column) and convolutions (by channel) whose full Σ xᵀx is wanted, or
            several inputs of linear layers as `side_by_side` calls them; the diagonal is always kept.
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
    with ThreadPoolExecutor(threads) as pool:

        def runs() -> Iterator[_Run]:
            for component, inputs in feeds:
                if component not in graphs:
                    raise UsageError(
                        f"no component {component!r}", where="calibration feeds", fix=f"use one of {', '.join(graphs)}"
                    )
                if component not in captures:
                    wanted = frozenset((hessians or {}).get(component, ()))
                    selection = None if only is None else only.get(component, Selection(frozenset(), frozenset()))
                    captures[component] = _Capture(component, graphs[component], wanted, selection)
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
    """One run of one of a component's sessions; `first` and `last` of those on the same inputs, the `sample`-th."""

    capture: "_Capture"
    inputs: Mapping[str, NDArray[Any]]
    sample: int
    session: int
    first: bool
    last: bool


@dataclass(frozen=True)
class _Seen:
    """What is known of one tensor of one run, which is not kept itself.

    Attributes:
        histogram: of its values, where its range is wanted.
        extremes: of its channels, of a layer's input; of keys without padding.
        moment: of a layer's input, and `rows` drawn from it.
        taps: what the convolutions that read it see on average, by their weight.
    """

    histogram: Histogram | None = None
    extremes: ChannelRange | None = None
    moment: SecondMoment | None = None
    rows: NDArray[np.float32] | None = None
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

    def __init__(self, component: str, graph: ir.Model, hessians: frozenset[str], only: Selection | None) -> None:
        self._component = component
        self._samples = 0
        self._hessians = hessians
        named = {v.name for v in (*graph.graph.inputs, *(v for node in graph.graph for v in node.outputs))}
        self._together = {name: tensors_of(name) for name in sorted(hessians - named)}
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
        chunks = _chunks(fetched, self._together.values())
        self._sessions = [(names, open_session(graph, names, optimize=only is not None)) for names in chunks]

    def _wants(self, value: ir.Value) -> bool:
        return self._only is None or value.name in self._only.tensors

    def runs(self, inputs: Mapping[str, NDArray[Any]]) -> Iterator[_Run]:
        """All that there is to be run on these inputs."""
        last = len(self._sessions) - 1
        for i in range(len(self._sessions)):
            yield _Run(self, inputs, self._samples, i, first=i == 0, last=i == last)
        self._samples += 1

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
        seen = {name: self._seen(name, value, real, run.sample) for name, value in found.items()}
        known = {**run.inputs, **found}
        for name, parts in self._together.items():
            if not found.keys().isdisjoint(parts) and known.keys() >= set(parts):
                columns = [without_padding(known[part], real) for part in parts]
                seen[name] = _Seen(moment=row_moment(np.concatenate(columns, axis=-1), full=True))
        return seen

    def _seen(self, name: str, value: NDArray[Any], real: NDArray[np.bool_] | None, sample: int) -> _Seen:
        linear = name in self._linear
        histogram = extremes = moment = rows = None
        if linear or name in self._convolved:
            axis = value.ndim - 1 if linear else 1
            extremes = channel_range(value, axis)
            full = name in self._hessians
            met = without_padding(value, real) if linear else value
            moment = row_moment(met, full=full) if linear else channel_moment(met, full=full)
            rows = drawn_rows(met, axis, sample)
        if value.size and (name in self._ranged or name in self._float_inputs):
            lows, highs = (value, value) if extremes is None else (extremes.low, extremes.high)
            histogram = self._histogram(name, value, float(lows.min()), float(highs.max()))
        if name in self._keys:
            extremes = key_range(value, real)
        taps = {weight: window.means(value) for weight, window in self._windows.get(name, ())}
        return _Seen(histogram, extremes, moment, rows, taps)

    def _histogram(self, name: str, value: NDArray[Any], low: float, high: float) -> Histogram:
        """A tensor's extremes, and its values counted where they are wanted."""
        histogram = Histogram()
        try:
            histogram.widen(low, high)
        except InputError as error:
            raise InputError(error.why, where=f"tensor {self._component}/{name}", fix=error.fix) from None
        if self._only is None or name in self._only.counted:
            histogram.count(value, most=COUNTED)
        return histogram

    def sum_up(self, run: _Run, found: Mapping[str, _Seen], statistics: Statistics) -> None:
        """Add what came out of a run to `statistics`."""
        for name, seen in found.items():
            key = f"{self._component}/{name}"
            if seen.histogram is not None:
                statistics.histograms.setdefault(key, Histogram()).merge(seen.histogram)
            if seen.extremes is not None:
                known = statistics.channels.get(key)
                statistics.channels[key] = seen.extremes if known is None else known.merged(seen.extremes)
            if seen.moment is not None:
                sums = statistics.moments.get(key)
                statistics.moments[key] = seen.moment if sums is None else sums.merged(seen.moment)
            if seen.rows is not None:
                self._drawn.setdefault(name, DrawnRows()).add(seen.rows)
            for weight, means in seen.taps.items():
                key = f"{self._component}/{weight}"
                statistics.taps[key] = statistics.taps[key] + means if key in statistics.taps else means
        if run.last:
            statistics.samples[self._component] = statistics.samples.get(self._component, 0) + 1

    def finish(self, statistics: Statistics) -> None:
        """Add what is known only behind the last sample."""
        for name, drawn in self._drawn.items():
            statistics.rows[f"{self._component}/{name}"] = drawn.rows()


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _chunks(values: Sequence[ir.Value], together: Iterable[Sequence[str]]) -> list[list[str]]:
    """Names in groups of at most CHUNK_BYTES (unknown dimensions count as 1), or of what must be fetched `together`."""
    chunks: list[list[str]] = [[]]
    size = 0
    for unit in _units(values, together):
        nbytes = sum(_bytes(value) for value in unit)
        if chunks[-1] and size + nbytes > CHUNK_BYTES:
            chunks.append([])
            size = 0
        chunks[-1] += [value.name or "" for value in unit]
        size += nbytes
    return chunks


def _units(values: Sequence[ir.Value], together: Iterable[Sequence[str]]) -> list[list[ir.Value]]:
    """Values one by one, those together that one run must fetch, in the order of the first of them."""
    units = {value.name or "": [value] for value in values}
    for names in together:
        own = {id(units[name]): units[name] for name in names if name in units}
        joined = [value for unit in own.values() for value in unit]
        units |= {value.name or "": joined for value in joined}
    return list({id(unit): unit for unit in units.values()}.values())


def _bytes(value: ir.Value) -> int:
    dims = [d if isinstance(d, int) else 1 for d in value.shape or ()]
    return 4 * int(np.prod(dims, dtype=np.int64))
