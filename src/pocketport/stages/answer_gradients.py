"""Gradients of the answers about images, through all components, and whoever looks at them on their way back."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.registry import host_of
from pocketport.compress.mixed_precision.chain import Chain
from pocketport.compress.mixed_precision.linked_calls import PREFILL, linked_calls
from pocketport.compress.mixed_precision.next_token import Head
from pocketport.compress.mixed_precision.route import Part
from pocketport.compress.mixed_precision.stream import GRADIENT, Stream
from pocketport.compress.torch_device import best_device
from pocketport.errors import UsageError
from pocketport.request import Request
from pocketport.stages.image_sequences import Answers, images_of
from pocketport.stages.weights import memory_limit

ACTIVATION_SHARE = 0.15  # of the memory limit, for each component


class Visitor(Protocol):
    """Looks at the nodes of one component."""

    def wants(self, node: ir.Node) -> bool:
        """Whether it is to be shown the node."""
        ...

    def visit(self, sample: int, node: ir.Node, x: Tensor, gradient: Tensor) -> None:
        """A sample's rows, or some of them: what the node is fed and the gradient by what it gives."""
        ...

    def finish_nodes(self, nodes: Iterable[ir.Node]) -> None:
        """All samples of these nodes were visited."""
        ...


V = TypeVar("V", bound=Visitor)


@dataclass(frozen=True)
class AnswerGradients:
    """From the answers' predictions backwards.

    Attributes:
        bundle: float graphs.
        samples: the answers.
        request: its seed draws the gradients' signs, see `Head.gradient`; of its memory limit each component's activations
            take `ACTIVATION_SHARE`.
    """

    bundle: ModelBundle
    samples: Answers
    request: Request

    def show(self, scratch: Path, visitor: Callable[[str, int, Activations], V]) -> dict[str, V]:
        """One pass over the data.

        Args:
            scratch: a file for what memory is short for; others beside it begin with its name.
            visitor: makes one for a component, given the number of samples and what holds its activations.

        Returns:
            The visitors by component.
        """
        device = best_device()
        head = Head(self.bundle[PREFILL].graph, device)
        budget = int(ACTIVATION_SHARE * memory_limit(self.request))
        opened: dict[str, Activations] = {}
        with ExitStack() as stack:

            def activations(name: str) -> Activations:
                path = scratch.with_name(f"{scratch.name}-{name}")
                opened[name] = stack.enter_context(Activations(path, budget))
                return opened[name]

            prompts = partial(self.samples.prompts, self.bundle, host_of(self.bundle))
            chain = Chain(self.bundle, linked_calls(self.bundle, prompts), head.hidden, activations, device)
            found = {name: visitor(name, chain.count, opened[name]) for name in chain.streams}
            chain.forward()
            put_gradients(chain.streams[PREFILL], head, self.request.seed, found[PREFILL])
            chain.backward(
                lambda name, node: found[name].wants(node),
                lambda name: found[name].visit,
                lambda name: partial(_finish, found[name]),
            )
        return found


def put_gradients(stream: Stream, head: Head, seed: int, visitor: Visitor | None = None) -> None:
    """Gradients of the predictions by the hidden states that a stream of ``prefill`` holds, for its way back.

    Args:
        stream: after its way forwards.
        head: of it.
        seed: of the gradients' signs, see `Head.gradient`.
        visitor: may want the vocabulary's projection, which is behind the hidden states and finished at once.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = visitor is not None and visitor.wants(head.projection)
    for sample in range(stream.count):
        hidden = stream.activations.get(head.hidden, sample, stream.device)
        visit = partial(visitor.visit, sample, head.projection) if visitor is not None and wanted else None
        gradient = head.gradient(hidden, generator, stream.counting[sample], visit)
        stream.activations.put(GRADIENT + head.hidden, sample, gradient)
    if visitor is not None and wanted:
        visitor.finish_nodes([head.projection])


class _Squares:
    """Sums up the squares of gradients by what some nodes give."""

    def __init__(self, nodes: Iterable[str]) -> None:
        self._nodes = frozenset(nodes)
        self.found: dict[str, NDArray[np.float64]] = {}
        """Node → Σ g² of each output channel."""

    def wants(self, node: ir.Node) -> bool:
        """See `Visitor`."""
        return node.name in self._nodes

    def visit(self, sample: int, node: ir.Node, x: Tensor, gradient: Tensor) -> None:
        """See `Visitor`."""
        squares = gradient.reshape(-1, gradient.shape[-1]).double().square().sum(0).cpu().numpy()
        name = node.name or ""
        self.found[name] = self.found.get(name, 0.0) + squares

    def finish_nodes(self, nodes: Iterable[ir.Node]) -> None:
        """Nothing is kept that could go."""


def squared_gradients(
    gradients: AnswerGradients, scratch: Path, nodes: Mapping[str, Iterable[str]]
) -> dict[str, NDArray[np.float64]]:
    """Σ g² of each output channel of linear layers, by ``component/node``, of those components that answers go through.

    Args:
        gradients: where they come from.
        scratch: see `AnswerGradients.show`.
        nodes: component → names of nodes.
    """
    found = gradients.show(scratch, lambda component, *_: _Squares(nodes.get(component, ())))
    return {f"{component}/{node}": sums for component, own in found.items() for node, sums in own.found.items()}


def answers_of(bundle: ModelBundle, request: Request) -> Answers:
    """The request's images, as many as it calibrates on, with their answers.

    Raises:
        UsageError: there are none, or one alone.
    """
    answers = images_of(bundle, request)
    if answers is None or answers.count < 2:
        raise UsageError(
            "there are no images whose answers could be looked at", where="--data",
            fix="give a folder of images, or do without answers (search: --objective outputs; split_hidden: by activations)",
        )  # fmt: skip
    return answers


def _finish(visitor: Visitor, part: Part) -> None:
    visitor.finish_nodes(part.segment.nodes)
