"""What predictions were off by on graphs alike: Gaussian processes over where a graph spends its time.

Rasmussen & Williams 2006, chapter 2, with squared exponential kernels and mean zero: far from all that was measured, nothing is corrected.
One process is what all devices share, and one for each device what it has beside that (chips rank the same graphs differently).
A graph is described by the square roots of the shares of its predicted time, by kind of op, and by its size.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketport.profiles.prediction.roofline import KINDS, MATRIX_KIND, Factors, Floats, Rates, Work, milliseconds

# The three are where the marginal likelihood of what fits to all measurements were off by is greatest (chapter 5.4.1), of both predictors
# and the three precisions together.
LENGTH = 0.2  # distance at which graphs say little about what all devices share of each other
OWN_LENGTH = 0.3  # the same of what is a device's own
NOISE = 0.1  # of a graph's own error against the processes', variances
SIZE = 0.15  # of a factor e in time or in ops, in units of the shares
MOST = 0.4  # logarithm: larger errors (1.5 times) are one graph's alone


@dataclass(frozen=True)
class Correction:
    """The processes, conditioned on measured graphs.

    Attributes:
        points: of the measured graphs, [n, d].
        weights: of what all devices share, [n].
        own: of what is each device's own, [devices, n].
    """

    points: Floats
    weights: Floats
    own: Floats

    def factors(self, points: Floats, device: int | None = None) -> Floats:
        """What to multiply the predictions of graphs at `points` with, on a device that was measured or (None) on any other, one a graph."""
        logs = _kernel(points, self.points, LENGTH) @ self.weights
        if device is not None:
            logs = logs + _kernel(points, self.points, OWN_LENGTH) @ self.own[device]
        return np.asarray(np.exp(logs))


def nothing(devices: int) -> Correction:
    """Before anything was learnt."""
    return Correction(np.zeros((0, len(KINDS) + 3)), np.zeros(0), np.zeros((devices, 0)))


def description(work: Work, rates: Rates) -> Floats:
    """Graphs as points, [graphs, kinds + 3]."""
    graphs, kinds = len(work.io_megabytes), len(KINDS)
    busy = np.maximum(rates.ms_per_work[work.kind] * work.work, rates.ms_per_mb * work.megabytes)
    ops = (
        busy
        + rates.ms_per_spilled_mb * work.spilled
        + rates.ms_per_visited * work.visited
        + np.where(MATRIX_KIND[work.kind], rates.ms_per_op[0], rates.ms_per_op[1])
    )
    spent = np.bincount(work.graph * kinds + work.kind, ops, graphs * kinds).reshape(graphs, kinds)
    total = milliseconds(work, rates, Factors())
    around = rates.offset_ms * work.handed_over + rates.ms_per_io_mb * work.io_megabytes
    shares = np.sqrt(np.c_[spent, around] / total[:, None])
    counts = np.maximum(np.bincount(work.graph, minlength=graphs), 1)
    return np.asarray(np.c_[shares, SIZE * np.log(total), SIZE * np.log(counts)])


def learnt(
    points: Floats, graph: NDArray[np.intp], device: NDArray[np.intp], log_errors: Floats, devices: int
) -> Correction:
    """Condition on `log_errors` (of measured over predicted) of measurements.

    Args:
        points: of all graphs, [graphs, d].
        graph: of each measurement, index into `points`.
        device: of each measurement.
        log_errors: of each measurement; what devices share of a graph's is their median.
        devices: how many there are.
    """
    known, at = np.unique(graph, return_inverse=True)
    median = np.array([np.median(log_errors[at == g]) for g in range(len(known))])
    at_known = points[known]
    shared = np.where(np.abs(median) > MOST, 0.0, median)
    weights = _solved(_kernel(at_known, at_known, LENGTH), shared)
    covariance, own = _kernel(at_known, at_known, OWN_LENGTH), np.zeros((devices, len(known)))
    beside = np.clip(log_errors - median[at], -MOST, MOST)
    for index in range(devices):
        rows = np.flatnonzero(device == index)
        own[index, at[rows]] = _solved(covariance[np.ix_(at[rows], at[rows])], beside[rows])
    return Correction(at_known, weights, own)


def _solved(covariance: Floats, errors: Floats) -> Floats:
    return np.asarray(np.linalg.solve(covariance + NOISE * np.eye(len(errors)), errors))


def _kernel(a: Floats, b: Floats, length: float) -> Floats:
    return np.asarray(np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * length**2)))
