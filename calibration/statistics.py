"""What calibration saw: target-independent, so that one pass serves every target and scheme."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.observers import Histogram
from pocketport.calibration.storage import read_npz, write_npz
from pocketport.errors import InputError

_SIDE_BY_SIDE = " + "


def side_by_side(tensors: Iterable[str]) -> str:
    """What the moments of the columns of several tensors together are called; of one tensor they are called as it is."""
    return _SIDE_BY_SIDE.join(tensors)


def tensors_of(name: str) -> tuple[str, ...]:
    """The inverse of `side_by_side`."""
    return tuple(name.split(_SIDE_BY_SIDE))


@dataclass
class SecondMoment:
    """Σ x² a column of a linear layer's input [rows, K] without padding, and Σ xᵀx where it was asked for.

    Of a convolution's input: Σ x² a channel, every position a row.

    The least-squares loss of the layer has the Hessian 2·xᵀx (Frantar et al. 2022, arXiv 2210.17323).

    Attributes:
        diagonal: [K] float64.
        rows: number of rows summed.
        full: [K, K] float32, or None.
    """

    diagonal: NDArray[np.float64]
    rows: int
    full: NDArray[np.float32] | None = None

    def mean(self) -> "SecondMoment":
        """The same a row, as of one row."""
        rows = max(self.rows, 1)
        return SecondMoment(self.diagonal / rows, 1, None if self.full is None else self.full / np.float32(rows))

    def merged(self, other: "SecondMoment") -> "SecondMoment":
        """The sums over both."""
        full = None if self.full is None or other.full is None else self.full + other.full
        return SecondMoment(self.diagonal + other.diagonal, self.rows + other.rows, full)


@dataclass
class ChannelRange:
    """Extremes of each channel of a layer's input; the channels are a convolution's, or a linear layer's columns.

    Attributes:
        low: [C] float32, least value; of keys [heads, d].
        high: the same, greatest value.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    def merged(self, other: "ChannelRange") -> "ChannelRange":
        """The extremes of both."""
        return ChannelRange(np.minimum(self.low, other.low), np.maximum(self.high, other.high))


@dataclass
class Statistics:
    """What calibration saw, and of how much.

    Attributes:
        histograms: values, by ``component/tensor``.
        moments: second moments of linear layers' and convolutions' inputs by channel, by ``component/tensor``; of several
            together by ``component/`` and what `side_by_side` calls them.
        taps: Σ over samples of the mean input under each tap of a convolution, [C, *kernel], by ``component/weight``.
        samples: how many samples each component ran on.
        channels: extremes of the tensors that `moments` has, and of keys without padding (``present_key_i``), by channel.
        rows: some rows of the same tensors, [n, C]; see `DrawnRows`.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    moments: dict[str, SecondMoment] = field(default_factory=dict)
    taps: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    channels: dict[str, ChannelRange] = field(default_factory=dict)
    rows: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write to `path` (``.npz``), same statistics, same bytes."""
        arrays: dict[str, NDArray[np.generic]] = {}
        for name, h in self.histograms.items():
            arrays[f"histogram|{name}|counts"] = h.counts
            arrays[f"histogram|{name}|bounds"] = np.array([h.minimum, h.maximum])
            arrays[f"histogram|{name}|bins"] = np.array([h.exponent, h.first], np.int64)
        for name, m in self.moments.items():
            arrays[f"moment|{name}|diagonal"] = m.diagonal
            arrays[f"moment|{name}|rows"] = np.array(m.rows, np.int64)
            if m.full is not None:
                arrays[f"moment|{name}|full"] = m.full
        for name, c in self.channels.items():
            arrays[f"channels|{name}|range"] = np.stack([c.low, c.high])
        for name, rows in self.rows.items():
            arrays[f"drawn|{name}|values"] = rows
        for name, taps in self.taps.items():
            arrays[f"taps|{name}|sum"] = taps
        for name, count in self.samples.items():
            arrays[f"samples|{name}|count"] = np.array(count, np.int64)
        write_npz(path, arrays)

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Read what `save` wrote; InputError when `path` is not such a file."""
        arrays = read_npz(path)
        statistics = cls()
        try:
            for key in arrays:
                kind, _, rest = key.partition("|")
                name, _, part = rest.rpartition("|")
                if part == "counts":
                    low, high = (float(v) for v in arrays[f"{kind}|{name}|bounds"])
                    exponent, first = (int(v) for v in arrays[f"{kind}|{name}|bins"])
                    statistics.histograms[name] = Histogram(low, high, exponent, first, arrays[key].astype(np.int64))
                elif part == "diagonal":
                    full = arrays.get(f"{kind}|{name}|full")
                    statistics.moments[name] = SecondMoment(
                        arrays[key].astype(np.float64),
                        int(arrays[f"{kind}|{name}|rows"]),
                        None if full is None else full.astype(np.float32),
                    )
                elif part == "range":
                    low_high = arrays[key].astype(np.float32)
                    statistics.channels[name] = ChannelRange(low_high[0], low_high[1])
                elif part == "values":
                    statistics.rows[name] = arrays[key].astype(np.float32)
                elif part == "sum":
                    statistics.taps[name] = arrays[key].astype(np.float64)
                elif part == "count":
                    statistics.samples[name] = int(arrays[key])
        except (KeyError, ValueError) as error:
            raise InputError(f"not calibration statistics: {error}", where=str(path), fix="calibrate again") from error
        return statistics
