"""Grids of grouped weights: against the definition, tried out value by value in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketport.compress.algorithms.affine_grid import Grid
from pocketport.compress.blockwise.grids import Form, extreme_grid, round_to, searched_grid

GROUP = 16


def form_of(bits: int, symmetric: bool) -> Form:
    return Form(bits, GROUP, symmetric, half=True)


def matrix(seed: int, rows: int = 12, groups: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, groups * GROUP, generator=generator) * torch.rand(rows, 1, generator=generator)


def error(weight: torch.Tensor, grid: Grid, form: Form, importance: torch.Tensor | None = None) -> torch.Tensor:
    difference = (weight - grid.dequantized(round_to(weight, grid))).square()
    weighted = difference if importance is None else difference * importance
    return weighted.reshape(len(weight), -1, GROUP).sum(-1)


@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8), symmetric=st.booleans())
def test_nothing_moves_by_more_than_half_a_step_between_the_extremes(seed: int, bits: int, symmetric: bool) -> None:
    weight, form = matrix(seed), form_of(bits, symmetric)
    grid = extreme_grid(weight, form)
    distance = (weight - grid.dequantized(round_to(weight, grid))).abs().reshape(len(weight), -1, GROUP)
    # The scale is a float16 (relative error 2^-11) and a symmetric grid has no positive counterpart of its least value.
    slack = grid.scale * 2.0**bits * 2.0**-11
    assert (distance.amax(-1) <= grid.scale / 2 + slack + 1e-7).all()


@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8), symmetric=st.booleans())
def test_zero_stays_zero_and_integers_fit(seed: int, bits: int, symmetric: bool) -> None:
    weight, form = matrix(seed), form_of(bits, symmetric)
    weight[:, ::5] = 0
    grid = searched_grid(weight, form)
    integers = round_to(weight, grid)
    assert int(integers.max()) <= 2**bits - 1
    assert (grid.dequantized(integers)[:, ::5] == 0).all()
    assert torch.equal(grid.scale, grid.scale.half().float()) and torch.equal(grid.zero, grid.zero.round())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_search_is_never_worse_than_the_extremes_and_near_the_best_ratio(symmetric: bool, weighted: bool) -> None:
    weight, form = matrix(3, rows=40), form_of(3, symmetric)
    importance = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(5)) + 0.1 if weighted else None
    found = error(weight, searched_grid(weight, form, importance), form, importance)
    assert (found <= error(weight, extreme_grid(weight, form), form, importance) + 1e-9).all()
    best = torch.full_like(found, torch.inf)
    grouped = weight.reshape(len(weight), -1, GROUP)
    for ratio in np.linspace(0.5, 1.0, 51):
        low, high = grouped.amin(-1).clamp(max=0) * ratio, grouped.amax(-1).clamp(min=0) * ratio
        for reach in (3, 4, -4) if symmetric else (7,):  # integers between zero and the greatest weight, upwards
            step = torch.where(high > -low, high, -low if reach == 3 else low) if symmetric else high - low
            step = (step / reach).half().float()
            zero = torch.full_like(step, 4) if symmetric else (-low / step).round().clamp(0, 7)
            best = torch.minimum(best, error(weight, Grid(step, zero, 0, form.highest), form, importance))
    assert float(found.sum()) <= 1.03 * float(best.sum())


def test_the_greatest_weight_of_a_symmetric_group_lies_at_its_least_integer() -> None:
    """As in ggml's Q4_0: one integer more, whichever sign it has."""
    form = form_of(3, symmetric=True)
    for sign in (1, -1):
        weight = sign * torch.tensor([[4.0, 3, 2, 1, 0, -1, -2, -3] * 2])
        grid = searched_grid(weight, form)
        integers = round_to(weight, grid)
        torch.testing.assert_close(grid.dequantized(integers), weight)
        assert int(integers[0, 0]) == 0


def test_groups_of_zeros_and_odd_sizes() -> None:
    weight = torch.zeros(1, GROUP)
    for symmetric in (False, True):
        form = form_of(4, symmetric)
        grid = searched_grid(weight, form)
        assert (grid.dequantized(round_to(weight, grid)) == 0).all()
        assert (grid.scale > 0).all()


def test_a_form_of_a_scheme() -> None:
    assert Form.of("w4b64fp16", False, 256) == Form(4, 64, False, True)
    assert Form.of("w8cfp16", True, 256) == Form(8, 256, True, True)
