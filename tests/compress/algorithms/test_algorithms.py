"""Weight algorithms against brute force and against the paper's formula written out naively."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketport.compress.algorithms import ALGORITHMS, WeightFormat, WeightProblem, round_weight
from pocketport.compress.algorithms.base import dequantized, expanded
from pocketport.compress.algorithms.gptq import gptq, output_error
from pocketport.compress.algorithms.mse import mse, searched_grid
from pocketport.compress.algorithms.rtn import rtn
from pocketport.errors import UsageError, VerificationError


def int4(group: int, **changes: object) -> WeightFormat:
    return WeightFormat(-8, 7, True, group, **changes)  # type: ignore[arg-type]


def layer(rows: int = 24, columns: int = 32, group: int = 32, seed: int = 0, **changes: object) -> WeightProblem:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((columns, columns)) * np.geomspace(3, 0.1, columns)
    x = (rng.standard_normal((512, columns)) @ mixing).astype(np.float32)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    return WeightProblem(weight, int4(group, **changes), np.square(x).mean(0).astype(np.float64), x.T @ x)


def naive_gptq(problem: WeightProblem, damping: float) -> np.ndarray:
    """Equations 2 and 3 of the paper: after each column, the inverse of the Hessian that is left is made anew."""
    assert problem.hessian is not None
    scale, zero = expanded(searched_grid(problem), problem)
    h = problem.hessian.astype(np.float64)
    order = np.argsort(-np.diagonal(h), kind="stable")
    h = h + np.eye(len(h)) * damping * np.diagonal(h).mean()
    w = problem.weight.astype(np.float64).copy()
    integers = np.zeros(w.shape, np.int64)
    left = list(order)
    while left:
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        j = left[0]
        integers[:, j] = np.clip(np.rint(w[:, j] / scale[:, j]) + zero[:, j], problem.format.low, problem.format.high)
        error = (w[:, j] - (integers[:, j] - zero[:, j]) * scale[:, j]) / inverse[0, 0]
        w[:, left] -= np.outer(error, inverse[0])
        left = left[1:]
    return integers


@pytest.mark.parametrize("group", [32, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_is_the_papers_recursion(group: int, symmetric: bool) -> None:
    problem = layer(group=group)
    form = problem.format if symmetric else WeightFormat(0, 15, False, group)
    problem = WeightProblem(problem.weight, form, problem.importance, problem.hessian)
    assert np.array_equal(gptq(problem, damping=0.01).integers, naive_gptq(problem, 0.01))


def test_lazy_updates_do_not_change_the_result() -> None:
    problem = layer(rows=4, columns=300, group=300)
    ours = gptq(problem).integers
    assert (ours != naive_gptq(problem, 0.01)).mean() < 0.002  # ties of float64 sums in another order


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("group", [32, 8])
def test_each_algorithm_errs_less_than_the_one_before(seed: int, group: int) -> None:
    problem = layer(seed=seed, group=group)
    errors = [output_error(problem, algorithm(problem)) for algorithm in (rtn, mse, gptq)]
    assert errors[2] < 0.7 * errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_weights_on_the_grid_are_exact(name: str) -> None:
    rng = np.random.default_rng(3)
    integers = rng.integers(-7, 8, (6, 16))
    integers[:, 0] = 7
    weight = (integers * rng.uniform(0.5, 2, (6, 1))).astype(np.float32)
    x = rng.standard_normal((64, 16)).astype(np.float32)
    problem = WeightProblem(weight, int4(16), np.square(x).mean(0).astype(np.float64), x.T @ x)
    assert np.allclose(dequantized(round_weight(name, problem), problem), weight, rtol=1e-5)


def test_gptq_on_uncorrelated_inputs_is_rounding() -> None:
    problem = layer()
    free = WeightProblem(problem.weight, problem.format, problem.importance, np.diag(np.diagonal(problem.hessian)))
    assert np.array_equal(gptq(free).integers, mse(free).integers)


def test_gptq_rounds_inputs_that_were_never_seen() -> None:
    problem = layer()
    assert problem.hessian is not None and problem.importance is not None
    hessian, importance = problem.hessian.copy(), problem.importance.copy()
    hessian[5], hessian[:, 5], importance[5] = 0, 0, 0
    unseen = WeightProblem(problem.weight, problem.format, importance, hessian)
    rounded = gptq(unseen)
    scale, _ = expanded(rounded.grid, unseen)
    assert np.array_equal(rounded.integers[:, 5], np.clip(np.rint(problem.weight[:, 5] / scale[:, 5]), -8, 7))


@pytest.mark.parametrize(("high", "steps"), [(7, 40), (127, 10)])
def test_mse_finds_the_best_of_its_ratios(high: int, steps: int) -> None:
    """Rows whose outliers hardly count, and rows where they do."""
    rng = np.random.default_rng(3)
    weight = (rng.standard_normal((20, 16)) * np.where(rng.random((20, 16)) < 0.1, 8, 1)).astype(np.float32)
    importance = rng.lognormal(0, 3, 16)
    problem = WeightProblem(weight, WeightFormat(-high - 1, high, True, 16), importance)
    best = []
    for row in weight:
        errors = []
        for ratio in np.linspace(1.0, 0.5, steps):
            scale = np.float32(np.abs(row).max() * ratio / high)
            rounded = np.clip(np.rint(row / scale), -high - 1, high) * scale
            errors.append(float((np.square(rounded - row) * np.maximum(importance, 1e-4 * importance.mean())).sum()))
        best.append(min(errors))
    rounded = mse(problem)
    weighed = np.square(dequantized(rounded, problem) - weight) @ np.maximum(importance, 1e-4 * importance.mean())
    assert weighed == pytest.approx(np.array(best), rel=1e-4)
    assert 0 < (rounded.grid.scale[:, 0] < np.abs(weight).max(axis=1) / high * 0.99).sum() < 20  # some clip


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0, 8, 16]), st.sampled_from(sorted(ALGORITHMS)), st.booleans())
def test_integers_stay_in_the_format(seed: int, group: int, name: str, symmetric: bool) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((5, 16)) * rng.choice([0.0, 1e-12, 1.0, 1e6], (5, 1))).astype(np.float32)
    x = rng.standard_normal((40, 16)).astype(np.float32)
    form = WeightFormat(-8, 7, True, group) if symmetric else WeightFormat(0, 15, False, group)
    rounded = round_weight(name, WeightProblem(weight, form, np.square(x).mean(0).astype(np.float64), x.T @ x))
    assert rounded.integers.min() >= form.low and rounded.integers.max() <= form.high
    assert np.isfinite(rounded.grid.scale).all() and (rounded.grid.scale > 0).all()


def test_block_scales_are_sixteenths_of_the_channels() -> None:
    problem = layer(rows=8, columns=64, group=16, scale_levels=16)
    scale = gptq(problem).grid.scale
    levels = scale / (scale.max(axis=1, keepdims=True) / 16)
    assert np.allclose(levels, np.rint(levels), atol=1e-4) and levels.min() >= 1


def test_scales_respect_their_least() -> None:
    problem = layer(group=0)
    least = np.full(problem.weight.shape[0], 10.0)
    assert rtn(WeightProblem(problem.weight, problem.format, least_scale=least)).grid.scale.min() == 10.0


def test_missing_hessian_and_wrong_names_are_errors() -> None:
    problem = layer()
    with pytest.raises(VerificationError, match="Hessian"):
        gptq(WeightProblem(problem.weight, problem.format))
    with pytest.raises(UsageError, match="did you mean gptq"):
        round_weight("gptc", problem)
    with pytest.raises(UsageError, match="wrong options"):
        round_weight("rtn", problem, {"damping": 1.0})
