"""The adaptive histogram that every tensor is summed up in, and what an observer is.

A histogram's bins are [i·w, (i+1)·w) with w = 2^e. The exponent depends only on the extremes seen, so the histogram of
all data is the same whatever the order of updates and merges: coarsening adds neighbouring bins, exactly.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pocketport.errors import InputError

BINS = 2048
CHUNK = 1 << 15  # values binned at once: what a core's cache holds
FLOAT32_DIGITS = 24  # bins finer than the spacing of float32 near the extremes would be empty


@dataclass
class Histogram:
    """Counts of one tensor's values; memory is bounded by `BINS`, whatever the number of samples.

    Attributes:
        minimum: least value seen (+inf before any).
        maximum: greatest value seen.
        exponent: bin width is 2**exponent.
        first: index of the first bin: it begins at first · 2**exponent.
        counts: int64, values a bin.
    """

    minimum: float = math.inf
    maximum: float = -math.inf
    exponent: int = 0
    first: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def total(self) -> int:
        """How many values were seen."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def centers(self) -> NDArray[np.float64]:
        """Middle of each bin, kept inside the extremes."""
        middles = (self.first + np.arange(len(self.counts)) + 0.5) * self.width
        return np.clip(middles, self.minimum, self.maximum)

    @property
    def seen(self) -> bool:
        """Whether the extremes are known, counted or not."""
        return self.minimum <= self.maximum

    def update(self, values: NDArray[np.floating], *, most: int = 0) -> None:
        """Take in the extremes of `values` and count them; see `widen` and `count`."""
        if values.size:
            self.widen(float(values.min()), float(values.max()))
            self.count(values, most=most)

    def widen(self, low: float, high: float) -> None:
        """Take in extremes; no value is counted.

        Raises:
            InputError: one is NaN or infinite.
        """
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError(
                "a value is NaN or infinite", where="calibration", fix="check the calibration data and the float model"
            )
        if self.counts.size:
            self._fit(low, high)
        else:
            self.minimum, self.maximum = min(low, self.minimum), max(high, self.maximum)

    def count(self, values: NDArray[np.floating], *, most: int = 0) -> None:
        """Count values that lie within the extremes.

        Args:
            values: any shape.
            most: where not 0, at most this many of them are counted, drawn evenly.
        """
        self._fit(self.minimum, self.maximum)
        counted = _drawn(values.ravel(), most)
        # A power of two of at least 1 loses no bit of a float32, which takes half the time.
        exact = np.float32 if self.exponent <= 0 and values.dtype == np.float32 else np.float64
        for start in range(0, counted.size, CHUNK):
            index = np.multiply(counted[start : start + CHUNK], exact(math.ldexp(1.0, -self.exponent)), dtype=exact)
            np.floor(index, out=index)
            np.subtract(index, exact(self.first), out=index)
            self.counts += np.bincount(index.astype(np.intp), minlength=len(self.counts))

    def merge(self, other: "Histogram") -> None:
        """Add the counts of `other`."""
        if not other.seen:
            return
        if not other.counts.size:
            self.widen(other.minimum, other.maximum)
            return
        self._fit(other.minimum, other.maximum)
        counts, first = coarsened(other.counts, other.first, self.exponent - other.exponent)
        start = first - self.first
        self.counts[start : start + len(counts)] += counts

    def _fit(self, low: float, high: float) -> None:
        """Widen the bins to hold [low, high]."""
        if self.counts.size and self.minimum <= low and high <= self.maximum:
            return
        low, high = min(low, self.minimum), max(high, self.maximum)
        exponent = _exponent(low, high)
        first, last = (math.floor(math.ldexp(v, -exponent)) for v in (low, high))
        counts = np.zeros(last - first + 1, np.int64)
        if self.counts.size:
            old, start = coarsened(self.counts, self.first, exponent - self.exponent)
            counts[start - first : start - first + len(old)] = old
        self.minimum, self.maximum, self.exponent, self.first, self.counts = low, high, exponent, first, counts


def _drawn(values: NDArray[np.floating], most: int) -> NDArray[np.floating]:
    """Every n-th value, n prime to the number of values, so that no row or column of a tensor is passed over."""
    if not most or values.size <= most:
        return values
    step = -(-values.size // most)
    while math.gcd(step, values.size) > 1:
        step += 1
    return values[::step]


def _exponent(low: float, high: float) -> int:
    """The finest bin width (as a power of two) at which [low, high] takes at most BINS bins."""
    exponent = math.frexp(max(-low, high, 1e-30))[1] - FLOAT32_DIGITS
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
        exponent += 1
    return exponent


def coarsened(counts: NDArray[np.int64], first: int, steps: int) -> tuple[NDArray[np.int64], int]:
    """The same counts in bins 2**steps times as wide, and the index of the first of those."""
    if steps == 0:
        return counts, first
    index = (first + np.arange(len(counts), dtype=np.int64)) >> steps
    start = int(index[0])
    return np.bincount(index - start, weights=counts).astype(np.int64), start


class Observer(Protocol):
    """Chooses the range that a tensor's integers shall cover."""

    def range(self, histogram: Histogram, levels: int, symmetric: bool) -> tuple[float, float]:
        """(low, high) for a format of `levels` integers.

        Symmetric formats spend them on [-r, r] with r the larger of -low and high.
        """
        ...
