"""The recursion's parts for several problems side by side: against numpy's inverses, and the papers written out."""

import numpy as np
import pytest
import torch

from pocketport.compress.algorithms.affine_grid import Grid
from pocketport.compress.algorithms.column_rounding import damp, descended, factored, propagated, symmetric_permuted
from pocketport.errors import VerificationError

PROBLEMS, ROWS, COLUMNS = 3, 5, 150  # more columns than blocks have, and than are reordered at a time


def hessians(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Of correlated inputs of unequal size, [G, K, K]."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(PROBLEMS, 2 * COLUMNS, COLUMNS, generator=generator, dtype=dtype)
    rows = rows @ (
        torch.randn(COLUMNS, COLUMNS, generator=generator, dtype=dtype) * 0.1 + torch.eye(COLUMNS, dtype=dtype)
    )
    rows *= torch.rand(PROBLEMS, 1, COLUMNS, generator=generator, dtype=dtype) + 0.05
    return rows.mT @ rows


def problem() -> tuple[torch.Tensor, Grid]:
    """Weights [G, N, K] and a grid of blocks for their rows together."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(PROBLEMS, ROWS, COLUMNS, generator=generator)
    scale = torch.rand(PROBLEMS * ROWS, 5, generator=generator) * 0.2 + 0.3
    return weight, Grid(scale, torch.full_like(scale, 7), 0, 15)


def test_factors_are_those_of_the_inverses_and_only_lower_triangles_are_read() -> None:
    whole = hessians()
    factor = factored(whole.tril() + torch.full_like(whole, torch.nan).triu(1))
    upper = factor.rows(0, COLUMNS)
    matrix = torch.randn(PROBLEMS, ROWS, COLUMNS, dtype=torch.float64)
    for g in range(PROBLEMS):
        order = factor.order[g].numpy()
        sizes = whole[g].diagonal().numpy()[order]
        assert (sizes[1:] <= sizes[:-1]).all()
        inverse = np.linalg.inv(whole[g].numpy())
        np.testing.assert_allclose(upper[g].T @ upper[g], inverse[np.ix_(order, order)], rtol=1e-6, atol=1e-12)
        assert torch.equal(upper[g], upper[g].triu())
        np.testing.assert_allclose(factor.applied(matrix)[g], matrix[g].numpy() @ inverse, rtol=1e-6, atol=1e-9)
    natural = torch.arange(COLUMNS).expand(PROBLEMS, COLUMNS)
    assert torch.equal(symmetric_permuted(whole.tril(), natural), whole.tril() + whole.tril(-1).mT)


def test_damping_is_a_share_of_the_mean_and_of_one_where_nothing_was_seen() -> None:
    found = torch.zeros(2, 4, 4)
    found[0].diagonal().copy_(torch.tensor([0.0, 1.0, 2.0, 5.0]))
    damp(found, 0.1)
    torch.testing.assert_close(found[0].diagonal(), torch.tensor([0.2, 1.2, 2.2, 5.2]))
    torch.testing.assert_close(found[1], 0.1 * torch.eye(4))


def test_a_hessian_that_is_not_positive_definite_is_an_error() -> None:
    broken = hessians()
    broken[1, 3, 3] = -1
    with pytest.raises(VerificationError, match="positive definite"):
        factored(broken)


def test_each_problem_is_the_papers() -> None:
    """Equations 2 and 3 of GPTQ's paper: after each column the inverse of what is left is made anew."""
    weight, grid = problem()
    whole = hessians()
    factor = factored(whole.clone())
    found = propagated(weight.double(), factor, grid.columns(factor.order), torch.uint8)
    scale = grid.scale.repeat_interleave(COLUMNS // 5, 1).reshape(weight.shape).double().numpy()
    for g in range(PROBLEMS):
        w, left, expected = weight[g].double().numpy().copy(), factor.order[g].tolist(), np.zeros((ROWS, COLUMNS))
        while left:
            inverse = np.linalg.inv(whole[g].numpy()[np.ix_(left, left)])
            j = left[0]
            expected[:, j] = np.clip(np.round(w[:, j] / scale[g][:, j]) + 7, 0, 15)
            w[:, left] -= np.outer((w[:, j] - (expected[:, j] - 7) * scale[g][:, j]) / inverse[0, 0], inverse[0])
            left = left[1:]
        assert np.mean(found[g].numpy() != expected) < 0.003  # sums in another order decide a tie otherwise


def test_each_problem_descends_as_by_itself_and_errs_less() -> None:
    weight, grid = problem()
    whole = hessians(torch.float32)
    now = grid.dequantized(grid.nearest(weight.flatten(0, 1))).reshape(weight.shape)
    natural = torch.arange(COLUMNS)[None]
    found = descended(weight, whole, now, grid.columns(natural.expand(PROBLEMS, -1)), torch.uint8)
    for g in range(PROBLEMS):
        own = grid.rows(slice(g * ROWS, (g + 1) * ROWS))
        alone = descended(weight[g : g + 1], whole[g : g + 1], now[g : g + 1], own.columns(natural), torch.uint8)[0]
        assert float((alone != found[g]).float().mean()) < 0.003

        def error(values: torch.Tensor, g: int = g) -> float:
            difference = (values - weight[g]).double()
            return float(((difference @ whole[g].double()) * difference).sum())

        assert error(own.dequantized(found[g])) < 0.7 * error(now[g])


def test_factors_are_the_same_with_any_number_of_threads() -> None:
    rows = torch.randn(1200, 600, generator=torch.Generator().manual_seed(0))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(factored((rows.T @ rows + 10 * torch.eye(600))[None]).reversed_upper)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
