"""Predicted against measured latency on real devices, cross-validated by model and by family.

    python benchmarks/latency_prediction.py DATA_DIR [--json FILE]

DATA_DIR holds ``snapdragon_npu_latency.csv`` and ``snapdragon_models.csv``; graphs come from the committed cache
``benchmarks/data/latency_features.json.gz``, the compiler's estimates from ``htp_estimates.csv``. A model is held out on all devices
and with all runtimes at once; rows that repeat another device's are left out. Coverage is that of 90 % intervals whose
width comes from the other folds.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from fit_latency import estimates
from latency_data import PRECISIONS, RUNTIMES, Sample, Score, load_features, samples, score
from latency_fitting import (
    FAMILY_FOLDS,
    MODEL_FOLDS,
    Fits,
    HeldOut,
    Problem,
    blended,
    by_family,
    by_model,
    estimated,
    held_out,
    inside,
    matched,
    on_simulated,
    problem,
    targets,
)
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pocketport.profiles.device import load_device
from pocketport.profiles.prediction.devices import borrowed
from pocketport.profiles.prediction.parameters import FactorsData, parameters
from pocketport.workers import processors

ANCHORS = 5
DEVICE_FOLDS = 10  # of models, of which each is held out with each device
ANCHOR_DRAWS = 2
FEWEST_MEASURED = 20  # of a device, for it to be held out


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    predictor: str
    precision: str
    device: str
    runtime: str
    held_out: str
    score: Score


SPLITS = {"model": (by_model, MODEL_FOLDS), "family": (by_family, FAMILY_FOLDS)}
Unseen = dict[Sample, list[float]]  # what was predicted of a measurement, once for each draw of anchors
Predicted = tuple[
    NDArray[np.float64], list[list[int]]
]  # of every measurement, and the folds in which they were held out
Held = dict[str, dict[str, Predicted]]  # precision → what was held out → predictions


def all_held_out(pool: Executor, both: dict[str, list[Problem]]) -> tuple[Held, Held]:
    """Held-out predictions by precision and by what is held out: from graphs, and from estimates where they are known."""
    under_way = {
        q: {name: pool.submit(held_out, problems, *split) for name, split in SPLITS.items()}
        for q, problems in both.items()
    }
    found = {q: {name: job.result() for name, job in jobs.items()} for q, jobs in under_way.items()}
    alone = {q: {name: of_all[0] for name, of_all in splits.items()} for q, splits in found.items()}
    mapped = {q: {n: of_all[1] for n, of_all in found[q].items()} for q, problems in both.items() if len(problems) > 1}
    return alone, mapped


def of_compiler(graph: dict[str, Problem], alone: Held, known: dict[str, Problem], mapped: Held) -> Held:
    """The same with the compiler's estimate, mapped to the devices: those of the graph alone are a part of it."""
    found: Held = {precision: {} for precision in known}
    for name, (by, _) in SPLITS.items():
        every = []
        for precision, p in known.items():
            out, folds = mapped[precision][name]
            by_graph = matched(p, graph[precision], alone[precision][name][0])
            every.append(HeldOut(p, out, by_graph, folds, on_simulated(p, precision)))
        for (precision, one), out in zip(zip(known, every, strict=True), blended(every, by), strict=True):
            found[precision][name] = out, one.folds
    return found


def by_device(
    p: Problem, predicted: dict[str, Predicted], predictor: str, precision: str, runtime_samples: list[Sample]
) -> Iterator[Row]:
    """Scores by model and by family: over all devices, per device, and per runtime."""
    for split, (out, folds) in predicted.items():
        hits = np.array(inside(p, out, folds))
        measured = p.measured()
        yield Row(predictor, precision, "all", "qnn_dlc", split, score(out, measured, hits))
        spoken = on_simulated(p, precision) if predictor == "compiler" else np.ones(len(out), bool)
        if not spoken.all():  # of the others the product has the graph's prediction, and so has the row of all
            its = score(out[spoken], measured[spoken], hits[spoken])
            yield Row(predictor, precision, "all of which it speaks", "qnn_dlc", split, its)
        for index, device in enumerate(p.devices):
            rows = p.seen.device == index
            if rows.sum() >= 5:
                yield Row(predictor, precision, device, "qnn_dlc", split, score(out[rows], measured[rows], hits[rows]))
        yield from by_runtime(p, out, predictor, precision, split, runtime_samples)


def by_runtime(
    p: Problem, out: NDArray[np.float64], predictor: str, precision: str, split: str, every: list[Sample]
) -> Iterator[Row]:
    """The held-out predictions of ``qnn_dlc``, through the line of each other runtime."""
    predicted = {(s.model, s.device): float(v) for s, v in zip(p.samples, out, strict=True)}
    fitted = parameters()
    spreads = (fitted.graph if predictor == "graph" else fitted.compiler)[precision].spreads
    groups = dict(zip(p.models, p.groups, strict=True))
    for runtime in RUNTIMES[1:]:
        line = parameters().runtimes[runtime].get(precision)
        found = [
            s for s in every if s.runtime == runtime and s.precision == precision and (s.model, s.device) in predicted
        ]
        if line is None or len(found) < 5:
            continue
        ms = np.array([line.scale * predicted[s.model, s.device] + line.offset_ms for s in found])
        measured = np.array([s.ms for s in found])
        low = np.array([np.hypot(np.log(spreads[groups[s.model]].low), line.log_spread) for s in found])
        high = np.array([np.hypot(np.log(spreads[groups[s.model]].high), line.log_spread) for s in found])
        ratio = np.log(measured / ms)
        yield Row(predictor, precision, "all", runtime, split, score(ms, measured, (ratio >= -low) & (ratio <= high)))


