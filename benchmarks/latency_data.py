"""Measured latencies of models whose shapes are known, and how predictions are scored against them."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

BYTES = {"float": 2, "w8a8": 1, "w8a16": 1}
FAITHFUL = 1.5  # a construction counts when its ops are within this factor of what the device ran
RUNTIME = "qnn_dlc"


@dataclass(frozen=True)
class Sample:
    """One measured model: GMACs, ops, megabytes moved (weights and inputs), milliseconds."""

    model: str
    family: str
    gmacs: float
    ops: float
    megabytes: float
    ms: float


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def features(row: dict[str, str], precision: str, ms: float) -> Sample:
    elements = sum(math.prod(int(d) for d in shape.split("x")) for shape in row["input"].split(";"))
    megabytes = (float(row["params_M"]) + elements / 1e6) * BYTES[precision]
    return Sample(row["model"], row["family"], float(row["gmacs"]), float(row["fused_ops"]), megabytes, ms)


def samples(data: Path, device: str, precision: str) -> list[Sample]:
    """The faithful constructions that `device` has run on its NPU at `precision`."""
    models = {row["model"]: row for row in read(data / "snapdragon_models.csv")}
    found = {}
    for row in read(data / "snapdragon_npu_latency.csv"):
        if (row["device"], row["precision"], row["runtime"], row["unit"]) != (
            device,
            precision,
            RUNTIME,
            "NPU",
        ):
            continue
        known = models.get(row["model"]) or models.get(f"{row['model']}:{row['component']}")
        ratio = float(known["ops_ratio"] or 1) if known else math.inf
        if known and 1 / FAITHFUL <= ratio <= FAITHFUL:
            found[known["model"]] = features(known, precision, float(row["ms"]))
    return [found[name] for name in sorted(found)]


def times(data: Sequence[Sample]) -> NDArray[np.float64]:
    return np.array([s.ms for s in data])


def scores(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Median and 90th percentile of the absolute error (shares), Spearman's rho, share within a factor of two."""
    error, ratio = np.abs(predicted / measured - 1), measured / predicted
    rho = float(spearmanr(predicted, measured)[0])
    return (
        float(np.median(error)),
        float(np.quantile(error, 0.9)),
        rho,
        float(np.mean((ratio > 0.5) & (ratio < 2))),
    )


def spread(predicted: NDArray[np.float64], measured: NDArray[np.float64], evidence: str) -> dict[str, object]:
    ratio = measured / predicted
    low, high = (round(float(np.quantile(ratio, q)), 3) for q in (0.1, 0.9))
    median, p90, rho, _ = scores(predicted, measured)
    text = f"{evidence}: n {len(ratio)}, median error {median:.0%}, P90 {p90:.0%}, Spearman {rho:.2f}"
    return {"low": low, "high": high, "n": len(ratio), "median_ape": round(median, 3), "evidence": text}


def print_row(
    name: str, precision: str, way: str, predicted: NDArray[np.float64], measured: NDArray[np.float64]
) -> None:
    median, p90, rho, twice = scores(predicted, measured)
    print(f"{name:24} {precision:6} {way:30} {len(measured):3}  {median:6.1%} {p90:6.0%}  {rho:5.2f}  {twice:5.0%}")
