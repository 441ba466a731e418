"""The measured models of one precision as a fitting problem, and predictions of what was held out of it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from latency_data import Sample
from numpy.typing import NDArray

from pocketport.profiles.device import load_device, profiles
from pocketport.profiles.prediction.conformal import bounds, covered
from pocketport.profiles.prediction.estimates import estimate_work, simulated
from pocketport.profiles.prediction.features import GraphFeatures
from pocketport.profiles.prediction.fit import OWN, Fitted, Observations, corrected, fit, fit_device, grouped_folds
from pocketport.profiles.prediction.likeness import description
from pocketport.profiles.prediction.parameters import parameters
from pocketport.profiles.prediction.predictors import group
from pocketport.profiles.prediction.roofline import Factors, Rates, Work

REFERENCE = "Samsung Galaxy S24"
MODEL_FOLDS, FAMILY_FOLDS = 100, 20  # at most: each model, and each family, is a fold
PRIORS = {
    "w8a8": "float",
    "w8a16": "w8a8",
}  # precision → the one whose rates are the prior: int16 × int8 is int8 × int8 twice
LIKE_SPREAD = 0.3  # of a roofline's priors around the rates of another precision
SHARES = np.linspace(0, 1, 21)
Estimates = Mapping[str, Mapping[str, float]]  # model → the compiler's figures by name


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
        ops: of a problem of the compiler's estimates, that of the graphs' ops, by whose times graphs are alike.
    """

    samples: tuple[Sample, ...]
    models: tuple[str, ...]
    groups: tuple[str, ...]
    devices: tuple[str, ...]
    work: Work
    seen: Observations
    prior: "Problem | None" = None
    ops: "Problem | None" = None

    def measured(self) -> NDArray[np.float64]:
        """Milliseconds of every measurement."""
        return np.exp(self.seen.log_ms)

    def without(self, by: Callable[[Sample], str], names: Collection[str], device: str = "") -> NDArray[np.bool_]:
        """The measurements that are of no group of `names`, and not of `device`."""
        return np.array([by(s) not in names and s.device != device for s in self.samples])


def problem(samples: Sequence[Sample], features: Mapping[str, GraphFeatures], precision: str) -> Problem:
    """Measurements of ``qnn_dlc`` at `precision`, of models that have features."""
    kept = _kept(samples, features, precision)
    models = tuple(sorted({s.model for s in kept}))
    work = Work.of([features[m] for m in models], precision)
    prior = problem(samples, features, PRIORS[precision]) if precision in PRIORS else None
    return _problem(kept, models, features, work, prior, None)


def estimated(
    samples: Sequence[Sample],
    features: Mapping[str, GraphFeatures],
    precision: str,
    estimates: Mapping[str, Estimates],
    ops: Problem,
) -> Problem:
    """The same of models that have the compiler's estimates (by precision) too; `ops` is the problem of the graphs alone."""
    kept = _kept(samples, features.keys() & estimates[precision].keys(), precision)
    models = tuple(sorted({s.model for s in kept}))
    work = estimate_work([estimates[precision][m] for m in models], [features[m] for m in models], precision)
    prior = None
    if ops.prior is not None:
        prior = estimated(samples, features, PRIORS[precision], estimates, ops.prior)
    return _problem(kept, models, features, work, prior, ops)


def _kept(samples: Sequence[Sample], models: Collection[str], precision: str) -> tuple[Sample, ...]:
    return tuple(s for s in samples if s.precision == precision and s.runtime == "qnn_dlc" and s.model in models)


def _problem(
    kept: tuple[Sample, ...],
    models: tuple[str, ...],
    features: Mapping[str, GraphFeatures],
    work: Work,
    prior: Problem | None,
    ops: Problem | None,
) -> Problem:
    devices = (REFERENCE, *sorted({s.device for s in kept} - {REFERENCE}))
    seen = Observations(
        np.array([models.index(s.model) for s in kept], np.intp),
        np.array([devices.index(s.device) for s in kept], np.intp),
        np.log([s.ms for s in kept]),
    )
    return Problem(kept, models, tuple(group(features[m]) for m in models), devices, work, seen, prior, ops)


def by_model(sample: Sample) -> str:
    """The group that is held out at once: a model on all devices."""
    return sample.model


def by_family(sample: Sample) -> str:
    """The group that is held out at once: a family of models on all devices."""
    return sample.family


