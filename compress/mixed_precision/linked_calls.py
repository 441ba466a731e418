"""What the host does between a model's components, written down while none of them computes.

Executors stand in for components and give NaN in the shapes of their outputs. Where such a result, or a part of it, is
handed on is told by its place in memory; NaN anywhere else says that the host computed with it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.blockwise.samples import STREAM
from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.executors.ort_executor import Arrays, Executor
from pocketport.compress.executors.torch_executor import TorchExecutor
from pocketport.compress.families.chat import DECODER, Call, ImagePrompt
from pocketport.compress.graph import shape_of
from pocketport.errors import UsageError

EMBED, PREFILL = "embed", "prefill"

Prompts = Callable[[Mapping[str, Executor]], Iterator[tuple[ImagePrompt, Arrays]]]
"""Executors of what stands before the language model, and of ``embed`` → prompts, and the inputs of ``prefill`` for each."""


@dataclass(frozen=True)
class Link:
    """Elements of a call's input that are an earlier call's output, both flat.

    Attributes:
        input: its name.
        start: the first of them.
        size: how many.
        call: place of the earlier call among those of the sample.
        output: its name.
        first: the first of its elements.
    """

    input: str
    start: int
    size: int
    call: int
    output: str
    first: int


@dataclass(frozen=True)
class LinkedCall:
    """One run of a component; inputs are NaN where `links` say what stands there."""

    component: str
    feeds: Arrays
    links: Sequence[Link]


def linked_calls(bundle: ModelBundle, prompts: Prompts) -> Iterator[list[LinkedCall]]:
    """The calls of every prompt, in their order, the one of ``prefill`` last.

    Raises:
        UsageError: the host does more with a component's results than to hand them on.
    """
    log: list[Call] = []
    hollow = {c.name: _Hollow(c, log) for c in bundle if c.name not in DECODER}
    for prompt, feeds in prompts({**hollow, EMBED: TorchExecutor(bundle[EMBED].graph)}):
        runs, calls = list(log), list[LinkedCall]()
        log.clear()
        for run in runs:
            links = [link for name, array in run.feeds.items() for link in _links(name, 0, array, runs)]
            calls.append(LinkedCall(run.component, run.feeds, links))
        width = feeds[STREAM].shape[-1]
        padding = len(feeds[STREAM]) - len(prompt.input_ids)
        placed = [
            link
            for (first, _), tokens in zip(prompt.spans, prompt.vision, strict=True)
            for link in _links(STREAM, (padding + first) * width, tokens, runs)
        ]
        calls.append(LinkedCall(PREFILL, feeds, placed))
        for call in calls:
            _check(call)
        yield calls


class _Hollow:
    """Stands in for a component."""

    def __init__(self, component: Component, log: list[Call]) -> None:
        self._name, self._log, self._outputs = component.name, log, list(component.graph.graph.outputs)

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """NaN; the call is in the log."""
        results: dict[str, NDArray[np.generic]] = {}
        for value in self._outputs:
            assert value.dtype is not None
            results[value.name or ""] = np.full(shape_of(value), np.nan, value.dtype.numpy())
        self._log.append(Call(self._name, dict(feeds), results))
        return results


def _links(name: str, start: int, array: NDArray[np.generic], runs: Sequence[Call]) -> Iterator[Link]:
    """The output that a whole array is, or is a run of elements of; none where it is no result."""
    for place, run in enumerate(runs):
        for output, result in run.results.items():
            if array.flags.c_contiguous and np.may_share_memory(array, result):
                first = (array.ctypes.data - result.ctypes.data) // result.itemsize
                yield Link(name, start, array.size, place, output, first)


def _check(call: LinkedCall) -> None:
    for name, array in call.feeds.items():
        if np.issubdtype(array.dtype, np.floating):
            linked = sum(link.size for link in call.links if link.input == name)
            if np.count_nonzero(np.isnan(array)) != linked:
                raise UsageError(
                    f"what goes into {name} of {call.component} is computed from another component's results, through which no "
                    "gradient goes here",
                    where="search", fix="search with `--objective outputs`",
                )  # fmt: skip
