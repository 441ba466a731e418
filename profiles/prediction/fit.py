"""Fit the roofline's rates and every device's factors together, by robust least squares of the logarithm of latency.

All parameters are logarithms, so all rates stay positive. What few models tell about is held by priors: rates of kinds
lie around a common rate of their unit, factors of a device around that device's common speed (a maximum a posteriori
estimate; Levenberg's damping, Huber's weights). What no rate explains of a graph is the same on all devices, so ten devices
tell once what one graph is off by, not ten times (a random effect of each graph; Laird & Ware 1982, doi 10.2307/2529876).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pocketport.profiles.prediction.likeness import Correction, learnt, nothing
from pocketport.profiles.prediction.roofline import KINDS, MATRIX_KIND, Factors, Floats, Rates, Work, milliseconds

NOISE = 0.1  # of log latency
LINEAR = 2.0  # times the noise, from which residuals count linearly
OWN = 0.15  # of what all devices share of a graph's log latency and no rate explains
OWN_LINEAR = 1.0  # times that
KIND_SPREAD = (0.3, 0.7)  # of log rates around their unit's: matrix, vector
FACTOR_SPREAD = 0.25  # of a device's log factors around its common speed
SPEED_SPREAD = 1.0  # of the common speeds
STARTS = {
    "matrix": 0.3, "vector": 0.05, "memory": 0.015, "spilled": 0.03, "visited": 15.0, "per_op": 0.004, "io": 0.03, "offset": 0.15,
}  # fmt: skip
START_SPREAD = 1.5  # of all others around where the search starts
OVERHEAD_SPREAD = 0.2  # of an op's and a call's overheads around those of another precision: they are no arithmetic
ROUNDS = 40
CLOSE = 1e-5  # of the cost: a step that lowers it by less is the last
K = len(KINDS)
# positions of the shared parameters
COMMON_MATRIX, COMMON_VECTOR, MEMORY, SPILLED, VISITED, MATRIX_OP, VECTOR_OP, IO, OFFSET = range(K, K + 9)
SHARED = K + 9
OVERHEADS = (MATRIX_OP, VECTOR_OP, OFFSET)
FACTORS = ("matrix", "vector", "memory", "overhead")


@dataclass(frozen=True)
class Observations:
    """Measured latencies.

    Attributes:
        graph: index into the graphs of a `Work`.
        device: index of the device.
        log_ms: logarithm of milliseconds.
    """

    graph: NDArray[np.intp]
    device: NDArray[np.intp]
    log_ms: Floats


@dataclass(frozen=True)
class Fitted:
    """Rates, the factors of every device (device 0 is the reference: its own are all 1), and what graphs alike are off by (see `corrected`)."""

    rates: Rates
    factors: tuple[Factors, ...]
    correction: Correction
    found: Floats  # the parameters, for a search that starts there

    def predict(self, work: Work, points: Floats, device: int) -> Floats:
        """Milliseconds of graphs at `points` (see `likeness.description`) on a fitted device."""
        return milliseconds(work, self.rates, self.factors[device]) * self.correction.factors(points, device)

    def elsewhere(self, work: Work, points: Floats, factors: Factors) -> Floats:
        """The same on a device with `factors` of which no more is known."""
        return milliseconds(work, self.rates, factors) * self.correction.factors(points)


def fit(
    work: Work,
    seen: Observations,
    devices: int,
    like: Rates | None = None,
    *,
    spread: float = 1.0,
    own: float = OWN,
    near: Floats | None = None,
) -> Fitted:
    """Fit to observations of graphs on `devices` devices.

    Args:
        work: of the graphs.
        seen: the observations.
        devices: how many there are; 0 is the reference.
        like: rates of another precision, of which more models were measured: proportions of kinds are held near its.
        spread: of the priors of all rates, in terms of what it is usually; below 1, overheads are held near those of `like`.
        own: standard deviation of what a graph's log latency is off by on all devices alike; 0: every measurement counts for itself.
        near: parameters that were `found` from almost the same observations; the search takes fewer steps from there.
    """
    start = np.concatenate([_start(like), np.zeros(5 * devices)])
    theta, damping = (start if near is None else near).copy(), 1e-3
    cost, gradient, hessian = _system(theta, start, spread, work, seen, devices, own)
    for _ in range(ROUNDS):
        step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), -gradient)
        step = np.clip(step, -2, 2)
        tried = _system(theta + step, start, spread, work, seen, devices, own)
        if tried[0] > cost:
            damping *= 8
            if damping > 1e6:
                break
            continue
        done = cost - tried[0] < CLOSE * cost
        theta, damping = theta + step, max(damping / 4, 1e-9)
        cost, gradient, hessian = tried
        if done:
            break
    return unpack(theta, devices)


def corrected(fitted: Fitted, work: Work, seen: Observations, points: Floats) -> Fitted:
    """With what graphs alike are off by, on all devices and on each; `points` of all graphs, see `likeness.description`."""
    table = np.log(np.stack([milliseconds(work, fitted.rates, f) for f in fitted.factors]))
    errors = seen.log_ms - table[seen.device, seen.graph]
    return replace(fitted, correction=learnt(points, seen.graph, seen.device, errors, len(fitted.factors)))


def _start(like: Rates | None) -> Floats:
    """Where the search starts, which is also the middle of the priors."""
    kinds = np.where(MATRIX_KIND, STARTS["matrix"], STARTS["vector"])
    rest = [STARTS[n] for n in ("matrix", "vector", "memory", "spilled", "visited", "per_op", "per_op", "io", "offset")]
    if like is not None:
        kinds = like.ms_per_work
        common = [float(np.exp(np.log(kinds[unit]).mean())) for unit in (MATRIX_KIND, ~MATRIX_KIND)]
        rest = [
            *common, like.ms_per_mb, like.ms_per_spilled_mb, like.ms_per_visited, *like.ms_per_op, like.ms_per_io_mb, like.offset_ms,
        ]  # fmt: skip
    return np.asarray(np.log(np.maximum(np.concatenate([kinds, rest]), 1e-9)))


def unpack(theta: Floats, devices: int) -> Fitted:
    """Parameters → rates and factors, all relative to device 0."""
    values = np.exp(theta[:SHARED])
    logs = theta[SHARED:].reshape(devices, 5)[:, :4]
    own = np.exp(logs - logs[0])
    matrix, vector, memory, overhead = np.exp(logs[0])
    rates = Rates(
        ms_per_work=values[:K] * np.where(MATRIX_KIND, matrix, vector),
        ms_per_mb=float(values[MEMORY] * memory),
        ms_per_spilled_mb=float(values[SPILLED] * memory),
        ms_per_visited=float(values[VISITED] * memory),
        ms_per_op=(float(values[MATRIX_OP] * overhead), float(values[VECTOR_OP] * overhead)),
        ms_per_io_mb=float(values[IO] * memory),
        offset_ms=float(values[OFFSET] * overhead),
    )
    factors = tuple(Factors(*(float(v) for v in row)) for row in own)
    return Fitted(rates, factors, nothing(devices), theta)


def _system(
    theta: Floats, start: Floats, spread: float, work: Work, seen: Observations, devices: int, own: float
) -> tuple[float, Floats, Floats]:
    """Cost, gradient and Gauss-Newton matrix of the negative log posterior."""
    error, jacobian = _errors(theta, work, seen, devices)
    if not own:
        cost, gradient, hessian = _robust(error, jacobian, np.full(len(error), NOISE))
        return _with_priors(theta, start, spread, devices, cost, gradient, hessian)
    _, graph, counts = np.unique(seen.graph, return_inverse=True, return_counts=True)
    part = np.zeros((len(counts), len(error)))
    part[graph, np.arange(len(error))] = 1 / counts[graph]
    mean, mean_jacobian = part @ error, part @ jacobian
    shared = _robust(mean, mean_jacobian, np.hypot(own, NOISE / np.sqrt(counts)), OWN_LINEAR)
    apart = _robust(error - mean[graph], jacobian - mean_jacobian[graph], np.full(len(error), NOISE))
    cost, gradient, hessian = shared[0] + apart[0], shared[1] + apart[1], shared[2] + apart[2]
    return _with_priors(theta, start, spread, devices, cost, gradient, hessian)


def _robust(error: Floats, jacobian: Floats, sigma: Floats, linear: float = LINEAR) -> tuple[float, Floats, Floats]:
    """Cost, gradient and Gauss-Newton matrix of errors, which count linearly from `linear` times `sigma` on (Huber 1964)."""
    size = np.abs(error) / sigma
    cost = float(np.where(size <= linear, size**2, 2 * linear * size - linear**2).sum())
    weight = np.minimum(1, linear / np.maximum(size, 1e-12)) / sigma**2
    return cost, np.asarray(jacobian.T @ (weight * error)), np.asarray((jacobian * weight[:, None]).T @ jacobian)


def _errors(theta: Floats, work: Work, seen: Observations, devices: int) -> tuple[Floats, Floats]:
    """Logarithms of predicted over measured latency [observations], and their derivatives by the parameters [observations, parameters]."""
    shared, own = theta[:SHARED], theta[SHARED:].reshape(devices, 5)
    graphs, matrix = len(work.io_megabytes), MATRIX_KIND[work.kind]
    arithmetic, cell = np.exp(shared[:K])[work.kind] * work.work, work.graph * K + work.kind
    weighs = work.megabytes > 0  # all others are as long as their arithmetic, whatever the device
    weightless = np.bincount(cell[~weighs], arithmetic[~weighs], graphs * K).reshape(graphs, K)
    arithmetic, cell, of_graph, multiplies = arithmetic[weighs], cell[weighs], work.graph[weighs], matrix[weighs]
    traffic = np.exp(shared[MEMORY]) * work.megabytes[weighs]
    spilled, visited = (np.bincount(work.graph, v, graphs) for v in (work.spilled, work.visited))
    unit = np.where(matrix, MATRIX_OP, VECTOR_OP)
    per_op = np.exp(shared[unit])
    counts = np.stack([np.bincount(work.graph, np.where(m, per_op, 0), graphs) for m in (matrix, ~matrix)])
    error, jacobian = np.zeros(len(seen.log_ms)), np.zeros((len(seen.log_ms), len(theta)))
    for device in range(devices):
        rows = np.flatnonzero(seen.device == device)
        if not len(rows):
            continue
        m, v, d, o = np.exp(own[device, :4])
        busy = np.where(multiplies, m, v) * arithmetic
        bound = busy >= d * traffic
        parts = np.zeros((graphs, SHARED + 4))  # derivative of milliseconds by the shared and this device's parameters
        by_kind = np.where(MATRIX_KIND, m, v) * weightless
        by_kind = by_kind + np.bincount(cell, np.where(bound, busy, 0), graphs * K).reshape(graphs, K)
        parts[:, :K] = by_kind
        parts[:, MEMORY] = np.bincount(of_graph, np.where(bound, 0, d * traffic), graphs)
        parts[:, SPILLED] = d * np.exp(shared[SPILLED]) * spilled
        parts[:, VISITED] = d * np.exp(shared[VISITED]) * visited
        parts[:, MATRIX_OP], parts[:, VECTOR_OP] = o * counts
        parts[:, IO] = d * np.exp(shared[IO]) * work.io_megabytes
        parts[:, OFFSET] = o * np.exp(shared[OFFSET]) * work.handed_over
        total = parts[:, :SHARED].sum(1)
        parts[:, SHARED] = by_kind[:, MATRIX_KIND].sum(1)
        parts[:, SHARED + 1] = by_kind[:, ~MATRIX_KIND].sum(1)
        parts[:, SHARED + 2] = parts[:, [MEMORY, SPILLED, VISITED, IO]].sum(1)
        parts[:, SHARED + 3] = parts[:, MATRIX_OP] + parts[:, VECTOR_OP] + parts[:, OFFSET]
        where = np.concatenate([np.arange(SHARED), SHARED + 5 * device + np.arange(4)])
        jacobian[np.ix_(rows, where)] = (parts / total[:, None])[seen.graph[rows]]
        error[rows] = np.log(total)[seen.graph[rows]] - seen.log_ms[rows]
    return error, jacobian


def _with_priors(
    theta: Floats, start: Floats, spread: float, devices: int, cost: float, gradient: Floats, hessian: Floats
) -> tuple[float, Floats, Floats]:
    one = np.eye(len(theta))
    rows: list[Floats] = []
    sigmas: list[float] = []
    targets: list[float] = []
    for kind in range(K):
        common = COMMON_MATRIX if MATRIX_KIND[kind] else COMMON_VECTOR
        rows.append(one[kind] - one[common])
        sigmas.append(spread * KIND_SPREAD[0 if MATRIX_KIND[kind] else 1])
        targets.append(float(start[kind] - start[common]))
    for index in range(K, SHARED):
        rows.append(one[index])
        sigmas.append(OVERHEAD_SPREAD if spread < 1 and index in OVERHEADS else spread * START_SPREAD)
        targets.append(float(start[index]))
    for device in range(devices):
        base = SHARED + 5 * device
        for factor in range(4):
            rows.append(one[base + factor] - one[base + 4])
            sigmas.append(FACTOR_SPREAD)
            targets.append(0.0)
        rows.append(one[base + 4])
        sigmas.append(SPEED_SPREAD)
        targets.append(0.0)
    prior, sigma = np.stack(rows), np.array(sigmas)
    error = prior @ theta - np.array(targets)
    weighted = prior / sigma[:, None] ** 2
    return cost + float(np.sum((error / sigma) ** 2)), gradient + weighted.T @ error, hessian + weighted.T @ prior


def grouped_folds(groups: Sequence[str], most: int) -> list[list[int]]:
    """Indices of `groups` in at most `most` folds; equal names are never apart."""
    names = sorted(set(groups))
    return [[i for i, g in enumerate(groups) if names.index(g) % most == fold] for fold in range(min(most, len(names)))]


def fit_device(work: Work, graph: NDArray[np.intp], log_ms: Floats, rates: Rates, prior: Factors) -> Factors:
    """Factors of one more device from a few of its latencies, around those of a device like it.

    Args:
        work: of the graphs.
        graph: index into them of every measurement.
        log_ms: logarithm of the measured milliseconds.
        rates: of the reference, which stay as they are.
        prior: factors of the device that is most like it.
    """
    base = np.log([prior.matrix, prior.vector, prior.memory, prior.overhead])
    theta = np.zeros(5)  # deviations of the four factors, and of their common speed
    sigma = np.array([FACTOR_SPREAD] * 4 + [SPEED_SPREAD])

    def errors(values: Floats) -> Floats:
        factors = Factors(*(float(v) for v in np.exp(base + values[:4] + values[4])))
        return np.asarray(np.log(milliseconds(work, rates, factors))[graph] - log_ms)

    for _ in range(20):
        now, step = errors(theta), 1e-4
        jacobian = np.stack([(errors(theta + step * row) - now) / step for row in np.eye(5)], 1)
        weight = np.minimum(1, 2 * NOISE / np.maximum(np.abs(now), 1e-12)) / NOISE**2
        hessian = (jacobian * weight[:, None]).T @ jacobian + np.diag(1 / sigma**2)
        move = np.linalg.solve(hessian, jacobian.T @ (weight * now) + theta / sigma**2)
        theta = theta - np.clip(move, -1, 1)
        if np.abs(move).max() < 1e-4:
            break
    return Factors(*(float(v) for v in np.exp(base + theta[:4] + theta[4])))
