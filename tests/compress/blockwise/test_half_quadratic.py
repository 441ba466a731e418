"""HQQ's grids: against its formulas written out group by group, and by the error that they are for."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketport.compress.algorithms.affine_grid import Grid
from pocketport.compress.blockwise.grids import Form, extreme_grid, round_to, searched_grid
from pocketport.compress.blockwise.half_quadratic import half_quadratic_grid, shrunk
from pocketport.compress.blockwise.rounding import rounded
from pocketport.compress.formats.contract import WeightPlan

GROUP = 32
P, BETA, KAPPA, ITERATIONS = 0.7, 10.0, 1.01, 20  # lp_norm, beta, kappa, iters of the paper's code


def heavy(seed: int, rows: int = 16, groups: int = 3) -> torch.Tensor:
    """Student's t with two degrees of freedom: no variance."""
    return torch.from_numpy(0.02 * np.random.default_rng(seed).standard_t(2, (rows, groups * GROUP)).astype(np.float32))


def error(weight: torch.Tensor, grid: Grid, form: Form) -> torch.Tensor:
    """Σ |w − ŵ|^p of every group."""
    difference = weight - grid.dequantized(round_to(weight, grid))
    return difference.abs().pow(P).reshape(len(weight), -1, GROUP).sum(-1)


def shrink(x: float, beta: float) -> float:
    return float(np.sign(x) * max(abs(x) - abs(x) ** (P - 1) / beta, 0.0)) if x else 0.0


def iterated(group: NDArray[np.float64], scale: float, zero: float, highest: int) -> float:
    """The least error on the way of half-quadratic splitting: E ← shrink(W − Ŵ), z ← mean(Q − (W − E)/s), s fitted."""
    unit, beta, errors = scale, BETA, []
    for _ in range(ITERATIONS):
        q = np.clip(np.rint(group / scale) + zero, 0, highest)
        difference = group - scale * (q - zero)
        errors.append(float((np.abs(difference) ** P).sum()))
        target = group - unit * np.array([shrink(x, beta) for x in difference / unit])
        zero = float(np.clip(np.rint((q - target / scale).mean()), 0, highest))
        (fitted,) = np.linalg.lstsq((q - zero)[:, None], target, rcond=None)[0]
        scale = float(fitted) if fitted * scale > 0 else scale
        beta *= KAPPA
    return min(errors)


@pytest.mark.parametrize("beta", [1.0, 10.0, 12.0])
def test_the_shrinkage_operator_is_the_papers(beta: float) -> None:
    values = np.concatenate([np.linspace(-3, 3, 61), [0.0, 1e-30, -1e-30]])
    slope = np.maximum(np.abs(values), 1e-40) ** (P - 1)
    got = shrunk(torch.from_numpy(values), torch.from_numpy(slope), beta)
    np.testing.assert_allclose(got, [shrink(float(x), beta) for x in values], atol=1e-12)
    assert (got.abs() <= torch.from_numpy(np.abs(values))).all()


@pytest.mark.parametrize("bits", [3, 4])
def test_it_finds_what_the_formulas_give(bits: int) -> None:
    weight, form = heavy(1, rows=6), Form(bits, GROUP, symmetric=False, half=False)
    start = searched_grid(weight, form)
    groups, scales, zeros = (x.double().numpy() for x in (weight.reshape(-1, GROUP), start.scale, start.zero))
    fitted = [iterated(*each, form.highest) for each in zip(groups, scales.ravel(), zeros.ravel(), strict=True)]
    expected = np.minimum(fitted, error(weight, extreme_grid(weight, form), form).reshape(-1))
    got = error(weight, half_quadratic_grid(weight, form), form).reshape(-1)
    np.testing.assert_allclose(got, expected, rtol=2e-3)  # float32 rounds a weight between two steps elsewhere


@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8), symmetric=st.booleans())
def test_no_group_errs_more_than_by_the_other_grids(seed: int, bits: int, symmetric: bool) -> None:
    weight, form = heavy(seed), Form(bits, GROUP, symmetric, half=True)
    weight[0] = 0
    grid = half_quadratic_grid(weight, form)
    integers, values = round_to(weight, grid), grid.dequantized(round_to(weight, grid))
    assert int(integers.max()) <= form.highest and (values[0] == 0).all()
    assert torch.equal(grid.scale, grid.scale.half().float()) and torch.equal(grid.zero, grid.zero.round())
    for other in (extreme_grid, searched_grid):
        assert (error(weight, grid, form) <= error(weight, other(weight, form), form) * (1 + 1e-5) + 1e-9).all()


@pytest.mark.parametrize("bits", [3, 4])
def test_on_heavy_tails_it_errs_less_and_a_recipe_reaches_it(bits: int) -> None:
    weight = heavy(7, rows=64)
    errors = {}
    for algorithm in ("rtn", "mse", "hqq"):
        plan = WeightPlan(
            "w", tuple(weight.shape), "prefill", f"w{bits}b{GROUP}fp16", algorithm, False, {}, "", "", 0, 0
        )
        made = rounded(plan, ir.tensor(weight.numpy()), torch.device("cpu"))
        difference = weight - torch.from_numpy(made.dequantized())
        errors[algorithm] = float(difference.abs().pow(P).sum())
    assert errors["hqq"] < 0.99 * errors["mse"] < 0.99 * errors["rtn"]
