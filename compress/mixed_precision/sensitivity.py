"""What each weight's rounding costs in each scheme, from one pass over the data: forwards, and once backwards.

With x the rows that meet a weight W [N, K], g the gradients of the loss by its output, and ΔW what rounding changes
(rows whose g is 0, of padding for instance, are left out):

``output``
    tr(ΔW H ΔWᵀ) / tr(W H Wᵀ), H = Σ xxᵀ: noise over signal at the layer's output (1/SQNR).
``trace``
    ‖ΔW‖² times the mean diagonal of the loss's Hessian by W (HAWQ-V2, Dong et al. 2020, arXiv 1911.03852), for which
    Fisher's information stands: Σ |g|²|x|² / (N·K).
``loss``
    ½ Σ (gᵀ ΔW x)², the second-order change of the loss. Errors of different rows are taken to be independent, and which
    rows of W matter (Σ g²) not to depend on which tokens do (|g|²): ½ Σₙ sₙ·Δwₙ H' Δwₙᵀ with H' = Σ |g|² xxᵀ and
    s = Σ g² / Σ |g|². Tokens that nothing depends on, however large they are, count for nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from pocketport.compress.mixed_precision.stream import Part
from pocketport.compress.structure import WeightOperand, weight_operand
from pocketport.compress.torch_device import stored_as_torch

MODELS = ("loss", "trace", "output")
"""Error models, the best founded first."""

Rounder = Callable[[str, str, Tensor, Tensor], Tensor]
"""(weight, scheme, W [N, K], mean square of each input [K]) → what the weight is after rounding, [N, K]."""

Errors = dict[str, float]
"""Error model → error of one weight in one scheme."""


@dataclass
class _Moments:
    """What is summed up for one weight.

    Attributes:
        hessian: Σ xxᵀ, [K, K].
        heeded: Σ |g|² xxᵀ, [K, K].
        rows: Σ g² of each output, [N].
        count: rows of x.
    """

    hessian: Tensor
    heeded: Tensor
    rows: Tensor
    count: int = 0


class Sensitivities:
    """Takes what a `Stream` visits on its way back, and rounds each weight when its layer is done.

    Args:
        schemes: weight → the schemes that it is tried in.
        rounder: see `Rounder`.
        advance: called with the number of weights done.
    """

    def __init__(
        self, schemes: Mapping[str, Sequence[str]], rounder: Rounder, advance: Callable[[int], None] | None = None
    ) -> None:
        self.errors: dict[str, dict[str, Errors]] = {}
        """Weight → scheme → errors."""
        self._schemes, self._rounder, self._advance = schemes, rounder, advance
        self._moments: dict[str, _Moments] = {}

    def wants(self, node: ir.Node) -> bool:
        """Whether a node computes with one of the weights."""
        operand = weight_operand(node)
        return operand is not None and operand.kind == "linear" and (operand.value.name or "") in self._schemes

    def visit(self, node: ir.Node, x: Tensor, gradient: Tensor) -> None:
        """Sum up one sample of a node."""
        operand = weight_operand(node)
        assert operand is not None
        rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        squares = gradients.square()
        energy = squares.sum(1, keepdim=True)
        seen = energy[:, 0] > 0  # what nothing depends on is padding
        rows, energy = rows[seen], energy[seen]
        name = operand.value.name or ""
        if name not in self._moments:
            self._moments[name] = _Moments(_square(rows), _square(rows), gradients.new_zeros(gradients.shape[1]))
        moments = self._moments[name]
        moments.hessian.addmm_(rows.T, rows)
        scaled = rows * energy.sqrt()
        moments.heeded.addmm_(scaled.T, scaled)
        moments.rows += squares.sum(0)
        moments.count += len(rows)

    @torch.no_grad()
    def finish(self, part: Part) -> None:
        """Round the weights of a part and forget what was summed up for them."""
        for node in part.segment.nodes:
            operand = weight_operand(node)
            name = None if operand is None else operand.value.name or ""
            if operand is None or name not in self._moments:
                continue
            moments, weight = self._moments.pop(name), matrix_of(operand)
            weight = weight.to(moments.hessian.device)
            importance = moments.hessian.diagonal() / max(moments.count, 1)
            own = self.errors.setdefault(name, {})
            for scheme in self._schemes[name]:
                own[scheme] = _errors(weight, self._rounder(name, scheme, weight, importance) - weight, moments)
            if self._advance:
                self._advance(len(self.errors))


def matrix_of(operand: WeightOperand) -> Tensor:
    """A linear layer's weight as float32 [N, K], the output channels first."""
    tensor = ir.convenience.get_const_tensor(operand.value)
    assert tensor is not None
    stored = stored_as_torch(tensor).float()
    return stored if operand.channel_axis == 0 else stored.T.contiguous()


def _square(rows: Tensor) -> Tensor:
    return rows.new_zeros(rows.shape[1], rows.shape[1])


def _errors(weight: Tensor, change: Tensor, moments: _Moments) -> Errors:
    noise = torch.linalg.vecdot(change @ moments.hessian, change).sum()
    signal = torch.linalg.vecdot(weight @ moments.hessian, weight).sum()
    shares = moments.rows / moments.rows.sum().clamp_min(torch.finfo(torch.float32).tiny)
    loss = torch.linalg.vecdot(change @ moments.heeded, change) @ shares / 2
    trace = moments.heeded.diagonal().sum() / weight.numel() * change.square().sum()
    return {
        "output": float(noise / signal) if signal > 0 else 0.0,
        "trace": float(trace),
        "loss": float(loss),
    }
