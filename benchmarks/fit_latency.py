"""Fit the latency predictors to measurements, with their intervals, and write ``profiles/prediction/parameters.json``.

    python benchmarks/fit_latency.py DATA_DIR [--write]

DATA_DIR holds ``snapdragon_npu_latency.csv``, ``snapdragon_models.csv`` and ``coreml_ane_latency.csv``. Without ``--write`` only a
summary is printed. Intervals come from families that were held out, for chips that were not measured also from devices held out.
The compiler's estimate speaks at a precision where its median error on held-out families is less than that of the graph alone.
"""

import argparse
import csv
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from latency_data import PRECISIONS, UNSTEADY, read, samples
from latency_data import load_features as known_features
from latency_fitting import (
    FAMILY_FOLDS,
    Fit,
    Fits,
    HeldOut,
    Problem,
    blended,
    by_family,
    estimated,
    graph_share,
    held_out,
    matched,
    on_simulated,
    problem,
    targets,
)
from numpy.typing import NDArray

from pocketport.profiles.device import load_device
from pocketport.profiles.prediction import parameters as p
from pocketport.profiles.prediction.conformal import LEVEL, bounds
from pocketport.profiles.prediction.devices import borrowed
from pocketport.profiles.prediction.estimates import BOUNDS, ESTIMATE, OLDER_ESTIMATE, TRAFFIC, certain
from pocketport.profiles.prediction.features import GraphFeatures
from pocketport.profiles.prediction.fit import Fitted
from pocketport.profiles.prediction.likeness import description
from pocketport.profiles.prediction.roofline import KINDS, Factors, Work

OUT = Path(__file__).parent.parent / "profiles" / "prediction" / "parameters.json"
ESTIMATES = Path(__file__).parent / "data" / "htp_estimates.csv"
PROVENANCE = (
    "fitted by benchmarks/fit_latency.py to qnn_dlc latencies of Qualcomm AI Hub Models 0.65.0 (perf.yaml files, © Qualcomm "
    "Technologies, BSD-3-Clause; no endorsement implied), and to Core ML latencies that Apple published"
)
APPLE = {"apple/a16": "A16", "apple/a14": "A14"}
NOT_MEASURED = ("apple/a15", "apple/a17-pro", "apple/a18", "apple/a18-pro", "apple/m1", "apple/m2", "apple/m3", "apple/m4")  # fmt: skip
FEWEST_PAIRS = 20  # of measurements with both runtimes
KINDS_OF_DEVICES = ("phone", "mid-range", "laptop", "automotive", "embedded")
FEWEST_MODELS = 5  # of a group, for an interval of its own
FEWEST_ESTIMATES = 5  # models that the compiler's estimate is mapped with
MEDIATEK = ("mediatek/mt6897", "mediatek/mt6989", "mediatek/mt6991")


def estimates(precision: str) -> dict[str, dict[str, float]]:
    """Model → the compiler's figures, as ``htp_estimates.py`` got them, where they say something."""
    columns = (ESTIMATE, OLDER_ESTIMATE, *BOUNDS, *TRAFFIC)
    with ESTIMATES.open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["precision"] == precision]
    found = {row["model"]: {c: float(row[c]) for c in columns if row.get(c)} for row in rows}
    return {model: figures for model, figures in found.items() if certain(figures)}


def factors_data(fitted: Fitted, q: Problem, ids: Mapping[str, str]) -> dict[str, p.FactorsData]:
    counts = Counter(s.device for s in q.samples)
    return {ids[name]: rounded_factors(f, counts[name]) for name, f in zip(q.devices, fitted.factors, strict=True)}


def rounded_factors(f: Factors, n: int, log_spread: float = 0.0) -> p.FactorsData:
    return p.FactorsData(**{k: p.rounded(v) for k, v in asdict(f).items()}, n=n, log_spread=log_spread)


def unsteady_factors(
    q: Problem, fit: Fit, known: Mapping[str, p.FactorsData], ids: Mapping[str, str]
) -> dict[str, p.FactorsData]:
    """Factors of devices whose measurements moved, with the rates of all others."""
    found = {}
    for index, name in enumerate(q.devices):
        rows, profile = np.flatnonzero(q.seen.device == index), load_device(ids[name])
        lent = borrowed(profile, known) if profile else None
        if lent is None or not len(rows):
            continue
        own = fit.own_factors(q, rows, lent[0])
        found[ids[name]] = rounded_factors(own, len(rows), round(math.log(UNSTEADY[name]), 3))
    return found


def rates_data(fitted: Fitted) -> p.RatesData:
    r = fitted.rates
    return p.RatesData(
        ms_per_work={kind.value: p.rounded(float(v)) for kind, v in zip(KINDS, r.ms_per_work, strict=True)},
        ms_per_mb=p.rounded(r.ms_per_mb),
        ms_per_spilled_mb=p.rounded(r.ms_per_spilled_mb),
        ms_per_visited=p.rounded(r.ms_per_visited),
        ms_per_op=(p.rounded(r.ms_per_op[0]), p.rounded(r.ms_per_op[1])),
        ms_per_io_mb=p.rounded(r.ms_per_io_mb),
        offset_ms=p.rounded(r.offset_ms),
    )


