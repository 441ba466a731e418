"""GPTQ onto ggml's grids: against the paper's algorithm, ggml's own readers, and what must hold for any matrix."""

import numpy as np
import pytest
import torch
from ggml_library import dequantized, dequantized_by_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pocketport.compress.blockwise.gptq import Hessian, solve
from pocketport.compress.ggml.blocks import FORMS
from pocketport.compress.ggml.matrix import BlockGrid
from pocketport.compress.ggml.quantize import BlockMatrix, quantize
from pocketport.compress.ggml.refine import refined
from pocketport.compress.quantized_weights import PackedWeight
from pocketport.errors import InputError, UsageError

KINDS = list(FORMS)
ROWS, COLUMNS = 12, 512
DAMPING = 0.01


def problem(seed: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> tuple[Tensor, Tensor]:
    """A matrix and inputs whose channels are correlated and of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(2 * columns, columns // 8, generator=generator)
    mixed = sources @ torch.randn(columns // 8, columns, generator=generator) / (columns // 8) ** 0.5
    sizes = torch.rand(columns, generator=generator) + 0.05
    inputs = (mixed + torch.randn(2 * columns, columns, generator=generator)) * sizes
    return torch.randn(rows, columns, generator=generator) / columns**0.5, inputs


def hessian_of(inputs: Tensor) -> Hessian:
    hessian = Hessian(inputs.shape[1], torch.device("cpu"))
    hessian.add(inputs)
    return hessian


def damped(inputs: Tensor) -> Tensor:
    h = inputs.T @ inputs
    return h + DAMPING * h.diagonal().mean() * torch.eye(len(h))


def error(weight: Tensor, hessian: Tensor, found: Tensor) -> float:
    difference = (found - weight).double()
    return float(torch.einsum("nk,nk->", difference @ hessian.double(), difference))


def choices(grid: BlockGrid, levels: int) -> NDArray[np.float64]:
    """What every code stands for at every place, as gguf reads it, [codes, N, K]."""
    found = []
    for code in range(levels):
        codes = torch.full((grid.count, COLUMNS), code, dtype=torch.uint8)
        found.append(dequantized_by_gguf(grid.form.kind, grid.packed(codes)))
    return np.stack(found).astype(np.float64)


def textbook(
    weight: NDArray[np.float64], inputs: NDArray[np.float64], grid: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Frantar et al. 2022, algorithm 1, in the order of the Hessian's diagonal; the whole inverse at every step."""
    h = inputs.T @ inputs
    order = np.argsort(-np.diag(h), kind="stable")
    h = h[np.ix_(order, order)]
    h[np.diag_indices(len(h))] += DAMPING * np.diag(h).mean()
    inverse = np.linalg.inv(h)
    w, found = weight[:, order].copy(), np.empty_like(weight)
    for place, column in enumerate(order):
        own = grid[:, :, column]
        found[:, column] = np.take_along_axis(own, np.abs(own - w[:, place]).argmin(0)[None], 0)[0]
        row = inverse[place] / inverse[place, place]
        w -= np.outer(w[:, place] - found[:, column], np.where(np.arange(len(row)) > place, row, 0))
        inverse -= np.outer(inverse[:, place], row)  # Gaussian elimination: the inverse of what is left
    return found


@pytest.mark.parametrize(("kind", "levels"), [("q4_0", 16), ("q4_k", 16), ("q3_k", 8), ("iq4_xs", 16), ("q2_k", 4)])
def test_it_solves_the_papers_problem(kind: str, levels: int) -> None:
    weight, inputs = problem()
    form = BlockMatrix(kind, COLUMNS)
    codes, grid = solve(weight, hessian_of(inputs).factor(DAMPING), form)
    expected = textbook(weight.double().numpy(), inputs.double().numpy(), choices(grid, levels))
    read = dequantized(kind, form.stored(codes, grid).data, COLUMNS)
    # Float32 sums send a few values that lie near the middle of two levels to the other one, and what follows them.
    assert np.mean(np.abs(read - expected) > 1e-6) < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_do_not_correlate_leave_nearest_codes(kind: str) -> None:
    weight, _ = problem()
    form, inputs = BlockMatrix(kind, COLUMNS), torch.eye(COLUMNS)
    codes, grid = solve(weight, hessian_of(inputs).factor(DAMPING), form)
    torch.testing.assert_close(codes, grid.codes(weight), rtol=0, atol=0)
    if kind != "q8_0":  # whose nearest codes are those of scales before they are float16
        expected = quantize(kind, weight.numpy(), np.ones(COLUMNS, np.float32))
        np.testing.assert_array_equal(form.stored(codes, grid).data, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_it_errs_less_than_nearest_codes_and_both_owners_read_what_we_mean(kind: str) -> None:
    weight, inputs = problem(1)
    form, hessian = BlockMatrix(kind, COLUMNS), damped(inputs)
    factor = hessian_of(inputs).factor(DAMPING, whole=True)
    plain, better = solve(weight, factor, form), solve(weight, factor, form, sweeps=2)
    nearest = form.searched(weight, factor.diagonal)
    before = error(weight, hessian, nearest.dequantized(nearest.codes(weight)))
    errors = [error(weight, hessian, grid.dequantized(codes)) for codes, grid in (plain, better)]
    assert errors[0] < 0.6 * before and errors[1] < errors[0]
    for codes, grid in (plain, better):
        stored = form.stored(codes, grid)
        assert stored.shape == weight.shape
        read = dequantized(kind, stored.data, COLUMNS)
        np.testing.assert_array_equal(read, dequantized_by_gguf(kind, stored.data))
        np.testing.assert_array_equal(read, grid.dequantized(codes).numpy())


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(KINDS), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3),
    st.sampled_from(["plain", "zero rows", "one outlier", "all equal", "one sign"]), st.integers(1, 3),
)  # fmt: skip
def test_no_sweep_makes_a_matrix_worse(
    kind: str, rows: int, blocks: int, seed: int, size: float, shape: str, sweeps: int
) -> None:
    columns = blocks * FORMS[kind].block
    weight, inputs = problem(seed % 1000, rows, columns)
    weight *= size
    if shape == "zero rows":
        weight[::2] = 0
    elif shape == "one outlier":
        weight[0, 7] *= 50
    elif shape == "all equal":
        weight[:] = weight[0, 0]
    elif shape == "one sign":
        weight = weight.abs()
    hessian = damped(inputs)
    form = BlockMatrix(kind, columns)
    grid = form.searched(weight)
    codes = grid.codes(weight)
    before = error(weight, hessian, grid.dequantized(codes))
    swept, found = form.refined(weight, hessian, codes, grid, sweeps)
    read = dequantized(kind, form.stored(swept, found).data, columns)
    np.testing.assert_array_equal(read, found.dequantized(swept).numpy())
    rounding = 1e-6 * error(torch.zeros_like(weight), hessian, weight)  # of float32 sums
    assert error(weight, hessian, found.dequantized(swept)) <= before + rounding


