"""Refining a rounded matrix: against coordinate descent written down element by element, and numpy's least squares."""

import numpy as np
import pytest
import torch

from pocketport.compress.algorithms.affine_grid import Grid
from pocketport.compress.algorithms.column_rounding import descended
from pocketport.compress.blockwise.gptq import Hessian, solve
from pocketport.compress.blockwise.grids import Form, round_to, searched_grid
from pocketport.compress.blockwise.refine import refined, refitted

ROWS, COLUMNS, GROUP, SAMPLES = 6, 96, 32, 300  # more columns than a block


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and the Hessian of inputs whose channels are correlated and of unequal size."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator) * 0.15 + torch.eye(COLUMNS)
    inputs = torch.randn(SAMPLES, COLUMNS, generator=generator) @ mixing
    inputs *= torch.rand(COLUMNS, generator=generator) + 0.05
    hessian = inputs.T @ inputs
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    return torch.randn(ROWS, COLUMNS, generator=generator) / COLUMNS**0.5, hessian


def swept(weight: torch.Tensor, hessian: torch.Tensor, integers: torch.Tensor, grid: Grid) -> torch.Tensor:
    rounding = grid.columns(torch.arange(COLUMNS)[None])
    return descended(weight[None], hessian[None], grid.dequantized(integers)[None], rounding, torch.uint8)[0]


def nearest(weight: torch.Tensor, form: Form) -> tuple[torch.Tensor, Grid]:
    grid = searched_grid(weight, form)
    return round_to(weight, grid), grid


def row_errors(weight: torch.Tensor, hessian: torch.Tensor, integers: torch.Tensor, grid: Grid) -> np.ndarray:
    """(ŵ − w) H (ŵ − w)ᵀ in float64, from the definition of a grid."""
    scale, zero = (v.double().repeat_interleave(GROUP, 1) for v in (grid.scale, grid.zero))
    difference = (integers.double() - zero) * scale - weight.double()
    return np.asarray(((difference @ hessian.double()) * difference).sum(1))


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (3, False)])
def test_a_sweep_is_the_papers(bits: int, symmetric: bool) -> None:
    weight, hessian = problem()
    form = Form(bits, GROUP, symmetric, half=True)
    integers, grid = nearest(weight, form)
    found = swept(weight, hessian, integers, grid)

    w, h = weight.double().numpy(), hessian.double().numpy()
    scale, zero = (v.double().repeat_interleave(GROUP, 1).numpy() for v in (grid.scale, grid.zero))
    expected = integers.numpy().astype(np.float64)
    for n in range(ROWS):
        for j in range(COLUMNS):
            now = (expected[n] - zero[n]) * scale[n]
            others = np.delete(np.arange(COLUMNS), j)
            best = w[n, j] - (now[others] - w[n, others]) @ h[others, j] / h[j, j]
            expected[n, j] = np.clip(np.round(best / scale[n, j]) + zero[n, j], 0, 2**bits - 1)
    assert np.mean(found.numpy() != expected) < 0.01  # float32 sums decide a tie otherwise
    assert (row_errors(weight, hessian, found, grid) <= row_errors(weight, hessian, integers, grid) * (1 + 1e-6)).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_scales_are_those_of_least_squares(symmetric: bool) -> None:
    weight, hessian = problem()
    form = Form(4, GROUP, symmetric, half=False)
    integers, grid = nearest(weight, form)
    found = refitted(weight, hessian, integers, grid, half=form.half)
    root = np.linalg.cholesky(hessian.double().numpy()).T  # H = rootᵀ root
    steps = (integers.double() - grid.zero.double().repeat_interleave(GROUP, 1)).numpy()
    for n in range(ROWS):
        parts = np.stack([np.where(np.arange(COLUMNS) // GROUP == g, steps[n], 0) for g in range(COLUMNS // GROUP)])
        expected = np.linalg.lstsq(root @ parts.T, root @ weight[n].double().numpy(), rcond=None)[0]
        np.testing.assert_allclose(found.scale[n].numpy(), expected, rtol=2e-3)
    assert torch.equal(found.zero, grid.zero)


def test_scales_stay_float16_numbers_and_no_row_gets_worse() -> None:
    weight, hessian = problem()
    form = Form(2, GROUP, True, half=True)
    integers, grid = nearest(weight, form)
    found = refitted(weight, hessian, integers, grid, half=form.half)
    assert torch.equal(found.scale, found.scale.half().float())
    assert (row_errors(weight, hessian, integers, found) <= row_errors(weight, hessian, integers, grid) + 1e-9).all()


def test_groups_of_zeros_keep_their_scales() -> None:
    weight, hessian = problem()
    weight[:, :GROUP] = 0
    form = Form(4, GROUP, True, half=True)
    integers, grid = nearest(weight, form)
    found = refitted(weight, hessian, integers, grid, half=form.half)
    assert torch.equal(found.scale[:, 0], grid.scale[:, 0]) and bool(torch.isfinite(found.scale).all())


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (3, False), (2, True)])
def test_refining_lowers_the_error_that_gptq_leaves(bits: int, symmetric: bool) -> None:
    weight, hessian = problem()
    form = Form(bits, GROUP, symmetric, half=True)
    sums = Hessian(COLUMNS, torch.device("cpu"))
    sums.add(torch.linalg.cholesky(hessian).T)
    factor = sums.factor(1e-6, whole=True)
    torch.testing.assert_close(factor.hessian, hessian, rtol=1e-3, atol=1e-3)
    plain = row_errors(weight, hessian, *solve(weight, factor, form))
    better = row_errors(weight, hessian, *solve(weight, factor, form, sweeps=3))
    assert (better <= plain * (1 + 1e-6)).all() and better.sum() < 0.97 * plain.sum()


def test_rows_are_refined_alone_as_together(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = problem()
    form = Form(4, GROUP, True, half=True)
    together = refined(weight, hessian, *nearest(weight, form), 2, half=True)
    monkeypatch.setattr("pocketport.compress.blockwise.refine.RUN_ELEMENTS", COLUMNS)
    alone = refined(weight, hessian, *nearest(weight, form), 2, half=True)
    np.testing.assert_allclose(
        row_errors(weight, hessian, *alone), row_errors(weight, hessian, *together), rtol=0.02
    )  # float32 sums decide a tie otherwise


def test_inputs_that_were_never_seen_keep_their_nearest_integers() -> None:
    weight, hessian = problem()
    hessian[10:20], hessian[:, 10:20] = 0, 0
    hessian.diagonal()[10:20] = 1.0
    form = Form(4, GROUP, True, half=True)
    integers, grid = nearest(weight, form)
    assert torch.equal(swept(weight, hessian, integers, grid)[:, 10:20], integers[:, 10:20])
    integers, found = refined(weight, hessian, integers, grid, 2, half=True)
    assert bool(torch.isfinite(found.dequantized(integers)).all())
