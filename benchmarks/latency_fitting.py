"""The measured models of one precision as a fitting problem, and predictions of what was held out of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from latency_data import Sample
from numpy.typing import NDArray

from pocketport.profiles.device import load_device, profiles
from pocketport.profiles.prediction.conformal import bounds, covered
from pocketport.profiles.prediction.estimates import estimate_work, simulated
from pocketport.profiles.prediction.features import GraphFeatures
from pocketport.profiles.prediction.fit import OWN, Fitted, Observations, fit, fit_device, grouped_folds
from pocketport.profiles.prediction.parameters import parameters
from pocketport.profiles.prediction.predictors import group
from pocketport.profiles.prediction.roofline import Factors, Work

REFERENCE = "Samsung Galaxy S24"
MODEL_FOLDS, FAMILY_FOLDS = 100, 20  # at most: each model, and each family, is a fold
PRIORS = {
    "w8a8": "float",
    "w8a16": "w8a8",
}  # precision → the one whose rates are the prior: int16 × int8 is int8 × int8 twice
LIKE_SPREAD = 0.3  # of a roofline's priors around the rates of another precision
SHARES = np.linspace(0, 1, 21)
Estimates = Mapping[str, Mapping[str, float]]  # model → the compiler's figures by name
Found = dict[int, NDArray[np.float64]]  # a problem's id → where its last search ended


@dataclass(frozen=True)
class Problem:
    """Measured latencies of graphs on devices, at one precision.

    Attributes:
        samples: the measurements.
        models: names of the graphs, in the order of `work`.
        groups: of each graph, see `predictors.group`.
        devices: names; the reference first.
        work: of the graphs.
        seen: the measurements as arrays.
        prior: the problem whose rates are the prior; None: none.
        correct: whether graphs alike correct each other.
    """

    samples: tuple[Sample, ...]
    models: tuple[str, ...]
    groups: tuple[str, ...]
    devices: tuple[str, ...]
    work: Work
    seen: Observations
    prior: "Problem | None" = None
    correct: bool = True

    def measured(self) -> NDArray[np.float64]:
        """Milliseconds of every measurement."""
        return np.exp(self.seen.log_ms)


def problem(
    samples: Sequence[Sample],
    features: Mapping[str, GraphFeatures],
    precision: str,
    estimates: Mapping[str, Estimates] | None = None,
) -> Problem:
    """Measurements of ``qnn_dlc`` at `precision`, of models that have features (and, if given by precision, the compiler's estimates)."""
    known = features.keys() if estimates is None else features.keys() & estimates[precision].keys()
    kept = tuple(s for s in samples if s.precision == precision and s.runtime == "qnn_dlc" and s.model in known)
    models = tuple(sorted({s.model for s in kept}))
    devices = (REFERENCE, *sorted({s.device for s in kept} - {REFERENCE}))
    if estimates is None:
        work = Work.of([features[m] for m in models], precision)
    else:
        work = estimate_work([estimates[precision][m] for m in models], [features[m] for m in models], precision)
    seen = Observations(
        np.array([models.index(s.model) for s in kept], np.intp),
        np.array([devices.index(s.device) for s in kept], np.intp),
        np.log([s.ms for s in kept]),
    )
    prior = problem(samples, features, PRIORS[precision], estimates) if precision in PRIORS else None
    groups = tuple(group(features[m]) for m in models)
    return Problem(kept, models, groups, devices, work, seen, prior, estimates is None)


def by_model(sample: Sample) -> str:
    """The group that is held out at once: a model on all devices."""
    return sample.model


def by_family(sample: Sample) -> str:
    """The group that is held out at once: a family of models on all devices."""
    return sample.family


def fit_rows(
    p: Problem, rows: NDArray[np.bool_], by: Callable[[Sample], str] = by_model, near: Found | None = None
) -> Fitted:
    """Fit to some of the measurements; of the problem whose rates are the prior, to those of groups that are left in.

    What is found is put into `near`, and the next search starts there: folds differ little.
    """
    near = {} if near is None else near
    like = None
    if p.prior is not None:
        kept = {by(s) for s, k in zip(p.samples, rows, strict=True) if k}
        out = {by(s) for s in p.samples} - kept
        like = fit_rows(p.prior, np.array([by(s) not in out for s in p.prior.samples]), by, near).rates
    seen = Observations(p.seen.graph[rows], p.seen.device[rows], p.seen.log_ms[rows])
    spread = LIKE_SPREAD if like is not None and p.correct else 1.0
    # A mapping has too few parameters to explain what sets devices apart: it would bend its rates to it.
    own = OWN if p.correct else 0.0
    fitted = fit(p.work, seen, len(p.devices), like, spread=spread, own=own, correct=p.correct, near=near.get(id(p)))
    if fitted.found is not None:
        near[id(p)] = fitted.found
    return fitted


def predict_rows(p: Problem, fitted: Fitted, factors: Sequence[Factors]) -> NDArray[np.float64]:
    """Predictions of all measurements with the factors of every device."""
    table = np.stack([fitted.predict(p.work, f) for f in factors])
    return np.asarray(table[p.seen.device, p.seen.graph])


def own_factors(p: Problem, rows: NDArray[np.intp], fitted: Fitted, prior: Factors) -> Factors:
    """Factors of one more device from some of its measurements, with the rates of `fitted`, around those of a device like it."""
    graphs = p.seen.graph[rows]
    corrected = np.log(fitted.correction.factors(p.work, fitted.rates))[graphs]
    return fit_device(p.work, graphs, p.seen.log_ms[rows] - corrected, fitted.rates, prior)


def held_out(p: Problem, by: Callable[[Sample], str], most: int) -> tuple[NDArray[np.float64], list[list[int]]]:
    """Predictions of every measurement by a fit that saw nothing of its group, on any device; and the folds, at most `most`."""
    folds = grouped_folds([by(s) for s in p.samples], most)
    out, near = np.zeros(len(p.samples)), Found()
    for fold in folds:
        rows = np.ones(len(out), bool)
        rows[fold] = False
        fitted = fit_rows(p, rows, by, near)
        out[fold] = predict_rows(p, fitted, fitted.factors)[fold]
    return out, folds


def matched(p: Problem, graph: Problem, predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Predictions of the measurements of `graph`, for those of `p`, which are some of them."""
    known = {(s.model, s.device): float(v) for s, v in zip(graph.samples, predicted, strict=True)}
    return np.array([known[s.model, s.device] for s in p.samples])


@dataclass(frozen=True)
class HeldOut:
    """Measurements of one precision, and for each what was predicted by fits that saw nothing of its group.

    Attributes:
        problem: the measurements.
        compiler: from the compiler's estimate.
        graph: from the graph alone.
        folds: indices that were held out at once.
        simulated: whether the simulated chip says something of each measurement's device; where not, the graph speaks alone.
    """

    problem: Problem
    compiler: NDArray[np.float64]
    graph: NDArray[np.float64]
    folds: list[list[int]]
    simulated: NDArray[np.bool_]

    def mixed(self, share: float) -> NDArray[np.float64]:
        """The geometric mean of both predictions, with the graph's `share`."""
        return np.where(self.simulated, self.compiler ** (1 - share) * self.graph**share, self.graph)


def graph_share(every: Sequence[HeldOut], kept: Sequence[NDArray[np.bool_]] | None = None) -> float:
    """The graph's share with which the measurements of all precisions (of which `kept` is counted) have the least mean
    absolute error of the logarithm."""
    errors = []
    for i, one in enumerate(every):
        rows = one.simulated if kept is None else kept[i] & one.simulated
        off, step = np.log(one.problem.measured() / one.compiler)[rows], np.log(one.graph / one.compiler)[rows]
        errors.append(np.abs(off - SHARES[:, None] * step))
    return float(SHARES[np.concatenate(errors, 1).mean(1).argmin()])


def blended(every: Sequence[HeldOut], by: Callable[[Sample], str]) -> list[NDArray[np.float64]]:
    """Both held-out predictions in one, by precision: each fold with the share that is best for the groups that are not in it."""
    groups = [np.array([by(s) for s in one.problem.samples]) for one in every]
    found = []
    for one, names in zip(every, groups, strict=True):
        out = np.zeros(len(names))
        for fold in one.folds:
            share = graph_share(every, [~np.isin(others, names[fold]) for others in groups])
            out[fold] = one.mixed(share)[fold]
        found.append(out)
    return found


def inside(p: Problem, predicted: NDArray[np.float64], folds: Sequence[Sequence[int]]) -> list[bool]:
    """Whether every measurement lies in the interval that the other folds' errors give."""
    ratios = np.log(p.measured() / predicted)
    kinds = np.array([p.groups[g] for g in p.seen.graph])
    found = np.zeros(len(ratios), bool)
    for fold in folds:
        others = np.ones(len(ratios), bool)
        others[list(fold)] = False
        for kind in set(p.groups):
            rows = [i for i in fold if kinds[i] == kind]
            chosen = others & (kinds == kind)
            if rows and chosen.any():
                interval = bounds(ratios[chosen], p.seen.graph[chosen])
                found[rows] = covered([float(ratios[i]) for i in rows], interval)
    return found.tolist()


def on_simulated(p: Problem, precision: str) -> NDArray[np.bool_]:
    """Whether each measurement is of a device that the compiler's simulated chip says something of, by the fitted parameters."""
    ids, graph = targets(), parameters().graph[precision]
    profiles = [load_device(ids[device]) for device in p.devices]
    alike = np.array([profile is not None and simulated(graph, profile) for profile in profiles])
    return np.asarray(alike[p.seen.device])


def targets() -> dict[str, str]:
    """Device of the measurements → target of its profile."""
    return {p.measured_as: p.target for p in profiles() if p.measured_as}


__all__ = [
    "FAMILY_FOLDS",
    "MODEL_FOLDS",
    "REFERENCE",
    "Found",
    "HeldOut",
    "Problem",
    "blended",
    "by_family",
    "by_model",
    "fit_rows",
    "graph_share",
    "held_out",
    "inside",
    "matched",
    "on_simulated",
    "own_factors",
    "predict_rows",
    "problem",
    "targets",
]
