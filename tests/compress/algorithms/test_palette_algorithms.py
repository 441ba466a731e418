"""Palettes' algorithms against the exact optimum by dynamic programming and the papers' formulas written out naively."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketport.compress.algorithms import PALETTE_ALGORITHMS, PaletteProblem, PalettizedMatrix, palettize
from pocketport.compress.algorithms.kmeans import kmeans
from pocketport.compress.algorithms.palette import nearest
from pocketport.compress.algorithms.palette_gptq import palette_gptq
from pocketport.errors import UsageError, VerificationError

BITS = st.sampled_from([1, 2, 3, 4, 6, 8])


def layer(rows: int, columns: int, bits: int, group: int, seed: int = 0) -> PaletteProblem:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((columns, columns)) * np.geomspace(3, 0.1, columns)
    x = (rng.standard_normal((512, columns)) @ mixing).astype(np.float32)
    weight = (0.05 * rng.standard_normal((rows, columns))).astype(np.float32)
    return PaletteProblem(weight, bits, group, np.square(x).mean(0).astype(np.float64), x.T @ x)


def weighted_error(problem: PaletteProblem, done: PalettizedMatrix) -> np.ndarray:
    """Σ importance · (w − ŵ)² of every group."""
    importance = np.ones(problem.weight.shape[1]) if problem.importance is None else problem.importance
    error = np.square(done.dense().astype(np.float64) - problem.weight) * importance
    return error.reshape(len(done.table), -1).sum(axis=1)


def output_error(problem: PaletteProblem, done: PalettizedMatrix) -> float:
    assert problem.hessian is not None
    difference = done.dense().astype(np.float64) - problem.weight
    return float(np.einsum("nk,nk->", difference @ problem.hessian, difference))


def least_error(values: np.ndarray, mass: np.ndarray, entries: int) -> float:
    """The optimum of weighted one-dimensional k-means: every way to cut the sorted values into runs."""
    order = np.argsort(values)
    x, m = values[order].astype(np.float64), mass[order]
    zeroth, first, second = (np.concatenate([[0.0], np.cumsum(m * x**power)]) for power in range(3))
    start, end = np.triu_indices(len(x) + 1, 1)
    cost = np.full((len(x) + 1, len(x) + 1), np.inf)
    width = zeroth[end] - zeroth[start]
    cost[start, end] = second[end] - second[start] - np.square(first[end] - first[start]) / width
    best = cost[0]
    for _ in range(entries - 1):
        best = np.minimum(best, (best[:, None] + cost).min(axis=0))
    return float(best[-1])


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_is_within_a_hundredth_of_the_optimum(bits: int, weighted: bool) -> None:
    rng = np.random.default_rng(bits)
    weight = (rng.standard_normal((12, 96)) * np.where(rng.random((12, 96)) < 0.02, 4, 1)).astype(np.float32)
    importance = rng.lognormal(0, 1, 96) if weighted else None
    problem = PaletteProblem(weight, bits, 4, importance)
    mass = np.tile(np.ones(96) if importance is None else importance, 4)
    optimum = [least_error(group.ravel(), mass, 1 << bits) for group in weight.reshape(3, 4, 96)]
    found = weighted_error(problem, kmeans(problem))
    assert (found >= 0.9999 * np.array(optimum)).all()
    assert (found <= 1.01 * np.array(optimum)).all()


@settings(max_examples=40, deadline=None)
@given(
    BITS,
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 99]),
)
def test_every_weight_has_the_nearest_entry_of_its_table(
    bits: int, groups: int, group: int, columns: int, seed: int, odd: int
) -> None:
    """Rows apart by magnitudes, groups of one value and of zeros among them."""
    rng = np.random.default_rng(seed)
    rows = groups * group
    weight = (rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-3, 3, (rows, 1))).astype(np.float32)
    weight[:group] = np.float32(odd) if odd < 99 else weight[:group]
    importance = rng.random(columns) * (rng.random(columns) < 0.7)
    done = kmeans(PaletteProblem(weight, bits, group, importance))
    assert done.table.shape == (groups, 1 << bits) and done.indices.max() < 1 << bits
    assert np.array_equal(done.table, done.table.astype(np.float16).astype(np.float32))
    assert (np.diff(done.table, axis=1) >= 0).all()
    distances = np.abs(weight.reshape(groups, -1, 1) - done.table[:, None, :]).min(axis=-1)
    np.testing.assert_array_equal(np.abs(weight - done.dense()).reshape(groups, -1), distances)


@pytest.mark.parametrize("name", sorted(PALETTE_ALGORITHMS))
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_weights_out_of_a_table_come_back(name: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    table = np.sort(np.cumsum(rng.uniform(0.5, 2, (3, 1 << bits)), axis=1) - 7).astype(np.float16).astype(np.float32)
    indices = np.concatenate([np.arange(1 << bits), rng.integers(0, 1 << bits, 512 - (1 << bits))])
    weight = np.take_along_axis(table, np.tile(rng.permutation(indices), (3, 1)), axis=1).reshape(12, 128)
    x = rng.standard_normal((256, 128)).astype(np.float32)
    done = palettize(name, PaletteProblem(weight, bits, 4, np.square(x).mean(0).astype(np.float64), x.T @ x))
    np.testing.assert_array_equal(done.dense(), weight)
    np.testing.assert_array_equal(done.table, table)


def naive_gptq(problem: PaletteProblem, table: np.ndarray, damping: float) -> np.ndarray:
    """Equations 2 and 3 of the paper: after each column, the inverse of the Hessian that is left is made anew."""
    assert problem.hessian is not None
    h = problem.hessian.astype(np.float64)
    order = np.argsort(-np.diagonal(h), kind="stable")
    h = h + np.eye(len(h)) * damping * np.diagonal(h).mean()
    w = problem.weight.astype(np.float64).copy()
    indices = np.zeros(w.shape, np.int64)
    tables = np.repeat(table, problem.group, axis=0)
    left = list(order)
    while left:
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        j = left[0]
        indices[:, j] = np.abs(tables - w[:, j, None]).argmin(axis=1)
        error = (w[:, j] - np.take_along_axis(tables, indices[:, j, None], axis=1)[:, 0]) / inverse[0, 0]
        w[:, left] -= np.outer(error, inverse[0])
        left = left[1:]
    return indices


@pytest.mark.parametrize(("bits", "group"), [(2, 1), (3, 8), (4, 24)])
def test_gptq_is_the_papers_recursion(bits: int, group: int) -> None:
    problem = layer(24, 40, bits, group)
    done = palette_gptq(problem, damping=0.01)
    assert np.array_equal(done.table, kmeans(problem).table)
    assert np.array_equal(done.indices, naive_gptq(problem, done.table, 0.01))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_each_step_errs_less_than_the_one_before(bits: int) -> None:
    """Unweighted, weighted, propagated: the error of the layer's output."""
    problem = layer(32, 64, bits, 4)
    plain = kmeans(PaletteProblem(problem.weight, bits, 4))
    errors = [output_error(problem, done) for done in (plain, kmeans(problem), palette_gptq(problem))]
    assert errors[2] < 0.8 * errors[1] < 0.8 * errors[0]