def test_the_scale_of_a_block_is_the_one_of_least_squares() -> None:
    """Of one block, whose codes do not change any more: s = (q H w) / (q H q)."""
    weight, inputs = problem(2, 8, 32)
    hessian, form = damped(inputs), BlockMatrix("q4_0", 32)
    grid = form.searched(weight)
    codes, _ = refined(weight, hessian, grid.codes(weight), grid, 20)
    again, found = refined(weight, hessian, codes, grid, 1)
    settled = (again == codes).all(1).numpy()
    assert settled.sum() >= 4
    h, q, w = hessian.double().numpy(), codes.double().numpy() - 8, weight.double().numpy()
    expected = np.einsum("nk,kl,nl->n", q, h, w) / np.einsum("nk,kl,nl->n", q, h, q)
    got = found.scales.units[:, 0].double().numpy()
    np.testing.assert_allclose(got[settled], expected[settled], rtol=2**-10)


def test_rows_do_not_depend_on_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = problem(3)
    form = BlockMatrix("q4_k", COLUMNS)
    factor = hessian_of(inputs).factor(DAMPING, whole=True)
    whole = form.stored(*solve(weight, factor, form, sweeps=1))
    monkeypatch.setattr("pocketport.compress.ggml.refine.RUN_ELEMENTS", 5 * 2048)
    monkeypatch.setattr("pocketport.compress.ggml.quantize.CHUNK_ELEMENTS", 5 * COLUMNS)
    parts = form.stored(*solve(weight, factor, form, sweeps=1))
    assert isinstance(parts, PackedWeight)
    np.testing.assert_array_equal(whole.data, parts.data)


def test_what_has_no_place_is_refused() -> None:
    with pytest.raises(UsageError, match="blocks of 256"):
        BlockMatrix("q4_k", 288)
    with pytest.raises(InputError, match="too large for scales in float16"):
        BlockMatrix("q4_0", 32).searched(torch.full((1, 32), 1e8))
