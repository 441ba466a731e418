"""How far a layer's inputs have drifted from the float model's, and weights that make up for it.

The weights before a layer are rounded, so what meets it is not what met it in the float model. Its weights W are not to
be reproduced then but its float outputs: Ŵ minimises ‖x̃ Wᵀ − x Ŵᵀ‖² over rows x of the quantized chain and x̃ of the float
one, whose solution before rounding is W + W (Σ (x̃ − x)ᵀ x) H⁻¹. (Arai & Ichikawa 2025, "Quantization error propagation",
arXiv 2504.09629, equation 12; column by column in GPTAQ, Li et al. 2025, arXiv 2504.02692.) Where the outputs are added to
a residual r, what has drifted in it is made up for as well: the target is x̃ Wᵀ + r̃ − r.
"""

import torch
from torch import Tensor

from pocketport.compress.algorithms.column_rounding import Factor


class Drift:
    """Σ (x̃ − x)ᵀ x, and Σ (r̃ − r)ᵀ x of the residuals that outputs are added to.

    Args:
        columns: K of the rows x.
        device: where the sums lie.
    """

    def __init__(self, columns: int, device: torch.device) -> None:
        self._inputs = torch.zeros(columns, columns, device=device)
        self._residuals: dict[str, Tensor] = {}

    def add(self, rows: Tensor, exact: Tensor) -> None:
        """Take in inputs of both chains, [n, K]."""
        self._inputs.addmm_((exact - rows).T, rows)

    def add_residual(self, name: str, rows: Tensor, residual: Tensor, exact: Tensor) -> None:
        """Take in inputs [n, K] of the quantized chain and a residual [n, N] of both."""
        drifted = (exact - residual).T @ rows
        self._residuals[name] = self._residuals[name].add_(drifted) if name in self._residuals else drifted

    def merge(self, other: "Drift") -> None:
        """Take over another one's sums."""
        self._inputs += other._inputs
        for name, sums in other._residuals.items():
            self._residuals[name] += sums

    def missing(self, weight: Tensor, residual: str, rows: slice = slice(None)) -> Tensor:
        """Σ (x̃ Wᵀ + r̃ − r − x Wᵀ)ᵀ x: what the outputs of a weight [N, K] lack, over the rows x, [n, K].

        Args:
            weight: of the float model.
            residual: the one that its outputs are added to, "" for none.
            rows: of the weight that are wanted.
        """
        lacking = weight[rows] @ self._inputs
        return lacking.add_(self._residuals[residual][rows]) if residual in self._residuals else lacking


def target(weight: Tensor, missing: Tensor, factor: Factor, share: float) -> Tensor:
    """What is to be rounded in the place of a weight [N, K].

    Args:
        weight: of the float model.
        missing: see `Drift.missing`.
        factor: of the damped Hessian of x.
        share: of the drift that is made up for, 0 … 1: all of it fits the calibration data best, not the text to come.
    """
    return weight + share * factor.applied(missing[None])[0]