def test_gptq_on_uncorrelated_inputs_is_kmeans() -> None:
    problem = layer(16, 32, 3, 4)
    free = PaletteProblem(problem.weight, 3, 4, problem.importance, np.diag(np.diagonal(problem.hessian)))
    assert np.array_equal(palette_gptq(free).indices, kmeans(free).indices)


@given(st.integers(0, 2**32 - 1), BITS)
def test_the_nearest_entry_by_search_is_the_nearest_by_distance(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    table = np.sort(rng.standard_normal((2, 1 << bits)).astype(np.float16), axis=1).astype(np.float32)
    values = rng.standard_normal((2, 9)).astype(np.float32)
    found = np.take_along_axis(table, nearest(table, values).astype(np.intp), axis=1)
    np.testing.assert_array_equal(np.abs(found - values), np.abs(table[:, None] - values[..., None]).min(axis=-1))


def digest() -> str:
    """Of both algorithms' results on a layer large enough for numpy's threads."""
    problem = layer(96, 320, 3, 16)
    done = [palettize(name, problem) for name in sorted(PALETTE_ALGORITHMS)]
    return hashlib.sha256(b"".join(d.indices.tobytes() + d.table.tobytes() for d in done)).hexdigest()


def test_one_thread_and_two_give_the_same_bytes() -> None:
    made = []
    for threads in ("1", "2"):
        names = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        code = f"import runpy; print(runpy.run_path({__file__!r})['digest']())"
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **names}, capture_output=True, check=True
        )
        made.append(done.stdout)
    assert made[0] == made[1] and len(made[0].strip()) == 64


def test_missing_hessian_and_wrong_names_are_errors() -> None:
    problem = layer(4, 8, 2, 4)
    with pytest.raises(VerificationError, match="Hessian"):
        palette_gptq(PaletteProblem(problem.weight, 2, 4))
    with pytest.raises(UsageError, match="did you mean kmeans"):
        palettize("kmean", problem)
    with pytest.raises(UsageError, match="wrong options"):
        palettize("kmeans", problem, {"damping": 1.0})
