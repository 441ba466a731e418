"""Which engine runs a component: both run the same feeds, beside the pivot's own arithmetic."""

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.metrics import EXACT_DB, sqnr_db
from pocketport.targets.x86.engines import REFERENCE, open_engine
from pocketport.targets.x86.measure import arbitrary_feeds, interleaved
from pocketport.targets.x86.sensitivity import shaken_outputs
from pocketport.targets.x86.settings import ONNX

FIDELITY_DB = 40.0
SENSITIVITY_MARGIN_DB = 6.0
RUNS, WARMUP = 30, 3
REPEATS = 4  # more runs whose results are checked
MARGIN = 0.95  # onnxruntime, which every installation has, unless the other is faster by more than the noise


@dataclass(frozen=True)
class Trial:
    """Of each artifact kind: milliseconds, and signal to noise in dB against the pivot run op by op.

    The choice goes by `low_ms`, the tenth percentile: a run that waited for the processor says nothing about an
    engine, and on a busy machine most runs do. `median_ms` is what a user saw here and now.

    `bound_db` is what is asked of them: FIDELITY_DB, or less where the pivot itself is that sensitive. A deep 8-bit
    graph turns a last-bit difference into a flipped rounding, and that into noise as large as its own.
    """

    low_ms: Mapping[str, float]
    median_ms: Mapping[str, float]
    fidelity_db: Mapping[str, float]
    bound_db: float

    @property
    def choice(self) -> str:
        """The fastest kind that is faithful to the pivot, or the most faithful when none is."""
        faithful = [kind for kind, decibels in self.fidelity_db.items() if decibels >= self.bound_db]
        if not faithful:
            return max(self.fidelity_db, key=lambda kind: self.fidelity_db[kind])
        return min(faithful, key=lambda kind: self.low_ms[kind] * (MARGIN if kind == ONNX else 1.0))


def try_engines(pivot: Path, artifacts: Mapping[str, Path]) -> Trial:
    """Run every artifact on arbitrary feeds: for its results, then interleaved for its time, then for its results again.

    What an engine gives may depend on what it ran before: OpenVINO 2026.4.1 on a processor with AVX-512 gave a quantized
    attention exactly on one run and as noise on the next.
    """
    feeds = arbitrary_feeds(pivot)
    with closing(open_engine(ONNX, pivot, REFERENCE)) as reference:
        expected = reference.run(feeds)
    sensitivity = decibels(expected, shaken_outputs(pivot, feeds))
    with ExitStack() as stack:
        executors = {k: stack.enter_context(closing(open_engine(k, path))) for k, path in artifacts.items()}
        fidelity = {kind: decibels(expected, executor.run(feeds)) for kind, executor in executors.items()}
        times = interleaved(executors, feeds, runs=RUNS, warmup=WARMUP)
        for kind, executor in executors.items():
            again = (decibels(expected, executor.run(feeds)) for _ in range(REPEATS))
            fidelity[kind] = min(fidelity[kind], *again)
    lows = {kind: float(np.percentile(values, 10)) for kind, values in times.items()}
    medians = {kind: float(np.median(values)) for kind, values in times.items()}
    return Trial(lows, medians, fidelity, min(FIDELITY_DB, sensitivity - SENSITIVITY_MARGIN_DB))


def decibels(expected: Mapping[str, NDArray[np.generic]], found: Mapping[str, NDArray[np.generic]]) -> float:
    """The worst output's signal to noise ratio, within ±EXACT_DB."""
    return max(-EXACT_DB, min(EXACT_DB, *(sqnr_db(values, found[name]) for name, values in expected.items())))
