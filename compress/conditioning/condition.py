"""A bundle and the rewrites that a recipe asks for → the conditioned bundle."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.conditioning import make_rewrite
from pocketport.compress.conditioning.statistics import ChannelStatistics, observe
from pocketport.compress.conditioning.streams import Chain
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.graph import clone_graph
from pocketport.compress.recipe import Conditioning
from pocketport.errors import UsageError, VerificationError

Feeds = Iterable[tuple[str, Arrays]]
Gradients = Callable[[ModelBundle, Mapping[str, Iterable[str]]], Mapping[str, NDArray[np.float64]]]
"""A bundle's, see `Observe.gradients`."""

SHOWN_REASONS = 3
CHAINED = (("embeds", "vision_tokens", "inputs_embeds"), ("deepstack_tokens_*", "deepstack_embeds_*"))
"""Outputs and inputs that hold one kind of vector: the host puts the former into the rows of the latter."""


@dataclass(frozen=True)
class Conditioned:
    """What one rewrite did.

    Attributes:
        rewrite: its name.
        streams: how many streams it changed.
        components: those whose constants it changed.
        crossings: ``component/tensor`` of data between components whose channels are no longer the original's.
    """

    rewrite: str
    streams: int
    components: tuple[str, ...]
    crossings: tuple[str, ...]


@dataclass(frozen=True)
class _Observed:
    """An `Observe` of one bundle."""

    bundle: ModelBundle
    calibration: Callable[[ModelBundle], Feeds]
    answers: Gradients | None

    def __call__(self, tensors: Mapping[str, Iterable[str]]) -> dict[str, ChannelStatistics]:
        return observe({c.name: c.graph for c in self.bundle}, self.calibration(self.bundle), tensors)

    def gradients(self, nodes: Mapping[str, Iterable[str]]) -> Mapping[str, NDArray[np.float64]]:
        if self.answers is None:
            raise UsageError(
                "there are no answers whose gradients could be taken", where="recipe, conditioning",
                fix="leave out `by: gradients`",
            )  # fmt: skip
        return self.answers(self.bundle, nodes)


def condition(
    bundle: ModelBundle, steps: Sequence[Conditioning], calibration: Callable[[ModelBundle], Feeds], *, chained: bool,
    gradients: Gradients | None = None,
) -> tuple[ModelBundle, list[Conditioned]]:  # fmt: skip
    """Apply `steps` in order; `bundle` is unchanged.

    Args:
        bundle: float graphs.
        steps: what the recipe asks for.
        calibration: makes the calibration feeds of a bundle; called when a rewrite needs statistics, with the bundle as
            it is by then.
        chained: whether data go from component to component only through us, so that what they hold may change.
        gradients: of the answers, where the model gives any; called when a rewrite needs them.

    Raises:
        UsageError: an unknown rewrite or option.
        VerificationError: a rewrite finds nothing to change.
    """
    done = []
    for step, rewrite in [(s, make_rewrite(s.rewrite, s.options)) for s in steps]:
        graphs = {c.name: clone_graph(c.graph) for c in bundle if fnmatchcase(c.name, step.component)}
        current = bundle.with_graphs(graphs)
        observed = _Observed(current, calibration, gradients)
        streams, blocked = rewrite(Chain(graphs, links_of(bundle) if chained else {}), observed)
        if not streams:
            raise VerificationError(
                f"it found nothing to change: {_reasons(blocked)}",
                where=f"conditioning, {step.rewrite} of component {step.component!r}",
                fix="take it out of the recipe, or name the components that it fits",
            )
        components = {slot.component for s in streams for slot in (*s.writers, *s.readers)}
        crossings = {name for s in streams for name in s.crossings}
        done.append(
            Conditioned(
                step.rewrite, len(streams), tuple(n for n in graphs if n in components), tuple(sorted(crossings))
            )
        )
        bundle = current
    return bundle, done


def links_of(bundle: ModelBundle) -> dict[str, tuple[str, ...]]:
    """``component/tensor`` → other components' names of the same data."""
    groups = [list(names) for names in bundle.shared]
    interface = [f"{c.name}/{v.name}" for c in bundle for v in (*c.graph.graph.inputs, *c.graph.graph.outputs)]
    for patterns in CHAINED:
        classes: dict[str, list[str]] = {}
        for name in interface:
            tensor = name.partition("/")[2]
            for pattern in patterns:
                if fnmatchcase(tensor, pattern):
                    classes.setdefault(tensor.removeprefix(pattern.rstrip("*")) if "*" in pattern else "", []).append(
                        name
                    )
        groups += classes.values()
    links: dict[str, tuple[str, ...]] = {}
    for group in groups:
        for name in group:
            others = dict.fromkeys((*links.get(name, ()), *(n for n in group if n != name and n in interface)))
            if name in interface:
                links[name] = tuple(others)
    return links


def _reasons(blocked: Mapping[str, str]) -> str:
    return "; ".join(list(dict.fromkeys(blocked.values()))[:SHOWN_REASONS]) or "there is no place for it"
