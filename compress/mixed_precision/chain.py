"""All components of a model that answers about images: samples through one after the other, and gradients back through all.

Each component is a `Stream` whose samples are its calls; a prompt about an image calls the first ones once a view.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import onnx_ir as ir
import torch
from torch import Tensor

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.mixed_precision.linked_calls import PREFILL, Link, LinkedCall
from pocketport.compress.mixed_precision.route import Part
from pocketport.compress.mixed_precision.stream import GRADIENT, Stream, Visit
from pocketport.compress.structure import is_float
from pocketport.errors import UsageError

CPU = torch.device("cpu")


class Chain:
    """Prompts on their way to the language model's hidden states.

    Args:
        bundle: float graphs.
        prompts: the calls of each, ``prefill`` last; read once.
        hidden: the value of ``prefill`` that is wanted.
        activations: takes what goes from layer to layer, of each component.
        device: where it computes.

    Raises:
        UsageError: there are no prompts, or a component is called before one that it needs.
    """

    def __init__(
        self, bundle: ModelBundle, prompts: Iterable[Sequence[LinkedCall]], hidden: str,
        activations: Callable[[str], Activations], device: torch.device,
    ) -> None:  # fmt: skip
        self.streams: dict[str, Stream] = {}
        """By component, in the order in which data flows."""
        self.owners: dict[str, list[int]] = {}
        """Component → of each call the prompt."""
        self._links: dict[str, list[list[tuple[Link, str, int]]]] = {}  # with the other call's component and place
        for index, calls in enumerate(prompts):
            places: list[tuple[str, int]] = []
            for call in calls:
                name = call.component
                if name not in self.streams:
                    graph = bundle[name].graph
                    wanted = [hidden] if name == PREFILL else [v.name or "" for v in graph.graph.outputs if is_float(v)]
                    self.streams[name] = Stream(_always(graph), None, wanted, activations(name), device)
                    self.owners[name], self._links[name] = [], []
                self._links[name].append([(link, *places[link.call]) for link in call.links])
                self.owners[name].append(index)
                places.append((name, self.streams[name].count))
                self.streams[name].take(call.feeds)
        if PREFILL not in self.streams:
            raise UsageError("there are no calibration samples", where="mixed precision", fix="give data")
        self._check_order()

    @property
    def count(self) -> int:
        """Prompts."""
        return self.streams[PREFILL].count

    @torch.no_grad()
    def forward(self) -> None:
        """Run every component over all of its calls; once."""
        for name, stream in self.streams.items():
            for call, links in enumerate(self._links[name]):
                for key, own in _by_input(links).items():
                    value = stream.activations.get(key, call, CPU).clone()
                    for link, other, place in own:
                        given = self.streams[other].activations.get(link.output, place, CPU)
                        value.view(-1)[link.start : link.start + link.size] = _piece(given, link)
                    stream.activations.put(key, call, value)
            stream.open()
            stream.forward()

    def backward(
        self, visited: Callable[[str, ir.Node], bool], visit: Callable[[str], Visit],
        finished: Callable[[str], Callable[[Part], None]],
    ) -> None:  # fmt: skip
        """Gradients of the hidden states have been put under `GRADIENT`; see `Stream.backward`.

        Args:
            visited: component and node.
            visit: of a component; its samples are prompts.
            finished: of a component.
        """
        for name in reversed(self.streams):
            stream = self.streams[name]
            of_prompt = partial(_visit_prompt, self.owners[name], visit(name))
            stream.backward(partial(visited, name), of_prompt, finished(name))
            for call, links in enumerate(self._links[name]):
                self._hand_back(stream, call, links)

    def _hand_back(self, stream: Stream, call: int, links: Sequence[tuple[Link, str, int]]) -> None:
        """Add the gradients of a call's inputs to those of the outputs that they are."""
        for key, own in _by_input(links).items():
            if GRADIENT + key not in stream.activations.names(call):
                continue
            found = stream.activations.get(GRADIENT + key, call, CPU)
            stream.activations.drop(GRADIENT + key, call)
            for link, other, place in own:
                kept = self.streams[other].activations
                if GRADIENT + link.output in kept.names(place):
                    gradient = kept.get(GRADIENT + link.output, place, CPU).clone()
                else:
                    gradient = torch.zeros_like(kept.get(link.output, place, CPU))
                _piece(gradient, link).add_(found.reshape(-1)[link.start : link.start + link.size])
                kept.put(GRADIENT + link.output, place, gradient)

    def _check_order(self) -> None:
        places = {name: place for place, name in enumerate(self.streams)}
        needs = {(name, other) for name, calls in self._links.items() for links in calls for _, other, _ in links}
        for name, other in sorted(needs):
            if places[other] >= places[name]:
                raise UsageError(
                    f"{name} is called before {other}, whose results it takes", where="search",
                    fix="search with `--objective outputs`",
                )  # fmt: skip


def _always(graph: ir.Model) -> Callable[[Mapping[str, object]], ir.Model]:
    return lambda _: graph


def _visit_prompt(owners: Sequence[int], visit: Visit, call: int, node: ir.Node, x: Tensor, gradient: Tensor) -> None:
    visit(owners[call], node, x, gradient)


def _by_input(links: Sequence[tuple[Link, str, int]]) -> dict[str, list[tuple[Link, str, int]]]:
    found: dict[str, list[tuple[Link, str, int]]] = {}
    for link in links:
        found.setdefault(link[0].input, []).append(link)
    return found


def _piece(output: Tensor, link: Link) -> Tensor:
    """What a link takes of an output."""
    return output.reshape(-1)[link.first : link.first + link.size]