def unseen_devices(problems: list[Problem]) -> list[dict[str, Unseen]]:
    """Predictions for devices that were not measured, and with five anchor models measured; models are held out as well, a tenth at once.

    The folds are of the models of the first problem, which has all models and devices.
    """
    ids, fits = targets(), Fits()
    found: list[dict[str, Unseen]] = [{"never measured": {}, f"{ANCHORS} anchor models": {}} for _ in problems]
    for device in problems[0].devices:
        profile = load_device(ids[device])
        for fold in range(DEVICE_FOLDS):
            models = set(problems[0].models[fold::DEVICE_FOLDS])
            for p, (far, anchored) in zip(problems, (f.values() for f in found), strict=True):
                if device not in p.devices:
                    continue
                index = p.devices.index(device)
                rows = np.flatnonzero(p.seen.device == index)
                if profile is None or len(rows) < FEWEST_MEASURED:
                    continue
                keep = p.without(by_model, models, device)
                one = fits.without(p, models, device)
                counts = Counter(d for d, k in zip(p.seen.device, keep, strict=True) if k)
                known = {
                    ids[d]: FactorsData(**asdict(f), n=counts[i])
                    for i, (d, f) in enumerate(zip(p.devices, one.fitted.factors, strict=True))
                    if d != device
                }
                lent = borrowed(profile, known)
                test = np.array([r for r in rows if p.samples[r].model in models], np.intp)
                if lent is None or not len(test):
                    continue
                _put(far, p, test, one.predictions(p, test, {index: lent[0]}))
                rest = np.setdiff1d(rows, test)
                for draw in range(ANCHOR_DRAWS):
                    chosen = np.random.default_rng(100 * fold + draw).choice(rest, ANCHORS, replace=False)
                    own = one.own_factors(p, chosen, lent[0])
                    _put(anchored, p, test, one.predictions(p, test, {index: own}))
    return found


def _put(found: Unseen, p: Problem, rows: NDArray[np.intp], predicted: NDArray[np.float64]) -> None:
    for row, ms in zip(rows, predicted, strict=True):
        found.setdefault(p.samples[row], []).append(float(ms))


def of_unseen(predictor: str, precision: str, found: dict[str, Unseen]) -> Iterator[Row]:
    """Scores of what `unseen_devices` predicted."""
    for name, predictions in found.items():
        out = np.array([v for values in predictions.values() for v in values])
        measured = np.array([s.ms for s, values in predictions.items() for _ in values])
        result = score(out, measured, np.full(len(out), math.nan))
        yield Row(predictor, precision, name, "qnn_dlc", "device+model", result)


def with_graph(compiler: dict[str, Unseen], graph: dict[str, Unseen], share: float) -> dict[str, Unseen]:
    """Geometric means of both predictors' predictions, with the graph's `share`."""
    return {
        name: {
            sample: [c ** (1 - share) * g**share for c, g in zip(values, graph[name][sample], strict=True)]
            for sample, values in predictions.items()
        }
        for name, predictions in compiler.items()
    }


@threadpool_limits.wrap(limits=1)  # the matrices are small: threads wait for each other
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    features, every = load_features(), samples(arguments.data)
    known = {precision: estimates(precision) for precision in PRECISIONS}
    rows: list[Row] = []
    print(
        f"{'predictor':9} {'prec.':6} {'device':38} {'runtime':18} {'held out':12} {'n':>4}  median    P90   rho  in 2x  covered"
    )
    graph = {precision: problem(every, features, precision) for precision in PRECISIONS}
    by_estimate = {q: estimated(every, features, q, known, graph[q]) for q in PRECISIONS if q in parameters().compiler}
    both = {q: [graph[q], *([by_estimate[q]] if q in by_estimate else [])] for q in PRECISIONS}
    with ProcessPoolExecutor(len(processors()), get_context("spawn"), threadpool_limits, (1,)) as pool:
        under_way = {q: pool.submit(unseen_devices, problems) for q, problems in both.items()}
        alone, mapped = all_held_out(pool, both)
        unseen = {q: job.result() for q, job in under_way.items()}
    informed = of_compiler(graph, alone, by_estimate, mapped)
    for precision in PRECISIONS:
        scored = [
            by_device(graph[precision], alone[precision], "graph", precision, every),
            of_unseen("graph", precision, unseen[precision][0]),
        ]
        if precision in by_estimate:
            scored.append(by_device(by_estimate[precision], informed[precision], "compiler", precision, every))
            share = parameters().compiler[precision].graph_share
            scored.append(
                of_unseen("compiler", precision, with_graph(unseen[precision][1], unseen[precision][0], share))
            )
        for row in chain(*scored):
            s = row.score
            covered = "" if math.isnan(s.coverage) else f"{s.coverage:6.0%}"
            print(f"{row.predictor:9} {row.precision:6} {row.device:38} {row.runtime:18} {row.held_out:12} {s.n:4}  {s.median_ape:6.1%} {s.p90_ape:6.0%} {s.spearman:5.2f}  {s.within_2x:5.0%}  {covered}", flush=True)  # fmt: skip
            rows.append(row)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
