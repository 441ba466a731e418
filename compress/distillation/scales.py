"""Scales of quantized weights that follow the float model's predictions; the integers stay.

Rounding makes each layer's own error small; which of these errors matter, only the model's end knows. Here the scales of
all groups follow the gradient of the Kullback-Leibler divergence from the float model's next-token distributions (Hinton et
al. 2015, arXiv 1503.02531) over the calibration sequences, as the last phase of EfficientQAT trains step sizes end to end
(Chen et al. 2024, arXiv 2407.11062, section 3.3): by Adam (Kingma & Ba 2015, arXiv 1412.6980), a sequence a step.

Memory holds one layer's weights, the inputs of all layers for one sequence, and three numbers a scale.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from pocketport.compress.blockwise.activations import SPILL_NAME, Activations
from pocketport.compress.distillation.moving import moving_weight
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.mixed_precision.next_token import Head
from pocketport.compress.mixed_precision.stream import GRADIENT, Stream
from pocketport.compress.quantized_weights import Quantized, QuantizedWeights, write_index, write_part
from pocketport.compress.structure import weight_operand

LEARNING_RATE = 1.5e-3  # of a scale's relative change, falling to 0 along a cosine
MOMENTS = (0.9, 0.95)


def distill_scales(
    graph: ir.Model,
    weights: QuantizedWeights,
    forms: Mapping[str, bool],
    feeds: Iterator[Arrays],
    directory: Path,
    *,
    passes: int,
    budget: int,
    device: torch.device,
    advance: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Write weights with the same integers and distilled scales.

    Args:
        graph: the component ``prefill``, float.
        weights: of it.
        forms: the weights whose scales move, and whether a scale is a float16 number (in ggml's block formats it always is).
        feeds: calibration samples, with ``row_weights`` [S] where some rows (padding) do not count.
        directory: where the new weights go.
        passes: over the samples.
        budget: bytes of activations kept in memory.
        device: where it computes.
        advance: called with the steps done and their number.

    Returns:
        The divergence of each step before its change, nats a token.

    Raises:
        UsageError: there are no samples.
        InputError: an op has no gradient here, or the logits do not come from the last row of a sequence.
    """
    scales = MovingScales(weights, forms, device)
    head = Head(graph, device)
    found: list[float] = []
    with Activations(directory / SPILL_NAME, budget) as activations:
        stream = Stream(lambda _: graph, feeds, [head.hidden], activations, device)
        steps = passes * stream.count
        optimizer = torch.optim.Adam(scales.changes.values(), lr=LEARNING_RATE, betas=MOMENTS)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            found.append(divergence_step(stream, head, scales, step % stream.count))
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if advance:
                advance(step + 1, steps)
    parts: dict[str, list[str]] = {}
    for name in weights:
        parts.setdefault(weights.form(name)["part"], []).append(name)
    entries: dict[str, dict[str, Any]] = {}
    for part, names in sorted(parts.items()):
        entries |= write_part(directory / part, {name: scales.quantized(name) for name in names})
    write_index(directory, entries)
    return found


@torch.no_grad()
def divergence_step(stream: Stream, head: Head, moving: "MovingScales", sample: int) -> float:
    """The divergence of one sample, nats a token; its gradient is added to ``moving.changes``."""
    activations, device = stream.activations, stream.device
    own = activations.names(sample)
    stream.forward(samples=[sample])
    expected = activations.get(head.hidden, sample, device)
    stream.forward(moving, samples=[sample])
    hidden = activations.get(head.hidden, sample, device)
    divergence, gradient = head.divergence(hidden, expected, stream.counting[sample])
    activations.put(GRADIENT + head.hidden, sample, gradient)
    stream.backward(moving.wants, moving.visit, lambda _: None, replaced=moving, samples=[sample])
    for name in activations.names(sample) - own:
        activations.drop(name, sample)
    return divergence


class MovingScales(Mapping[str, Tensor]):
    """Quantized weights as floats under scales that move, each made when it is asked for.

    Args:
        weights: where they start.
        forms: see `distill_scales`.
        device: where they are made.
    """

    def __init__(self, weights: QuantizedWeights, forms: Mapping[str, bool], device: torch.device) -> None:
        self._weights = weights
        self._moving = {name: moving_weight(weights, name, half=half) for name, half in forms.items()}
        self.changes = {
            name: torch.zeros(own.shape, device=device, requires_grad=True) for name, own in self._moving.items()
        }
        """Weight → relative change of each of its scales; see `Moving`."""

    def __getitem__(self, name: str) -> Tensor:
        return self._moving[name].floats(self.changes[name].detach())

    def __iter__(self) -> Iterator[str]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    def wants(self, node: ir.Node) -> bool:
        """Whether a node computes with one of the weights."""
        operand = weight_operand(node)
        return operand is not None and (operand.value.name or "") in self.changes

    def visit(self, sample: int, node: ir.Node, x: Tensor, gradient: Tensor) -> None:
        """Add up the gradient of one node."""
        operand = weight_operand(node)
        assert operand is not None
        name = operand.value.name or ""
        change = self.changes[name]
        by_weight = gradient.reshape(-1, gradient.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        slopes = self._moving[name].slopes(by_weight, change.detach())
        change.grad = slopes if change.grad is None else change.grad + slopes

    def quantized(self, name: str) -> Quantized:
        """A weight with its scales as they are to be stored."""
        return self._moving[name].stored(self.changes[name].detach()) if name in self.changes else self._weights[name]