def error(q: Problem, predicted: NDArray[np.float64]) -> float:
    """Median absolute percentage error, as a share."""
    return float(np.median(np.abs(predicted / q.measured() - 1)))


def device_spread(q: Problem, fit: Fit, ids: Mapping[str, str]) -> dict[str, float]:
    """Half-widths that a device adds which was not measured: each one from the others, against its own factors."""
    known = factors_data(fit.fitted, q, ids)
    logs: dict[str, list[float]] = {kind: [] for kind in KINDS_OF_DEVICES}
    own = fit.predictions(q)
    for index, name in enumerate(q.devices):
        profile = load_device(ids[name])
        lent = borrowed(profile, known, without=ids[name]) if profile else None
        rows = q.seen.device == index
        if profile is None or lent is None or rows.sum() < 12:
            continue
        off = float(np.median(np.log(own[rows] / fit.predictions(q, np.flatnonzero(rows), {index: lent[0]}))))
        logs[profile.kind].append(abs(off) / max(1.0, lent[1]))
        print(f"  {name:40} from others: x{math.exp(off):.2f} at distance {lent[1]:.1f}")
    every = [v for values in logs.values() for v in values] or [1.0]
    # With three devices of a class its largest error stands for it, with fewer that of all.
    return {kind: round(max(values if len(values) >= 3 else every), 3) for kind, values in logs.items()}


def model_of(
    q: Problem,
    features: Mapping[str, GraphFeatures],
    ids: Mapping[str, str],
    out: NDArray[np.float64],
    unsteady: Problem,
    share: float = 0.0,
) -> p.Model:
    """Fit all; intervals from `out`, what fits predicted that saw nothing of a family. `share` is the graph's in these.

    Devices of `unsteady` measurements get factors, and say nothing of rates.
    """
    fit = Fits().without(q)
    fitted, correction = fit.fitted, fit.fitted.correction
    devices = factors_data(fitted, q, ids)
    ratios = np.log(q.measured() / out)
    kinds = np.array([q.groups[g] for g in q.seen.graph])
    spreads = {}
    for kind in ("convolution", "attention"):
        rows = kinds == kind if q.groups.count(kind) >= FEWEST_MODELS else np.ones(len(kinds), bool)
        chosen, models = ratios[rows], q.seen.graph[rows]
        low, high = bounds(chosen, models)
        error = float(np.median(np.abs(np.exp(-chosen) - 1)))
        spreads[kind] = p.Spread(low=p.rounded(low), high=p.rounded(high), median_ape=round(error, 3), n=len(chosen))
        print(f"  {kind:12} median error {error:.1%}, interval {low:.2f} to {high:.2f}, n {len(chosen)}")
    counts = Counter(op for m in q.models for op in {o.op for o in features[m].ops})
    return p.Model(
        reference=ids[q.devices[0]],
        rates=rates_data(fitted),
        devices={**devices, **unsteady_factors(unsteady, fit, devices, ids)},
        spreads=spreads,
        device_spread=device_spread(q, fit, ids),
        points=rounded_rows(correction.points),
        weights=rounded_rows(correction.weights[None])[0],
        own={ids[name]: row for name, row in zip(q.devices, rounded_rows(correction.own), strict=True)},
        seen={op: round(n / len(q.models), 3) for op, n in sorted(counts.items())},
        largest_ms=round(float(q.measured().max()), 1),
        graph_share=share,
    )


def rounded_rows(values: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(v), 4) for v in row) for row in values)


