"""One pass over the calibration data: every intermediate tensor of the float graphs into Statistics."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.observers import Histogram
from pocketport.calibration.statistics import ChannelRange, SecondMoment, Statistics
from pocketport.calibration.taps import Window, window_of
from pocketport.errors import InputError, UsageError

MOVEMENT_OPS = frozenset(
    {"Identity", "Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Tile",
     "DepthToSpace", "SpaceToDepth", "MaxPool"}
)  # fmt: skip
"""Ops whose outputs hold nothing but values of their first input: both share one encoding."""

ATTENTION_BIAS = "attention_bias"  # of the component graphs: 0 where attention is allowed, negative where not
LINEAR_OPS = frozenset({"Gemm", "MatMul"})
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
COUNTED = 1 << 14  # values of a tensor that each sample adds to its histogram
CHUNK_BYTES = 512 << 20  # intermediates fetched by one run of a session


def calibrate(
    graphs: Mapping[str, ir.Model],
    feeds: Iterable[tuple[str, Mapping[str, NDArray[Any]]]],
    *,
    hessians: Mapping[str, Sequence[str]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Statistics:
    """Run the float graphs on `feeds` and sum up every float tensor that data movement does not merely repeat.

    Args:
        graphs: component → float graph.
        feeds: (component, inputs by name) pairs, in any order; read once.
        hessians: component → inputs of linear layers (by column) and convolutions (by channel) whose full Σ xᵀx is wanted; the diagonal is always kept.
        progress: called with the number of feeds done.

    Raises:
        UsageError: `feeds` is empty, or names a component that is not in `graphs`.
        InputError: onnxruntime refuses a graph or a feed, or a tensor holds NaN or infinity.
    """
    statistics = Statistics()
    with tempfile.TemporaryDirectory(prefix="pocketport-calibration-") as folder:
        captures: dict[str, _Capture] = {}
        for done, (component, inputs) in enumerate(feeds, start=1):
            if component not in graphs:
                raise UsageError(
                    f"no component {component!r}", where="calibration feeds", fix=f"use one of {', '.join(graphs)}"
                )
            if component not in captures:
                wanted = frozenset((hessians or {}).get(component, ()))
                captures[component] = _Capture(component, graphs[component], wanted, Path(folder))
            captures[component].feed(inputs, statistics)
            if progress:
                progress(done)
    if not statistics.samples:
        raise UsageError("there was no calibration data", where="calibration", fix="give at least one sample")
    return statistics


class _Capture:
    """Sessions of one component that give its intermediates as outputs."""

    def __init__(self, component: str, graph: ir.Model, hessians: frozenset[str], folder: Path) -> None:
        self._component = component
        self._hessians = hessians
        self._inputs = [v.name or "" for v in graph.graph.inputs]
        produced = [v for node in graph.graph if node.op_type not in MOVEMENT_OPS for v in node.outputs if _is_float(v)]
        self._linear = _linear_inputs(graph)
        self._convolved = _convolution_inputs(graph)
        self._windows = _windows(graph)
        # A layer's input may be the output of data movement: fetched for its moments, not for its range.
        moved = [v for node in graph.graph for v in node.outputs if v.name in self._linear or v.name in self._convolved]
        extra = [v for v in moved if v not in produced]
        self._ranged = {v.name or "" for v in produced}
        self._float_inputs = [v.name or "" for v in graph.graph.inputs if _is_float(v)]
        self._sessions = [
            (names, _session(graph, names, folder / component / str(i)))
            for i, names in enumerate(_chunks([*produced, *extra]))
        ]

    def feed(self, inputs: Mapping[str, NDArray[Any]], statistics: Statistics) -> None:
        """Run once and add what came out to `statistics`."""
        real = real_rows(inputs)
        for name in self._float_inputs:
            if name in inputs:
                self._observe(name, inputs[name], real, statistics)
        for names, session in self._sessions:
            try:
                values = session.run(names, dict(inputs))
            except Exception as error:  # onnxruntime raises its own kinds
                raise InputError(
                    f"onnxruntime refuses the calibration feed: {error}", where=f"component {self._component}",
                    fix=f"feed exactly {', '.join(self._inputs)} with the graph's shapes and dtypes",
                ) from error  # fmt: skip
            for name, value in zip(names, values, strict=True):
                self._observe(name, value, real, statistics)
        statistics.samples[self._component] = statistics.samples.get(self._component, 0) + 1

    def _observe(self, name: str, value: NDArray[Any], real: NDArray[np.bool_] | None, statistics: Statistics) -> None:
        key = f"{self._component}/{name}"
        if name in self._ranged or name in self._float_inputs:
            try:
                statistics.histograms.setdefault(key, Histogram()).update(value, most=COUNTED)
            except InputError as error:
                raise InputError(error.why, where=f"tensor {key}", fix=error.fix) from None
        if name in self._linear:
            rows = value if real is None or len(value) != len(real) else value[real]
            _add(statistics, key, _moment(rows, full=name in self._hessians), _range(value, value.ndim - 1))
        elif name in self._convolved:
            _add(statistics, key, _channel_moment(value, full=name in self._hessians), _range(value, 1))
        for weight, window in self._windows.get(name, ()):
            taps = window.means(value)
            key = f"{self._component}/{weight}"
            statistics.taps[key] = statistics.taps[key] + taps if key in statistics.taps else taps


def _add(statistics: Statistics, key: str, moment: SecondMoment, extremes: ChannelRange) -> None:
    known, seen = statistics.moments.get(key), statistics.channels.get(key)
    statistics.moments[key] = moment if known is None else known.merged(moment)
    statistics.channels[key] = extremes if seen is None else seen.merged(extremes)


def _range(value: NDArray[Any], axis: int) -> ChannelRange:
    others = tuple(d for d in range(value.ndim) if d != axis)
    low, high = value.min(axis=others), value.max(axis=others)
    return ChannelRange(low.astype(np.float32), high.astype(np.float32))


def _channel_moment(value: NDArray[Any], *, full: bool) -> SecondMoment:
    """Of a convolution's input [N, C, *spatial]."""
    x = np.asarray(value, np.float32).reshape(*value.shape[:2], -1)
    rows = len(x) * x.shape[2]
    if not full:
        return SecondMoment(np.einsum("ncs,ncs->c", x, x).astype(np.float64), rows)
    product = np.matmul(x, x.swapaxes(1, 2)).sum(axis=0)
    return SecondMoment(np.diagonal(product).astype(np.float64), rows, product)


