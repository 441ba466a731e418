"""The damping that is chosen: against the errors on rows held out, computed from the data for every candidate."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from pocketport.compress.blockwise import damping
from pocketport.compress.blockwise.damping import CANDIDATES, Sharer, searched_damping
from pocketport.compress.blockwise.drift import target
from pocketport.compress.blockwise.gptq import solve
from pocketport.compress.blockwise.grids import Form
from pocketport.compress.blockwise.sums import Sums

COLUMNS, ROWS = 96, 24
CPU = torch.device("cpu")
FORM = Form(3, 32, symmetric=False, half=True)


def drawn(samples: int, rows: int, seed: int) -> list[list[torch.Tensor]]:
    """Of each sample inputs of unequal size, correlated as all are and in its own way, and their residual, rounded and then float."""
    generator = torch.Generator().manual_seed(9)
    sizes, shared = torch.rand(COLUMNS, generator=generator) + 0.05, torch.randn(24, COLUMNS, generator=generator)
    generator.manual_seed(seed)
    made = []
    for _ in range(samples):
        common = torch.randn(rows, 24, generator=generator) @ shared
        own = torch.randn(rows, 6, generator=generator) @ torch.randn(6, COLUMNS, generator=generator)
        exact = (common + own + torch.randn(rows, COLUMNS, generator=generator)) * sizes
        residual = torch.randn(rows, ROWS, generator=generator)
        met = exact + 0.1 * exact.roll(1, 1) + 0.05 * torch.randn(rows, COLUMNS, generator=generator)
        made.append([met, residual + 0.1 * met[:, :ROWS], exact, residual])
    return made


def sums_of(samples: list[list[torch.Tensor]], every: int, *, exact: bool) -> Sums:
    sums = Sums(["x", "r"] if exact else ["x"], COLUMNS, exact, CPU, split=True)
    assert sums.held is not None
    for index, values in enumerate(samples):
        (sums.held if index % every == every - 1 else sums).add(values if exact else values[:1])
    sums.finish()
    return sums


def weights(*seeds: int) -> list[torch.Tensor]:
    return [torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(s)) / COLUMNS**0.5 for s in seeds]


def errors_on(rows: Sequence[list[torch.Tensor]], sums: Sums, weight: torch.Tensor, share: float) -> np.ndarray:
    """Of each candidate the squared error of the outputs over that of the outputs, from the rows themselves, in float64."""
    met, residual, exact, wanted = (torch.cat(part).double().numpy() for part in zip(*rows, strict=True))
    w, found = weight.double().numpy(), []
    for share_of_mean in CANDIDATES:
        factor = sums.hessian.copy().factor(share_of_mean)
        goal = weight
        if share:
            assert sums.drift is not None
            goal = target(weight, sums.drift.missing(weight, "r"), factor, share)
        integers, grid = solve(goal, factor, FORM)
        made = met @ grid.dequantized(integers).double().numpy().T
        lacking = (exact @ w.T + wanted - residual if share else met @ w.T) - made
        found.append(np.square(lacking).sum() / np.square(met @ w.T).sum())
    return np.array(found)


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_one_that_errs_least_on_what_was_held_out(seed: int, share: float) -> None:
    samples = drawn(8, 30, seed)
    sums, both = sums_of(samples, 4, exact=share > 0), weights(seed, seed + 50)
    total = sum(errors_on(samples[3::4], sums, weight, share) for weight in both)
    chosen = searched_damping(sums, [Sharer(weight, FORM, "r", share) for weight in both])
    assert chosen == CANDIDATES[int(np.argmin(total))]


def test_few_rows_want_more_damping_and_err_less_by_it_on_rows_to_come() -> None:
    """Correlations of four samples do not hold for others; of two hundred a hundredth of the mean is enough."""
    to_come, (weight,) = drawn(40, 50, 1000), weights(3)
    chosen = []
    for count in (4, 200):
        samples = drawn(count, 20, 5)
        sums = sums_of(samples, 4, exact=False)
        chosen.append(searched_damping(sums, [Sharer(weight, FORM, "", 0.0)]))
        sums.merge_held()
        errors = dict(zip(CANDIDATES, errors_on(to_come, sums, weight, 0.0), strict=True))
        assert errors[chosen[-1]] < 1.05 * min(errors.values())
        if count == 4:
            assert errors[chosen[-1]] < 0.85 * errors[0.01]
    assert chosen[0] >= 0.1 and chosen[1] == 0.01


def test_what_was_held_out_counts_in_the_end_as_if_it_had_not_been() -> None:
    samples, (weight,) = drawn(8, 300, 1), weights(1)
    merged, whole = sums_of(samples, 3, exact=True), sums_of(samples, 99, exact=True)
    merged.merge_held()
    whole.merge_held()
    assert merged.held is None and merged.drift is not None and whole.drift is not None
    rows = torch.cat([values[0] for values in samples]).double()
    np.testing.assert_allclose(
        merged.hessian.quadratic(weight), float((rows @ weight.T.double()).square().sum()), rtol=1e-5
    )
    torch.testing.assert_close(merged.hessian.diagonal(), whole.hessian.diagonal())
    torch.testing.assert_close(
        merged.drift.missing(weight, "r"), whole.drift.missing(weight, "r"), rtol=1e-4, atol=1e-2
    )


def test_part_of_a_large_weights_rows_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = drawn(8, 30, 2)
    weight = torch.cat(weights(*range(20)))
    chosen = []
    for rows in (64, len(weight)):
        monkeypatch.setattr(damping, "ROWS", rows)
        chosen.append(searched_damping(sums_of(samples, 4, exact=False), [Sharer(weight, FORM, "", 0.0)]))
    assert chosen[0] == chosen[1]


def test_nothing_held_out_of_an_input_that_is_zero_is_no_error() -> None:
    samples = [[torch.zeros(5, COLUMNS)], [torch.zeros(5, COLUMNS)]]
    assert searched_damping(sums_of(samples, 2, exact=False), [Sharer(weights(1)[0], FORM, "", 0.0)]) in CANDIDATES
