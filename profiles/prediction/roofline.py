"""Milliseconds of a graph as the sum of its ops', each as long as the slower of its arithmetic and its memory traffic.

After Williams et al. 2009 (doi 10.1145/1498765.1498785), per op instead of per graph, with one rate for each kind of op::

    ms(op)    = max(arithmetic·ms_per_work[kind]·work(op), memory·ms_per_mb·weights(op))
                + memory·(ms_per_spilled_mb·spilled(op) + ms_per_visited·visited(op)) + overhead·ms_per_op[unit(kind)]
    ms(graph) = sum over ops + memory·ms_per_io_mb·(megabytes in and out) + overhead·offset_ms·n/(n + 30,000), n elements in and out

Work is counted in the granules in which the units do it (32 channels, 8×4 pixels of an image or of each frame, 32 rows of a matrix), in 10⁹ multiply-accumulates for these (of
convolutions at least 128 for each element that they read or write) and in 10⁶ elements for all others. Weights stream in beside the arithmetic; activations that outgrow the chip's memory don't. What has no integer
kernel but a plain one visits every element of every window. Rates belong
to a precision; `arithmetic` (of matrices and of vectors), `memory` and `overhead` belong to a device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketport.profiles.prediction.features import GraphFeatures, Kind, OpFeatures

Floats = NDArray[np.float64]

KINDS = tuple(kind for kind in Kind if kind is not Kind.PLAIN_POOL)  # whose work is a pool's
MATRIX = (Kind.CONV, Kind.POINTWISE, Kind.GROUPED, Kind.LINEAR, Kind.MATMUL, Kind.RECURRENT)
MATRIX_KIND = np.array([kind in MATRIX for kind in KINDS])
CHANNELS = 32  # that are laid out, and computed, together
SHALLOW = 16  # input channels below which a matrix unit idles
TILE = (8, 4)  # rows and columns of an image that are computed together
ROWS = 32  # of a matrix that are
MOVED = 128  # multiply-accumulates that take as long as bringing a convolution one element, or taking one away
IN_PLACE = ("Concat", "Split")  # parts of whole granules of channels are written and read where they lie
CONVERTED = 10  # times the work of a batch normalization where it stays float between two conversions; 4 (w8a8) and 50 (w8a16) by the compiler
# Rows of a linear layer in integers of 8 bits that are no multiple of 8 take 1.6 (577 rows) to 4.3 times (252) as long by the compiler, of fewer than 50
# hardly more; 16 bits make no difference.
RAGGED, RAGGED_ROWS, RAGGED_FROM = 3.0, 8, 50
# Times the work of an op with a constant for each colour of a picture: its channels lie together, and are spread first. By the compiler 5 at each
# precision for three of them, and for one 0.8 (w8a8), 1.9 (w8a16) and 3.3 (float).
PACKED = {1: 2, 3: 5}
ON_CHIP_MB = 8.0  # VTCM of the measured chips; activations beyond it go through DRAM
HANDED_OVER = 30_000  # elements in and out at which half of a call's overhead is there
# activation and weight bytes of an element
WIDTHS: dict[str, tuple[float, float]] = {"float": (2, 2), "w8a8": (1, 1), "w8a16": (2, 1), "w4a16": (2, 0.5)}


@dataclass(frozen=True)
class Work:
    """Graphs at one precision, one entry an op.

    Attributes:
        graph: index of the graph that the op belongs to, ascending.
        kind: index into `KINDS`.
        work: 10⁹ multiply-accumulates or 10⁶ elements.
        megabytes: weights read.
        spilled: megabytes of activations that do not stay on the chip.
        visited: 10⁶ elements that are visited one by one.
        io_megabytes: inputs and outputs of each graph.
        handed_over: share of a call's overhead that each graph has, see `handed_over`.
    """

    graph: NDArray[np.intp]
    kind: NDArray[np.intp]
    work: Floats
    megabytes: Floats
    spilled: Floats
    visited: Floats
    io_megabytes: Floats
    handed_over: Floats

    @classmethod
    def of(cls, graphs: Sequence[GraphFeatures], precision: str) -> "Work":
        """Work of `graphs` at a precision of `WIDTHS`."""
        activation, weight = WIDTHS[precision]
        ops = [op for graph in graphs for op in graph.ops]
        return cls(
            graph=np.repeat(np.arange(len(graphs)), [len(g.ops) for g in graphs]),
            kind=np.array([KINDS.index(Kind.POOL if _is_plain(op) else op.kind) for op in ops], np.intp),
            work=np.array([_work(op) * _slower(op, precision) for op in ops], np.float64),
            megabytes=np.array([op.weights * weight / 1e6 for op in ops], np.float64),
            spilled=np.array([_spilled(op, activation) for op in ops], np.float64),
            visited=np.array([visited(op, precision) for op in ops], np.float64),
            io_megabytes=np.array([g.io_elements * activation / 1e6 for g in graphs], np.float64),
            handed_over=handed_over(graphs),
        )


def _is_plain(op: OpFeatures) -> bool:
    return op.kind is Kind.PLAIN_POOL


def visited(op: OpFeatures, precision: str) -> float:
    """10⁶ elements that the plain kernel of an op visits: all of every window, and the result. None in float, for which there are better ones."""
    if not _is_plain(op) or precision == "float":
        return 0.0
    return math.prod(op.output) * (op.window + 1) / 1e6


def _slower(op: OpFeatures, precision: str) -> float:
    """How many times the work an op is at a precision because of the form that it has there."""
    if op.op == "BatchNormalization" and precision != "float":
        return CONVERTED
    rows = math.prod(op.output[:-1])
    if op.kind is Kind.LINEAR and precision == "w8a8" and rows > RAGGED_FROM and rows % RAGGED_ROWS:
        return RAGGED
    return 1.0


def handed_over(graphs: Sequence[GraphFeatures]) -> Floats:
    """Share of a call's overhead: a call that hands over little (tokens, a spectrogram) takes next to none, images all of it."""
    elements = np.array([g.io_elements for g in graphs], np.float64)
    return np.asarray(elements / (elements + HANDED_OVER))


