"""Making up for what earlier weights did to a layer's input: against numpy's least squares over both inputs."""

import numpy as np
import pytest
import torch

from pocketport.compress.blockwise.drift import Drift, target
from pocketport.compress.blockwise.gptq import Hessian

ROWS, COLUMNS, SAMPLES, DAMPING = 5, 48, 400, 0.02


def chains() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight, its inputs in the quantized and the float chain, and the residuals of both."""
    generator = torch.Generator().manual_seed(2)
    exact = torch.randn(SAMPLES, COLUMNS, generator=generator) * (torch.rand(COLUMNS, generator=generator) + 0.1)
    drifted = exact + 0.2 * exact.roll(1, 1) + 0.05 * torch.randn(SAMPLES, COLUMNS, generator=generator)
    residual = torch.randn(SAMPLES, ROWS, generator=generator)
    mixing = 0.1 * torch.randn(COLUMNS, ROWS, generator=generator)
    return torch.randn(ROWS, COLUMNS, generator=generator), drifted, exact, residual + exact @ mixing, residual


@pytest.mark.parametrize("residual", ["", "stream"])
def test_the_target_is_the_least_squares_solution(residual: str) -> None:
    weight, drifted, exact, changed, kept = chains()
    hessian, drift = Hessian(COLUMNS, torch.device("cpu")), Drift(COLUMNS, torch.device("cpu"))
    for part in range(0, SAMPLES, 100):
        rows = slice(part, part + 100)
        hessian.add(drifted[rows])
        drift.add(drifted[rows], exact[rows])
        drift.add_residual("stream", drifted[rows], changed[rows], kept[rows])
    ridge = DAMPING * float(hessian.diagonal().mean())
    found = target(weight, drift.missing(weight, residual), hessian.factor(DAMPING), 1.0)

    wanted = (exact @ weight.T + (kept - changed if residual else 0)).double().numpy()
    # Damping is a ridge towards the weight as it was.
    left = np.concatenate([drifted.double().numpy(), ridge**0.5 * np.eye(COLUMNS)])
    right = np.concatenate([wanted, ridge**0.5 * weight.double().numpy().T])
    expected = np.linalg.lstsq(left, right, rcond=None)[0].T
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)


def test_half_of_it_lies_half_way_and_none_of_it_at_the_weight() -> None:
    weight, drifted, exact, _, _ = chains()
    hessian, drift = Hessian(COLUMNS, torch.device("cpu")), Drift(COLUMNS, torch.device("cpu"))
    hessian.add(drifted)
    drift.add(drifted, exact)
    factor = hessian.factor(DAMPING)
    none, half, whole = (target(weight, drift.missing(weight, ""), factor, share) for share in (0.0, 0.5, 1.0))
    assert torch.equal(none, weight)
    torch.testing.assert_close(half, (none + whole) / 2)