@dataclass(frozen=True)
class Fit:
    """What was fitted, and the rates of ops by whose times graphs are alike."""

    fitted: Fitted
    ops: Rates

    def points(self, p: Problem) -> NDArray[np.float64]:
        """Where the graphs of `p` lie, see `likeness.description`."""
        return points_of(p, self.ops)

    def predictions(
        self, p: Problem, rows: NDArray[np.intp] | None = None, factors: Mapping[int, Factors] | None = None
    ) -> NDArray[np.float64]:
        """Of the measurements `rows` of `p` (None: of all); on the devices in `factors` by these."""
        devices, graphs = (v if rows is None else v[rows] for v in (p.seen.device, p.seen.graph))
        points, elsewhere, found = self.points(p), factors or {}, np.zeros(len(devices))
        for device in np.unique(devices):
            own = elsewhere.get(int(device))
            every = (
                self.fitted.predict(p.work, points, int(device))
                if own is None
                else self.fitted.elsewhere(p.work, points, own)
            )
            found[devices == device] = every[graphs[devices == device]]
        return found

    def own_factors(self, p: Problem, rows: NDArray[np.intp], prior: Factors) -> Factors:
        """Factors of one more device from some of its measurements, around those of a device like it."""
        graphs = p.seen.graph[rows]
        common = np.log(self.fitted.correction.factors(self.points(p)))[graphs]
        return fit_device(p.work, graphs, p.seen.log_ms[rows] - common, self.fitted.rates, prior)


def points_of(p: Problem, rates: Rates) -> NDArray[np.float64]:
    """Where the graphs of `p` lie by `rates` of their ops, see `likeness.description`."""
    ops = p.ops or p
    return description(ops.work, rates)[[ops.models.index(m) for m in p.models]]


class Fits:
    """Fits of problems to what is left without some groups and a device: each is made once, and a search starts where the last one ended."""

    def __init__(self, by: Callable[[Sample], str] = by_model) -> None:
        self._by = by
        self._made: dict[tuple[int, frozenset[str], str], Fitted] = {}
        self._near: dict[int, NDArray[np.float64]] = {}

    def without(self, p: Problem, names: Collection[str] = (), device: str = "") -> Fit:
        """Fit without the measurements of groups in `names`, and of `device`."""
        seen, fitted = self._seen(p, names, device), self._rates(p, names, device)
        ops = self._rates(p.ops or p, names, device).rates
        return Fit(corrected(fitted, p.work, seen, points_of(p, ops)), ops)

    def _seen(self, p: Problem, names: Collection[str], device: str) -> Observations:
        rows = p.without(self._by, names, device)
        return Observations(p.seen.graph[rows], p.seen.device[rows], p.seen.log_ms[rows])

    def _rates(self, p: Problem, names: Collection[str], device: str) -> Fitted:
        key = (id(p), frozenset(names), device)
        if key not in self._made:
            like = self._rates(p.prior, names, "").rates if p.prior is not None else None
            seen = self._seen(p, names, device)
            spread = LIKE_SPREAD if like is not None and p.ops is None else 1.0
            # A mapping has too few parameters to explain what sets devices apart: it would bend its rates to it.
            own = OWN if p.ops is None else 0.0
            near = self._near.get(id(p))
            self._made[key] = fit(p.work, seen, len(p.devices), like, spread=spread, own=own, near=near)
            self._near[id(p)] = self._made[key].found
        return self._made[key]


def held_out(
    problems: Sequence[Problem], by: Callable[[Sample], str], most: int
) -> list[tuple[NDArray[np.float64], list[list[int]]]]:
    """Predictions of every measurement of each problem by fits that saw nothing of its group, on any device; and the folds.

    The folds, at most `most`, are of the groups of the first problem, which has all groups.
    """
    names = [by(s) for s in problems[0].samples]
    folds = [{names[i] for i in fold} for fold in grouped_folds(names, most)]
    out = [np.zeros(len(p.samples)) for p in problems]
    rows = [[np.flatnonzero(~p.without(by, fold)) for fold in folds] for p in problems]
    fits = Fits(by)
    for index, fold in enumerate(folds):
        for p, predicted, of_p in zip(problems, out, rows, strict=True):
            if len(of_p[index]):
                predicted[of_p[index]] = fits.without(p, fold).predictions(p, of_p[index])
    return [(predicted, [r.tolist() for r in of_p if len(r)]) for predicted, of_p in zip(out, rows, strict=True)]


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
    square error of the logarithm: large errors are to be few, and the mean absolute error is flat where this one has its least."""
    errors = []
    for i, one in enumerate(every):
        rows = one.simulated if kept is None else kept[i] & one.simulated
        off, step = np.log(one.problem.measured() / one.compiler)[rows], np.log(one.graph / one.compiler)[rows]
        errors.append((off - SHARES[:, None] * step) ** 2)
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
    "Fit",
    "Fits",
    "HeldOut",
    "Problem",
    "blended",
    "by_family",
    "by_model",
    "estimated",
    "graph_share",
    "held_out",
    "inside",
    "matched",
    "on_simulated",
    "problem",
    "targets",
]
