"""GPTQ for large matrices against the paper's algorithm 1, written down in float64 with nothing of ours but the grid."""

import numpy as np
import pytest
import torch

from pocketport.compress.blockwise.gptq import Hessian, solve
from pocketport.compress.blockwise.grids import Form, round_to, searched_grid
from pocketport.errors import VerificationError

ROWS, COLUMNS, SAMPLES = 16, 192, 600  # more columns than a block of the solver
DAMPING = 0.01
CPU = torch.device("cpu")


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix and inputs whose channels are correlated and of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator) * 0.1 + torch.eye(COLUMNS)
    sizes = torch.rand(COLUMNS, generator=generator) + 0.05
    inputs = (torch.randn(SAMPLES, COLUMNS, generator=generator) @ mixing) * sizes
    return torch.randn(ROWS, COLUMNS, generator=generator) / COLUMNS**0.5, inputs


def hessian_of(inputs: torch.Tensor) -> Hessian:
    hessian = Hessian(COLUMNS, CPU)
    for part in inputs.split(256):
        hessian.add(part)
    return hessian


def textbook(weight: np.ndarray, inputs: np.ndarray, scale: np.ndarray, zero: np.ndarray, highest: int) -> np.ndarray:
    """Frantar et al. 2022, algorithm 1, with columns ordered by the Hessian's diagonal; the whole inverse at every step."""
    h = inputs.T @ inputs
    order = np.argsort(-np.diag(h), kind="stable")
    h = h[np.ix_(order, order)]
    h[np.diag_indices(COLUMNS)] += DAMPING * np.diag(h).mean()
    w, scale, zero = weight[:, order].copy(), scale[:, order], zero[:, order]
    integers = np.empty_like(w)
    for j in range(COLUMNS):
        inverse = np.linalg.inv(h[j:, j:])
        q = np.clip(np.round(w[:, j] / scale[:, j]) + zero[:, j], 0, highest)
        integers[:, j] = q
        error = (w[:, j] - (q - zero[:, j]) * scale[:, j]) / inverse[0, 0]
        w[:, j + 1 :] -= np.outer(error, inverse[0, 1:])
    result = np.empty_like(integers)
    result[:, order] = integers
    return result


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (3, False)])
def test_it_solves_the_papers_problem(bits: int, symmetric: bool) -> None:
    weight, inputs = problem()
    form = Form(bits, 64, symmetric, half=True)
    integers, grid = solve(weight, hessian_of(inputs).factor(DAMPING), form)
    scale, zero = (v.double().repeat_interleave(64, 1).numpy() for v in (grid.scale, grid.zero))
    expected = textbook(weight.double().numpy(), inputs.double().numpy(), scale, zero, 2**bits - 1)
    # Float32 sums send a few values that lie near the middle of two integers to the other one, and what follows them.
    assert np.mean(integers.numpy() != expected) < 0.01

    def output_error(of: np.ndarray) -> float:
        difference = weight.double().numpy() - (of - zero) * scale
        return float(np.square(inputs.double().numpy() @ difference.T).sum())

    nearest = round_to(weight, searched_grid(weight, form)).numpy()
    assert output_error(integers.numpy()) == pytest.approx(output_error(expected), rel=0.02)
    assert output_error(integers.numpy()) < 0.6 * output_error(nearest)


def test_weights_of_one_input_are_solved_together_as_alone() -> None:
    weight, inputs = problem()
    form = Form(4, 64, True, half=True)
    factor = hessian_of(inputs).factor(DAMPING)
    together, _ = solve(weight, factor, form)
    alone = torch.cat([solve(part, factor, form)[0] for part in weight.split(ROWS // 2)])
    assert float((together != alone).float().mean()) < 0.002


def test_inputs_that_were_never_seen_keep_their_nearest_integers() -> None:
    weight, inputs = problem()
    inputs[:, 10:20] = 0
    form = Form(4, 64, True, half=True)
    integers, grid = solve(weight, hessian_of(inputs).factor(DAMPING), form)
    nearest = round_to(weight, grid)
    assert torch.equal(integers[:, 10:20], nearest[:, 10:20])
    assert bool(torch.isfinite(grid.dequantized(integers)).all())


def test_numbers_that_are_not_finite_are_an_error() -> None:
    _, inputs = problem()
    inputs[3, 7] = torch.inf
    with pytest.raises(VerificationError, match="not finite"):
        hessian_of(inputs).factor(DAMPING)