def runtimes(data: Path) -> dict[str, dict[str, p.Runtime]]:
    """Every runtime against ``qnn_dlc`` over all models and devices that were measured with both."""
    known: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for row in read(data / "snapdragon_npu_latency.csv"):
        if row["unit"] == "NPU" and row["copy"] == "0":
            key = (row["model"], row["component"], row["precision"], row["device"])
            known.setdefault(key, {})[row["runtime"]] = float(row["ms"])
    found: dict[str, dict[str, p.Runtime]] = {}
    for runtime in ("qnn_context_binary", "onnx", "tflite"):
        for precision in PRECISIONS:
            # A context binary is the same compiled graph at every precision: all of its pairs are one sample.
            same = {precision} if runtime != "qnn_context_binary" else {k[2] for k in known}
            pairs = [(v["qnn_dlc"], v[runtime]) for k, v in known.items()
                     if k[2] in same and "qnn_dlc" in v and runtime in v]  # fmt: skip
            if len(pairs) < FEWEST_PAIRS:
                continue
            x, y = np.array(pairs).T
            scale, offset = _line(x, y)
            logs = np.log(y / (scale * x + offset))
            low, high = bounds(logs)
            spread = max(-math.log(low), math.log(high))
            found.setdefault(runtime, {})[precision] = p.Runtime(
                scale=round(scale, 4), offset_ms=round(offset, 4), log_spread=round(spread, 3), n=len(pairs)
            )
            print(f"{runtime} {precision}: {scale:.3f}·ms + {offset:.3f}, n {len(pairs)}, median error "
                  f"{np.median(np.abs(np.expm1(-logs))):.1%}, spread {spread:.2f}")  # fmt: skip
    return found


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and offset (not negative) of least absolute relative error, by reweighting."""
    weight = np.ones_like(x)
    slope, offset = 1.0, 0.0
    for _ in range(30):
        design = np.stack([x, np.ones_like(x)], 1) / y[:, None] * weight[:, None]
        slope, offset = np.linalg.lstsq(design, weight, rcond=None)[0]
        if offset < 0:
            slope, offset = float(np.sum(weight**2 * x / y) / np.sum((weight * x / y) ** 2)), 0.0
        weight = 1 / np.sqrt(np.maximum(np.abs((slope * x + offset) / y - 1), 0.02))
    return float(slope), float(offset)


def anchors(
    data: Path, graph: Mapping[str, p.Model], features: Mapping[str, GraphFeatures]
) -> dict[str, dict[str, p.Anchors]]:
    """One number per Apple chip from the few published times; other chips by published operations per second."""
    found: dict[str, dict[str, p.Anchors]] = {}
    rows = read(data / "coreml_ane_latency.csv")
    for precision, label in (("float", "fp16"), ("w8a8", "w8a8")):
        every = []
        for target, soc in APPLE.items():
            used = [r for r in rows if r["soc"] == soc and r["precision"] == label and r["model"] in features]
            if len(used) < 2:
                continue
            work = Work.of([features[r["model"]] for r in used], precision)
            points = description(work, graph[precision].rates.rates())
            predicted = graph[precision].milliseconds(work, points, Factors())
            logs = np.log(np.array([float(r["ms"]) for r in used]) / predicted)
            # Student's t at the level of the intervals, for two to five values
            t = {2: 6.31, 3: 2.92, 4: 2.35, 5: 2.13}[len(used)]
            width = t * float(logs.std(ddof=1)) * math.sqrt(1 + 1 / len(used))
            every.append((target, float(np.median(logs)), width, len(used)))
            evidence = f"Snapdragon 8 Gen 3 rates times one factor from {len(used)} published times"
            found.setdefault(target, {})[precision] = p.Anchors(
                factor=p.rounded(math.exp(np.median(logs))), log_spread=round(width, 3), n=len(used), evidence=evidence
            )
            print(f"{target} {precision}: x{math.exp(np.median(logs)):.2f} ± {width:.2f}, n {len(used)}")
        for target in NOT_MEASURED:
            if every:
                _, log, width, _ = every[0]
                evidence = "no measurement on this chip: the A16's factor, whose interval is widened by half"
                found.setdefault(target, {})[precision] = p.Anchors(
                    factor=p.rounded(math.exp(log)), log_spread=round(width + 0.41, 3), n=0, evidence=evidence
                )
    for target in MEDIATEK:
        profile = load_device(target)
        tops = profile.npu_tops_int8.value if profile and profile.npu_tops_int8 else None
        if tops is None:
            continue
        for precision in PRECISIONS:
            evidence = "no device measurements: Snapdragon 8 Gen 3 rates by published operations per second"
            found.setdefault(target, {})[precision] = p.Anchors(
                factor=p.rounded(39.5 / tops), log_spread=math.log(4), n=0, evidence=evidence
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    features, every, ids = known_features(), samples(arguments.data), targets()
    loose = samples(arguments.data, unsteady=True)
    known = {precision: estimates(precision) for precision in PRECISIONS}
    graph, compiler, both = {}, {}, {}
    for precision in PRECISIONS:
        print(f"graph, {precision}")
        alone = problem(every, features, precision)
        q = estimated(every, features, precision, known, alone)
        (by_graph, _), (out, folds) = held_out([alone, q], by_family, FAMILY_FOLDS)
        graph[precision] = model_of(alone, features, ids, by_graph, problem(loose, features, precision))
        if len(q.models) >= FEWEST_ESTIMATES:
            both[precision] = HeldOut(q, out, matched(q, alone, by_graph), folds, on_simulated(q, precision))
    share = graph_share(list(both.values()))
    for (precision, one), informed in zip(both.items(), blended(list(both.values()), by_family), strict=True):
        gain = error(one.problem, informed) / error(one.problem, one.graph)
        print(
            f"compiler, {precision}: {len(one.problem.models)} models, the graph's share {share:.2f}, {gain:.2f} of the graph's error"
        )
        if gain < 1:
            unsteady = estimated(loose, features, precision, known, problem(loose, features, precision))
            compiler[precision] = model_of(one.problem, features, ids, informed, unsteady, share)
    fitted = p.Parameters(
        provenance=PROVENANCE,
        level=LEVEL,
        graph=graph,
        compiler=compiler,
        runtimes=runtimes(arguments.data),
        anchors=anchors(arguments.data, graph, features),
    )
    if arguments.write:
        OUT.write_text(fitted.model_dump_json(indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