def _moment(value: NDArray[Any], *, full: bool) -> SecondMoment:
    rows = np.ascontiguousarray(value, np.float32).reshape(-1, value.shape[-1])
    diagonal = np.square(rows).sum(axis=0, dtype=np.float64)
    return SecondMoment(diagonal, len(rows), rows.T @ rows if full else None)


def real_rows(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_] | None:
    """Which rows of a padded sequence are not padding: those that its last row may attend to.

    Static shapes make padding common, and weights should not be fitted to it. Ranges do include it, since it flows
    through the same tensors. None where the component has no `attention_bias` [1, rows or 1, columns].
    """
    bias = inputs.get(ATTENTION_BIAS)
    return bias[0, -1] == 0 if bias is not None and bias.ndim == 3 else None


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _linear_inputs(graph: ir.Model) -> dict[str, ir.Value]:
    """Inputs of Gemm and MatMul whose other operand is a weight, by name."""
    found: dict[str, ir.Value] = {}
    for node in graph.graph:
        if node.op_type not in LINEAR_OPS or node.inputs[0] is None or node.inputs[1] is None:
            continue
        if ir.convenience.get_const_tensor(node.inputs[1]) is not None and not _transposed(node):
            found[node.inputs[0].name or ""] = node.inputs[0]
    return found


def _convolution_inputs(graph: ir.Model) -> frozenset[str]:
    """Inputs of convolutions whose weight is constant."""
    return frozenset(
        node.inputs[0].name or ""
        for node in graph.graph
        if node.op_type in CONVOLUTIONS and node.inputs[0] is not None
        and ir.convenience.get_const_tensor(node.inputs[1]) is not None  # type: ignore[arg-type]
    )  # fmt: skip


def _windows(graph: ir.Model) -> dict[str, list[tuple[str, Window]]]:
    """Input → (weight, window) of the convolutions that read it; a weight of several nodes has no mean input."""
    found: dict[str, list[tuple[str, Window]]] = {}
    for node in graph.graph:
        window, x = window_of(node), node.inputs[0] if node.inputs else None
        if window is not None and x is not None and len(node.inputs[1].uses()) == 1:  # type: ignore[union-attr]
            found.setdefault(x.name or "", []).append((node.inputs[1].name or "", window))  # type: ignore[union-attr]
    return found


def _transposed(node: ir.Node) -> bool:
    attribute = node.attributes.get("transA")
    return attribute is not None and bool(attribute.as_int())


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


def _session(graph: ir.Model, names: Sequence[str], folder: Path) -> Any:
    """An unoptimized session of `graph` with these values as its outputs; weights are mapped from a file."""
    import onnxruntime as ort

    copy = graph.clone()
    values = {v.name: v for node in copy.graph for v in node.outputs}
    copy.graph.outputs[:] = [values[name] for name in names] or list(copy.graph.outputs)
    folder.mkdir(parents=True)
    ir.save(copy, folder / "graph.onnx", external_data="graph.data", size_threshold_bytes=256)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(folder / "graph.onnx"), options, providers=["CPUExecutionProvider"])
