"""The loss of a language model that predicts its next token, from the hidden states of all positions at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pocketport.compress.torch_executor import WeightCache, run_nodes
from pocketport.errors import InputError

LOGITS = "logits"
ROWS = 256  # of logits at a time: a vocabulary is wide


class Head:
    """What follows the last layer of ``prefill``, which the graph itself computes for the last position only.

    Args:
        graph: the component ``prefill``.
        device: where it computes.

    Raises:
        InputError: the graph does not cut off its last row between its layers and ``logits``.
    """

    def __init__(self, graph: ir.Model, device: torch.device) -> None:
        output = next((v for v in graph.graph.outputs if v.name == LOGITS), None)
        self._nodes: list[ir.Node] = []
        node = None if output is None else output.producer()
        while node is not None and node.op_type != "Slice":
            self._nodes.insert(0, node)
            node = None if node.inputs[0] is None else node.inputs[0].producer()
        if node is None or node.inputs[0] is None:
            raise InputError(
                "its logits don't come from the last row of a sequence", where=f"component {graph.graph.name}",
                fix="search with the error of the layers' outputs alone",
            )  # fmt: skip
        self.hidden = node.inputs[0].name or ""
        """The value that holds all positions, [S, H]."""
        self._row = node.outputs[0].name or ""
        self._weights = WeightCache(device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Of some positions [n, H], [n, V]."""
        values = {self._row: hidden}
        run_nodes(self._nodes, values, self._weights, {})
        return values[LOGITS]

    def gradient(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        """Of −log p(token) by the hidden states [S, H], the tokens drawn from the model's own predictions.

        The mean of such gradients' squares is Fisher's information, the Hessian of the divergence from the model as it
        is (Kunstner et al. 2019, arXiv 1905.12558); with a text's own tokens it is not.
        """
        gradient = torch.empty_like(hidden)
        for start in range(0, len(hidden), ROWS):
            rows = hidden[start : start + ROWS].detach().requires_grad_()
            with torch.enable_grad():
                logits = self.logits(rows)
                chances = logits.detach().softmax(-1).cpu()
                tokens = torch.multinomial(chances, 1, generator=generator).to(logits.device)
                loss = functional.cross_entropy(logits, tokens[:, 0], reduction="sum")
            gradient[start : start + ROWS] = torch.autograd.grad(loss, rows)[0]
        return gradient


@dataclass(frozen=True)
class Quality:
    """How well a language model predicts a text.

    Attributes:
        loss: mean −log p of the tokens, nats.
        divergence: mean Kullback-Leibler divergence from the float model's predictions, nats.
        tokens: how many.
    """

    loss: float
    divergence: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return float(np.exp(self.loss))


@torch.no_grad()
def quality(
    head: Head, float_hidden: Sequence[Tensor], hidden: Iterator[Tensor], tokens: NDArray[np.integer[Any]]
) -> Quality:
    """Score hidden states against the next tokens and against the float model's.

    Args:
        head: of the float model.
        float_hidden: of each sequence, [S, H].
        hidden: the same of the model that is scored.
        tokens: [sequences, S].
    """
    loss = divergence = 0.0
    for row, expected, found in zip(tokens, float_hidden, hidden, strict=True):
        following = torch.from_numpy(row[1:].astype(np.int64)).to(found.device)
        for start in range(0, len(following), ROWS):
            part = slice(start, min(start + ROWS, len(following)))
            wanted = head.logits(expected[part].to(found.device)).log_softmax(-1)
            given = head.logits(found[part]).log_softmax(-1)
            loss += float(functional.nll_loss(given, following[part], reduction="sum"))
            divergence += float(functional.kl_div(given, wanted, reduction="sum", log_target=True))
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    return Quality(loss / count, divergence / count, count)
