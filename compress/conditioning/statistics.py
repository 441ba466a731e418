"""What the inputs of linear layers look like, channel by channel: what conditioning chooses its factors from."""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.reductions import real_rows
from pocketport.compress.executors.ort_executor import Arrays, OrtExecutor
from pocketport.compress.graph import clone_graph
from pocketport.errors import InputError, UsageError

SAMPLE_ROWS = 512


@dataclass
class ChannelStatistics:
    """One tensor's channels (its last axis, K of them) over all calibration rows that are no padding.

    Attributes:
        maximum: [K] float64, max |x|.
        magnitude: [K] float64, Σ |x|.
        squares: [K] float64, Σ x².
        rows: rows seen.
        sample: [at most SAMPLE_ROWS, K] float32, rows drawn evenly from all.
        ranks: [rows of `sample`], the random numbers that the rows were drawn by: the least ones stay.
    """

    maximum: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    squares: NDArray[np.float64]
    rows: int = 0
    sample: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    ranks: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, rows: NDArray[np.float32], random: np.random.Generator) -> "ChannelStatistics":
        """Of rows [n, K]."""
        magnitudes = np.abs(rows)
        single = cls(
            magnitudes.max(axis=0).astype(np.float64), magnitudes.sum(axis=0, dtype=np.float64),
            np.einsum("nk,nk->k", rows, rows, dtype=np.float64), len(rows), rows, random.random(len(rows)),
        )  # fmt: skip
        single._thin()
        return single

    def merged(self, other: "ChannelStatistics") -> "ChannelStatistics":
        """Of the rows of both."""
        both = ChannelStatistics(
            np.maximum(self.maximum, other.maximum), self.magnitude + other.magnitude, self.squares + other.squares,
            self.rows + other.rows, np.concatenate([self.sample, other.sample]), np.concatenate([self.ranks, other.ranks]),
        )  # fmt: skip
        both._thin()
        return both

    def _thin(self) -> None:
        if len(self.ranks) > SAMPLE_ROWS:
            kept = np.argpartition(self.ranks, SAMPLE_ROWS)[:SAMPLE_ROWS]
            self.sample, self.ranks = self.sample[kept], self.ranks[kept]


def observe(
    graphs: Mapping[str, ir.Model], feeds: Iterable[tuple[str, Arrays]], tensors: Mapping[str, Iterable[str]]
) -> dict[str, ChannelStatistics]:
    """Run the float graphs on `feeds` and look at some of their tensors.

    Args:
        graphs: component → float graph.
        feeds: (component, inputs by name) pairs, read once; components without `tensors` are passed over.
        tensors: component → tensors to look at.

    Returns:
        By ``component/tensor``.

    Raises:
        InputError: a tensor holds NaN or infinity.
        UsageError: no feed ran a component that has `tensors`.
    """
    wanted = {component: sorted(set(names)) for component, names in tensors.items()}
    executors: dict[str, OrtExecutor] = {}
    found: dict[str, ChannelStatistics] = {}
    randoms = {f"{c}/{n}": np.random.default_rng(zlib.crc32(n.encode())) for c, names in wanted.items() for n in names}
    for component, inputs in feeds:
        if not wanted.get(component):
            continue
        if component not in executors:
            executors[component] = _executor(graphs[component], wanted[component])
        results = {**inputs, **executors[component].run(inputs)}
        real = real_rows(inputs)
        for name in wanted[component]:
            key, array = f"{component}/{name}", np.asarray(results[name], np.float32)
            rows = array.reshape(-1, array.shape[-1])
            single = ChannelStatistics.of(
                rows if real is None or len(array) != len(real) else array[real], randoms[key]
            )
            if not np.isfinite(single.maximum).all():
                raise InputError(
                    "it holds NaN or infinity",
                    where=f"tensor {key}",
                    fix="check the calibration data and the float model",
                )
            found[key] = found[key].merged(single) if key in found else single
    if found.keys() != randoms.keys():
        missing = sorted(randoms.keys() - found.keys())
        raise UsageError(
            f"no calibration sample ran {missing[0]}", where="conditioning", fix="give samples that run every component"
        )
    return found


def _executor(graph: ir.Model, names: list[str]) -> OrtExecutor:
    copy = clone_graph(graph)
    values = {v.name: v for node in copy.graph for v in node.outputs}
    copy.graph.outputs[:] = [values[name] for name in names if name in values]
    return OrtExecutor(copy)
