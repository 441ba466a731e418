"""The loss of a language model that predicts its next token, from the hidden states of all positions at once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pocketport.compress.executors.torch_executor import Values, WeightCache, run_nodes
from pocketport.compress.mixed_precision.outputs import random_signs
from pocketport.compress.structure import weight_operand
from pocketport.compress.torch_device import row_runs
from pocketport.errors import InputError

LOGITS = "logits"
ROWS = 256  # of logits at a time: a vocabulary is wide


class Expected(NamedTuple):
    """Predictions at some positions, in what it takes to compare others with them: no logits of the whole vocabulary."""

    features: Tensor
    """What is multiplied by the projection's rows, one a token of the vocabulary, [n, H]."""
    mean: Tensor
    """Of those rows, weighed by the predictions, [n, H]."""
    normalizers: Tensor
    """log Σ exp of the logits, [n]."""


class Head:
    """What follows the last layer of ``prefill``, which the graph itself computes for the last position only.

    Args:
        graph: the component ``prefill``.
        device: where it computes.

    Raises:
        InputError: the graph does not cut off its last row between its layers and ``logits``, or they are no product with a
            weight.
    """

    def __init__(self, graph: ir.Model, device: torch.device) -> None:
        output = next((v for v in graph.graph.outputs if v.name == LOGITS), None)
        self._nodes: list[ir.Node] = []
        node = None if output is None else output.producer()
        projection = None if node is None else weight_operand(node)
        while node is not None and node.op_type != "Slice":
            self._nodes.insert(0, node)
            node = None if node.inputs[0] is None else node.inputs[0].producer()
        if node is None or node.inputs[0] is None or projection is None or projection.activation is None:
            raise InputError(
                "its logits don't come from the last row of a sequence", where=f"component {graph.graph.name}",
                fix="search with the error of the layers' outputs alone",
            )  # fmt: skip
        self.hidden = node.inputs[0].name or ""
        """The value that holds all positions, [S, H]."""
        self._row = node.outputs[0].name or ""
        self.projection = self._nodes[-1]
        """The node that multiplies with the vocabulary's rows."""
        self._operand, self._projected = projection, projection.activation.name or ""
        self._weights = WeightCache(device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Of some positions [n, H], [n, V]."""
        return self._run(self._nodes, hidden)[LOGITS]

    def _run(self, nodes: Sequence[ir.Node], hidden: Tensor) -> Values:
        values = {self._row: hidden}
        run_nodes(nodes, values, self._weights, {})
        return values

    def _projected_from(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The features of some positions [n, H], and their logits [n, V].

        In float32 on all hardware: what bfloat16 rounds of a logit is more than many a divergence.
        """
        features = self._run(self._nodes[:-1], hidden)[self._projected]
        bias = self._operand.bias
        return features, functional.linear(features, self._rows, None if bias is None else self._weights.get(bias))

    @property
    def _rows(self) -> Tensor:
        """Of the projection, [V, H]."""
        weight = self._weights.get(self._operand.value)
        return weight if self._operand.channel_axis == 0 else weight.T

    @torch.no_grad()
    def expected(self, hidden: Tensor) -> Expected:
        """What `compared` needs of the predictions from hidden states [n, H]."""
        found = []
        for rows in row_runs(hidden, ROWS):
            features, logits = self._projected_from(rows)
            found.append((features, logits.softmax(-1) @ self._rows, logits.logsumexp(-1)))
        return Expected(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    @torch.no_grad()
    def compared(self, hidden: Tensor, expected: Expected, following: Tensor | None = None) -> tuple[float, float]:
        """The divergences of the predictions at some positions, summed, and −log p of the tokens that follow, summed.

        Logits are linear in the features, so that Σ p·(log p − log q) takes the mean row of the expected predictions p alone:
        mean·(features of p − features of q) + log Σ exp of q's logits − log Σ exp of p's.

        Args:
            hidden: of the model that is scored, [n, H].
            expected: of the float model.
            following: the next tokens, int64 [n]; None: 0 is their sum.
        """
        divergence, loss = 0.0, 0.0
        for start in range(0, len(hidden), ROWS):
            part = slice(start, start + ROWS)
            features, logits = self._projected_from(hidden[part])
            normalizers = logits.logsumexp(-1)
            moved = ((expected.features[part].double() - features) * expected.mean[part]).sum()
            divergence += float(moved + (normalizers.double() - expected.normalizers[part]).sum())
            if following is not None:
                loss += float((normalizers - logits.gather(1, following[part, None])[:, 0]).sum())
        return divergence, loss

    def gradient(
        self, hidden: Tensor, generator: torch.Generator, counting: Tensor | None = None,
        visit: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Gradients by the hidden states [S, H] whose mean squares are Fisher's information.

        That is the Hessian of the divergence from the model as it is, of its own predictions and not of a text's tokens
        (Kunstner et al. 2019, arXiv 1905.12558): diag(p) − ppᵀ by the logits, for which √p·r − p·(√pᵀr) with random signs
        r stands. Drawn tokens would do too, but from confident predictions they give nothing most of the time.

        Args:
            hidden: see above.
            generator: of the signs.
            counting: rows that count, bool [S]; None: all.
            visit: called with what the projection is fed in rows that count, and the gradients of their logits.
        """
        gradient = torch.empty_like(hidden)
        for start in range(0, len(hidden), ROWS):
            rows = hidden[start : start + ROWS].detach().requires_grad_()
            with torch.enable_grad():
                values = self._run(self._nodes, rows)
            logits = values[LOGITS]
            chances = logits.detach().softmax(-1)
            roots = chances.sqrt() * random_signs(chances, generator)
            factor = roots - chances * roots.sum(-1, keepdim=True)
            gradient[start : start + ROWS] = torch.autograd.grad(logits, rows, factor)[0]
            if visit is not None:
                own = slice(None) if counting is None else counting[start : start + ROWS]
                visit(values[self._projected].detach()[own], factor[own])
        return gradient if counting is None else gradient * counting[:, None]

    def divergence(self, hidden: Tensor, expected: Tensor, counting: Tensor | None = None) -> tuple[float, Tensor]:
        """The mean Kullback-Leibler divergence of predictions, in nats, and its gradient by the hidden states.

        Args:
            hidden: of the model that is scored, [S, H].
            expected: of the float model, [S, H].
            counting: rows that count, bool [S]; None: all.
        """
        share = (torch.ones(len(hidden), device=hidden.device) if counting is None else counting.float())[:, None]
        share = share / share.sum().clamp_min(1)
        total, gradient = 0.0, torch.empty_like(hidden)
        for start in range(0, len(hidden), ROWS):
            part = slice(start, start + ROWS)
            rows = hidden[part].detach().requires_grad_()
            with torch.enable_grad():
                logits = self.logits(rows)
            given, wanted = logits.detach().log_softmax(-1), self.logits(expected[part]).log_softmax(-1)
            chances = wanted.exp()
            total += float((chances * (wanted - given) * share[part]).sum())
            gradient[part] = torch.autograd.grad(logits, rows, (given.exp() - chances) * share[part])[0]
        return total, gradient


@dataclass(frozen=True)
class Quality:
    """How well a quantized language model predicts.

    Attributes:
        divergence: mean Kullback-Leibler divergence from the float model's predictions, nats.
        positions: how many predictions.
        loss: mean −log p of the tokens that follow, nats; None where they are not known.
        sums: the divergence summed over each sample's predictions.
        counts: each sample's predictions.
    """

    divergence: float
    positions: int
    loss: float | None = None
    sums: Sequence[float] = ()
    counts: Sequence[int] = ()

    @property
    def figures(self) -> dict[str, float]:
        """The divergence, and the perplexity where it is known."""
        found = {"divergence": self.divergence}
        return found if self.loss is None else found | {"perplexity": float(np.exp(self.loss))}


def scored(counting: Sequence[Tensor | None], tokens: NDArray[np.integer[Any]] | None = None) -> list[Tensor | slice]:
    """The rows of each sample whose predictions are compared.

    Args:
        counting: which rows of each sample count, bool [S]; None: all.
        tokens: [samples, S] where they are known; the last row then has no next token.
    """
    if tokens is not None:
        return [slice(tokens.shape[1] - 1)] * len(tokens)
    return [slice(None) if rows is None else rows for rows in counting]


def quality(
    head: Head, expected: Sequence[Expected], hidden: Iterable[Tensor], tokens: NDArray[np.integer[Any]] | None = None
) -> Quality:
    """Compare the predictions from hidden states with the float model's, and with the next tokens.

    Args:
        head: of the float model.
        expected: its predictions for each sample, in the rows that are `scored`.
        hidden: of the model that is scored, in those rows, [n, H].
        tokens: [samples, S] where they are known.
    """
    total, sums, counts = 0.0, list[float](), list[int]()
    for sample, (wanted, found) in enumerate(zip(expected, hidden, strict=True)):
        following = None if tokens is None else torch.from_numpy(tokens[sample, 1:].astype(np.int64)).to(found.device)
        divergence, loss = head.compared(found, Expected(*(t.to(found.device) for t in wanted)), following)
        total += loss
        sums.append(divergence)
        counts.append(len(found))
    positions = sum(counts)
    return Quality(sum(sums) / positions, positions, None if tokens is None else total / positions, sums, counts)