def _padded(n: int, granule: int) -> float:
    """How much more than `n` whole granules are."""
    return -(-n // granule) * granule / max(n, 1)


def _in_place(op: OpFeatures) -> bool:
    """Whether the parts of a concatenation or split are whole granules, where they lie one after another along the channels."""
    whole, parts = (op.output, op.inputs) if op.op == "Concat" else (op.inputs[0], (op.output,))
    axis = 1 if len(whole) == 4 else len(whole) - 1
    return all(len(part) != len(whole) or part[axis] == whole[axis] or part[axis] % CHANNELS == 0 for part in parts)


def _work(op: OpFeatures) -> float:
    """10⁹ multiply-accumulates or 10⁶ elements, in whole granules."""
    if op.op in IN_PLACE and _in_place(op):
        return 0.0
    image = len(op.output) == 4 and op.kind not in (Kind.LINEAR, Kind.MATMUL, Kind.SOFTMAX)
    convolves = op.kind in (Kind.CONV, Kind.POINTWISE, Kind.GROUPED, Kind.DEPTHWISE)
    more = 1.0
    if convolves and len(op.output) >= 4:
        more = _padded(op.output[-2], TILE[0]) * _padded(op.output[-1], TILE[1])
    elif op.kind is Kind.LINEAR:
        more = _padded(math.prod(op.output[:-1]), ROWS)
    elif op.kind is Kind.MATMUL and len(op.output) > 1:
        more = _padded(op.output[-2], ROWS)
    if op.kind in MATRIX:
        if op.kind is not Kind.GROUPED and op.kind is not Kind.RECURRENT and op.macs:
            out = op.output[1] if convolves and len(op.output) > 1 else op.output[-1] if op.output else 1
            depth = op.macs / max(math.prod(op.output), 1) / op.window
            more *= _padded(out, CHANNELS) * max(1.0, SHALLOW / depth)
        moved = 0.0
        if convolves and len(op.output) > 1:
            moved = math.prod(op.output) * max(1.0, CHANNELS / op.output[1]) + sum(map(math.prod, op.inputs))
        return max(more * op.macs, MOVED * moved) / 1e9
    laid_out = op.inputs[0] if op.kind is Kind.REDUCE and op.inputs else op.output
    # Channels are what comes last where there are more than four dimensions.
    depth = laid_out[1] if image and len(laid_out) == 4 else laid_out[-1] if len(laid_out) > 4 else CHANNELS
    if depth < CHANNELS:
        more *= _padded(depth, CHANNELS)
    if len(op.output) == 3 and op.output[0] > 1 and op.kind in (Kind.NORM, Kind.ACTIVATION, Kind.ELEMENTWISE):
        more *= _padded(op.output[1], TILE[1])  # a batch behind the sequence lies where an image has its columns
    if op.kind is Kind.ELEMENTWISE and image and op.weights == op.output[1]:
        more *= PACKED.get(op.weights, 1)
    if op.kind is Kind.DEPTHWISE:
        return more * math.prod(op.output) * op.window / 1e6
    if op.op == "Slice":  # reads no more than it writes
        return more * math.prod(op.output) / 1e6
    return more * max([math.prod(op.output), *[math.prod(shape) for shape in op.inputs]]) / 1e6


def _spilled(op: OpFeatures, width: float) -> float:
    """Megabytes of attention scores beyond the chip's memory; convolutions are cut into tiles that stay on it."""
    if op.kind not in (Kind.MATMUL, Kind.SOFTMAX):
        return 0.0
    moved = (math.prod(op.output) + sum(math.prod(s) for s in op.inputs)) * width / 1e6
    return max(0.0, moved - ON_CHIP_MB)


@dataclass(frozen=True)
class Rates:
    """What one precision costs on the reference device.

    Attributes:
        ms_per_work: by kind, in the order of `KINDS`.
        ms_per_mb: of weights.
        ms_per_spilled_mb: of activations beyond the chip's memory.
        ms_per_visited: of 10⁶ elements visited one by one.
        ms_per_op: of matrix units, of all others.
        ms_per_io_mb: of inputs and outputs.
        offset_ms: of a call that hands over images.
    """

    ms_per_work: Floats
    ms_per_mb: float
    ms_per_spilled_mb: float
    ms_per_visited: float
    ms_per_op: tuple[float, float]
    ms_per_io_mb: float
    offset_ms: float


@dataclass(frozen=True)
class Factors:
    """How many times longer than the reference device another one takes: for matrix and vector arithmetic, DRAM, overheads."""

    matrix: float = 1.0
    vector: float = 1.0
    memory: float = 1.0
    overhead: float = 1.0


def milliseconds(work: Work, rates: Rates, factors: Factors) -> Floats:
    """One prediction a graph."""
    matrix = MATRIX_KIND[work.kind]
    arithmetic = np.where(matrix, factors.matrix, factors.vector) * rates.ms_per_work[work.kind] * work.work
    weights = factors.memory * rates.ms_per_mb * work.megabytes
    spilled = factors.memory * (rates.ms_per_spilled_mb * work.spilled + rates.ms_per_visited * work.visited)
    per_op = factors.overhead * np.where(matrix, rates.ms_per_op[0], rates.ms_per_op[1])
    total = np.bincount(work.graph, np.maximum(arithmetic, weights) + spilled + per_op, len(work.io_megabytes))
    return np.asarray(
        total
        + factors.memory * rates.ms_per_io_mb * work.io_megabytes
        + factors.overhead * rates.offset_ms * work.handed_over
    )
