"""What the roofline was off by on graphs alike: a Gaussian process over where a graph spends its time.

Rasmussen & Williams 2006, chapter 2, with a squared exponential kernel and mean zero: far from all that was measured, nothing is corrected.
A graph is described by the square roots of the shares of its predicted time, by kind of op, and by its size.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketport.profiles.prediction.roofline import KINDS, MATRIX_KIND, Factors, Floats, Rates, Work, milliseconds

LENGTH = 0.2  # distance at which graphs say little about each other
NOISE = 0.3  # of a graph's own error against the process's, variances
SIZE = 0.15  # of a factor e in time or in ops, in units of the shares
MOST = 0.4  # logarithm: larger errors (1.5 times) are compiler's cliffs, which nothing shares


@dataclass(frozen=True)
class Correction:
    """The process, conditioned on measured graphs: `points` [n, d] and its `weights` [n]."""

    points: Floats
    weights: Floats

    def factors(self, work: Work, rates: Rates) -> Floats:
        """What to multiply the predictions of graphs with, one a graph."""
        return np.asarray(np.exp(_kernel(description(work, rates), self.points) @ self.weights))


NONE = Correction(np.zeros((0, len(KINDS) + 3)), np.zeros(0))


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


def learnt(work: Work, rates: Rates, graphs: NDArray[np.intp], log_errors: Floats) -> Correction:
    """Condition on `log_errors` (of measured over predicted) of `graphs`, indices into `work`; several of one graph by their median."""
    known = np.unique(graphs)
    errors = np.array([np.median(log_errors[graphs == g]) for g in known])
    points = description(work, rates)[known]
    covariance = _kernel(points, points) + NOISE * np.eye(len(known))
    shared = np.where(np.abs(errors) > MOST, 0.0, errors)
    return Correction(points, np.asarray(np.linalg.solve(covariance, shared)))


def _kernel(a: Floats, b: Floats) -> Floats:
    return np.asarray(np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * LENGTH**2)))
