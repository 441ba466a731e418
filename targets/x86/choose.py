"""Which engine runs a component: both run the same feeds, beside the pivot's own arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketport.targets.x86.engines import ONNX, open_engine
from pocketport.targets.x86.measure import arbitrary_feeds, interleaved

FIDELITY_DB = 40.0
RUNS, WARMUP = 30, 3
MARGIN = 0.95  # onnxruntime, which every installation has, unless the other is faster by more than the noise


@dataclass(frozen=True)
class Trial:
    """By artifact kind: median milliseconds, and signal to noise in dB against the pivot run op by op."""

    median_ms: Mapping[str, float]
    fidelity_db: Mapping[str, float]

    @property
    def choice(self) -> str:
        """The fastest kind that is faithful to the pivot, or the most faithful when none is."""
        faithful = [kind for kind, decibels in self.fidelity_db.items() if decibels >= FIDELITY_DB]
        if not faithful:
            return max(self.fidelity_db, key=lambda kind: self.fidelity_db[kind])
        return min(faithful, key=lambda kind: self.median_ms[kind] * (MARGIN if kind == ONNX else 1.0))


def try_engines(pivot: Path, artifacts: Mapping[str, Path]) -> Trial:
    """Run every artifact on arbitrary feeds: once for its results, then interleaved for its time."""
    feeds = arbitrary_feeds(pivot)
    reference = open_engine(ONNX, pivot, optimize=False)
    expected = reference.run(feeds)
    reference.close()
    executors = {kind: open_engine(kind, path) for kind, path in artifacts.items()}
    try:
        fidelity = {kind: _decibels(expected, executor.run(feeds)) for kind, executor in executors.items()}
        times = interleaved(executors, feeds, runs=RUNS, warmup=WARMUP)
    finally:
        for executor in executors.values():
            executor.close()
    return Trial({kind: float(np.median(values)) for kind, values in times.items()}, fidelity)


def _decibels(expected: Mapping[str, NDArray[np.generic]], found: Mapping[str, NDArray[np.generic]]) -> float:
    """The worst output's signal to noise ratio, 300 dB at most."""
    ratios = []
    for name, values in expected.items():
        signal = np.asarray(values, np.float64)
        noise = float(np.square(signal - np.asarray(found[name], np.float64)).sum())
        power = float(np.square(signal).sum())
        ratios.append(300.0 if noise <= power * 1e-30 else 10 * np.log10(power / noise) if power else -300.0)
    return float(min(ratios))
