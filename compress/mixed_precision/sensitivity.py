"""What each weight's rounding costs in each scheme, from one pass over the data: forwards, and once backwards.

With x the rows that meet a weight W [N, K], g the gradients of the loss by its output, and ΔW what rounding changes
(rows whose g is 0, of padding for instance, are left out):

``output``
    tr(ΔW H ΔWᵀ) / tr(W H Wᵀ), H = Σ xxᵀ: noise over signal at the layer's output (1/SQNR).
``trace``
    ‖ΔW‖² times the mean diagonal of the loss's Hessian by W (HAWQ-V2, Dong et al. 2020, arXiv 1911.03852), for which
    Fisher's information stands: Σ |g|²|x|² / (N·K).
``loss``
    ½ Σ ⟨G, ΔW⟩², the second-order change of the loss, with G = Σ gxᵀ over the rows of one sample: what rounding does to
    one row it does to the others alike, and attention adds it up. That is exact in the mean over random gradients, but
    few samples know it roughly. So only its size is taken from them, once a weight, and how schemes compare from
    ½ Σₙ sₙ·Δwₙ H' Δwₙᵀ, which takes rows to be independent: H' = Σ |g|² xxᵀ and s = Σ g² / Σ |g|². Tokens that nothing
    depends on, however large they are, count for nothing.

Of layers whose outputs are added up, x is but for W H Wᵀ what the later ones do not make up for (`summed_inputs`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch import Tensor

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.mixed_precision.route import Part
from pocketport.compress.mixed_precision.summed_inputs import Sum, SummedInputs, Visit
from pocketport.compress.structure import WeightOperand, weight_operand
from pocketport.compress.torch_device import stored_as_torch

LOSS = "loss"
MODELS = (LOSS, "trace", "output")
"""Error models, the best founded first."""

Errors = dict[str, float]
"""Error model → error of one weight in one scheme."""

TOGETHER = 1 << 22  # elements of samples' gradients by one weight, multiplied with its changes at once
INPUTS, GRADIENTS, PRODUCTS = "inputs of ", "gradients behind ", "gradients by "


@dataclass(frozen=True)
class Inputs:
    """What a weight meets: Σ xxᵀ [K, K] over so many rows."""

    hessian: Tensor
    rows: int

    @property
    def importance(self) -> Tensor:
        """The mean square of each input, [K]."""
        return self.hessian.diagonal() / max(self.rows, 1)


Rounder = Callable[[str, Sequence[str], Tensor, Inputs], Iterator[Tensor]]
"""(weight, schemes, W [N, K], its inputs) → what the weight is after rounding in each, [N, K]."""


@dataclass
class _Moments:
    """What is summed up for one weight.

    Attributes:
        inputs: Σ xxᵀ of what the layer is fed, [K, K].
        hessian: Σ xxᵀ of what errors meet, the same tensor where that is the same.
        heeded: Σ |g|² xxᵀ, [K, K].
        outputs: Σ g² of each output, [N].
        rows: of x.
        samples: of each visit, whose rows are kept.
    """

    inputs: Tensor
    hessian: Tensor
    heeded: Tensor
    outputs: Tensor
    rows: int = 0
    samples: list[int] = field(default_factory=list)


class Sensitivities:
    """Takes what a `Stream` visits on its way back, and rounds each weight when its layer is done.

    Args:
        schemes: weight → the schemes that it is tried in.
        rounder: see `Rounder`.
        count: samples.
        activations: takes one layer's rows and gradients, until its weights are rounded.
        advance: called with the number of weights done.
        sums: layers that are rounded one after the other.
    """

    def __init__(
        self, schemes: Mapping[str, Sequence[str]], rounder: Rounder, count: int, activations: Activations,
        advance: Callable[[int], None] | None = None, sums: Sequence[Sum] = (),
    ) -> None:  # fmt: skip
        self.errors: dict[str, dict[str, Errors]] = {}
        """Weight → scheme → errors."""
        self.effects: dict[str, Tensor] = {}
        """Weight → ⟨G, ΔW⟩ of each of its schemes in each sample, signed, [C, samples]."""
        self._schemes, self._rounder, self._advance = schemes, rounder, advance
        self._count, self._activations = count, activations
        self._moments: dict[str, _Moments] = {}
        self._sums = SummedInputs(sums)

    def wants(self, node: ir.Node) -> bool:
        """Whether a node computes with one of the weights."""
        operand = weight_operand(node)
        return operand is not None and operand.kind == "linear" and (operand.value.name or "") in self._schemes

    def visit(self, sample: int, node: ir.Node, x: Tensor, gradient: Tensor) -> None:
        """Sum up one sample of a node, or some rows of one."""
        operand = weight_operand(node)
        assert operand is not None
        for visit in self._sums.visited(operand.value.name or "", x, gradient):
            self._sum_up(sample, visit)

    def _sum_up(self, sample: int, visit: Visit) -> None:
        name, gradients = visit.weight, visit.gradient.reshape(-1, visit.gradient.shape[-1])
        energy = gradients.square().sum(1, keepdim=True)
        seen = energy[:, 0] > 0  # what nothing depends on is padding
        gradients, energy = gradients[seen], energy[seen]
        inputs, rows = (x.reshape(-1, x.shape[-1])[seen] for x in (visit.inputs, visit.unexplained))
        alike = visit.unexplained is visit.inputs
        if name not in self._moments:
            hessian = _square(rows)
            summed = hessian if alike else _square(rows)
            self._moments[name] = _Moments(summed, hessian, _square(rows), gradients.new_zeros(gradients.shape[1]))
        moments = self._moments[name]
        moments.hessian.addmm_(rows.T, rows)
        if not alike:
            moments.inputs.addmm_(inputs.T, inputs)
        scaled = rows * energy.sqrt()
        moments.heeded.addmm_(scaled.T, scaled)
        moments.outputs += gradients.square().sum(0)
        moments.rows += len(rows)
        if rows.numel() + gradients.numel() < rows.shape[1] * gradients.shape[1]:
            self._activations.put(INPUTS + name, len(moments.samples), rows)
            self._activations.put(GRADIENTS + name, len(moments.samples), gradients)
        else:
            self._activations.put(PRODUCTS + name, len(moments.samples), gradients.T @ rows)
        moments.samples.append(sample)

    def finish(self, part: Part) -> None:
        """Round the weights of a part and forget what was kept for them."""
        self.finish_nodes(part.segment.nodes)

    @torch.no_grad()
    def finish_nodes(self, nodes: Iterable[ir.Node]) -> None:
        """As `finish`, for the weights of some nodes."""
        for node in nodes:
            operand = weight_operand(node)
            name = None if operand is None else operand.value.name or ""
            if operand is None or name is None or name not in self._moments:
                continue
            moments, weight = self._moments.pop(name), matrix_of(operand)
            weight = weight.to(moments.hessian.device)
            schemes = self._schemes[name]
            rounded = self._rounder(name, schemes, weight, Inputs(moments.hessian, moments.rows))
            changes = torch.stack([r - weight for r in rounded])
            errors = [_errors(weight, change, moments) for change in changes]
            self.effects[name] = self._effects(name, changes, moments.samples)
            self._rescale(errors, self.effects[name].square().sum(1) / 2)
            self.errors[name] = dict(zip(schemes, errors, strict=True))
            if self._advance:
                self._advance(len(self.errors))

    def _effects(self, name: str, changes: Tensor, samples: Sequence[int]) -> Tensor:
        """⟨G, ΔW⟩ of each change [C, N, K] in each sample, [C, count]; the visits' rows are dropped."""
        found = changes.new_zeros(len(changes), self._count)
        owners = torch.tensor(samples, device=changes.device)
        step = max(1, TOGETHER // changes[0].numel())
        for start in range(0, len(samples), step):
            own = owners[start : start + step]
            visits = range(start, start + len(own))
            gradients = torch.stack([self._by_weight(name, visit, changes.device) for visit in visits])
            found.index_add_(1, own, changes.flatten(1) @ gradients.flatten(1).T)
        return found

    def _by_weight(self, name: str, visit: int, device: torch.device) -> Tensor:
        """The gradient by the weight of one visit, [N, K]; whichever is smaller of it and its factors was kept."""
        if PRODUCTS + name in self._activations.names(visit):
            product = self._activations.get(PRODUCTS + name, visit, device)
            self._activations.drop(PRODUCTS + name, visit)
            return product
        rows, gradients = (self._activations.get(kind + name, visit, device) for kind in (INPUTS, GRADIENTS))
        for kind in (INPUTS, GRADIENTS):
            self._activations.drop(kind + name, visit)
        return gradients.T @ rows

    @staticmethod
    def _rescale(errors: Sequence[Errors], whole: Tensor) -> None:
        """Give the losses of one weight, of independent rows, the size that whole samples say they have."""
        ratios = [float(w) / e["loss"] for e, w in zip(errors, whole, strict=True) if e["loss"] > 0]
        for e in errors:
            e["loss"] *= sum(ratios) / len(ratios) if ratios else 1.0


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
    signal = torch.linalg.vecdot(weight @ moments.inputs, weight).sum()
    shares = moments.outputs / moments.outputs.sum().clamp_min(torch.finfo(torch.float32).tiny)
    loss = torch.linalg.vecdot(change @ moments.heeded, change) @ shares / 2
    trace = moments.heeded.diagonal().sum() / weight.numel() * change.square().sum()
    return {
        "output": float(noise / signal) if signal > 0 else 0.0,
        "trace": float(trace),
        "loss": float(loss),
    }
