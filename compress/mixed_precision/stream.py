"""A float graph layer by layer, forwards over all samples and backwards again: values and gradients out of core.

Memory holds one layer's weights; what goes from layer to layer is in `Activations`. On the way back each layer is run
again with gradients (Chen et al. 2016, arXiv 1604.06174).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.blockwise.samples import ROW_WEIGHTS
from pocketport.compress.blockwise.segments import Segment, segments
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.executors.torch_executor import Values, WeightCache, last_uses, run_nodes
from pocketport.compress.structure import is_constant
from pocketport.errors import UsageError

Visit = Callable[[ir.Node, Tensor, Tensor], None]
"""Called with a node, its input and the gradient of its output."""

GRADIENT = "gradient of "


@dataclass(frozen=True)
class Part:
    """One layer.

    Attributes:
        segment: its nodes.
        reads: values of earlier parts and of the samples that it starts with.
        gives: values of its own that later parts, or the caller, read.
    """

    segment: Segment
    reads: tuple[str, ...]
    gives: tuple[str, ...]


class Stream:
    """All samples on their way through the nodes that `wanted` needs.

    Args:
        graph: with static shapes, in ops of the torch executor.
        feeds: its inputs, sample after sample, and where not all rows count their `ROW_WEIGHTS` [S]; read once.
        wanted: values to be computed.
        activations: takes what goes from layer to layer.
        device: where it computes.

    Raises:
        UsageError: there are no samples.
    """

    def __init__(
        self, graph: ir.Model, feeds: Iterator[Arrays], wanted: Sequence[str], activations: Activations,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.activations, self.device, self.count = activations, device, 0
        self.counting: list[Tensor | None] = []
        """Of each sample which rows count, bool [S]; None: all."""
        self._shared: dict[str, Tensor] = {}
        differing = self._take_in(feeds)
        nodes = _ancestors(list(graph.graph), set(wanted))
        constant, varying = _divided(nodes, differing)
        shared = {n: v.to(device) for n, v in self._shared.items() if n not in differing}
        run_nodes(constant, shared, WeightCache(device), {})
        self._shared = shared
        self.parts = _parts(varying, set(wanted), set(shared))

    def _take_in(self, feeds: Iterator[Arrays]) -> set[str]:
        """Keep what differs from sample to sample by sample, the rest once; returns the names that differ."""
        differing: set[str] = set()
        for arrays in feeds:
            rows = arrays.get(ROW_WEIGHTS)
            self.counting.append(
                None if rows is None else torch.from_numpy(np.asarray(rows, np.float32) > 0).to(self.device)
            )
            for name, array in ((n, a) for n, a in arrays.items() if n != ROW_WEIGHTS):
                value = torch.from_numpy(np.asarray(array))
                known = self._shared.setdefault(name, value)
                if name not in differing and value is not known and not torch.equal(value, known):
                    differing.add(name)
                    for earlier in range(self.count):
                        self.activations.put(name, earlier, known)
                if name in differing:
                    self.activations.put(name, self.count, value)
            self.count += 1
        if not self.count:
            raise UsageError("there are no calibration samples", where="mixed precision", fix="give data")
        if self.count == 1:  # nothing differs yet: all of it is the sample
            differing = set(self._shared)
            for name, value in self._shared.items():
                self.activations.put(name, 0, value)
        return differing

    @torch.no_grad()
    def forward(self, replaced: Mapping[str, Tensor] | None = None, samples: Sequence[int] | None = None) -> None:
        """Run every part over samples; `wanted` is in `activations` then.

        Args:
            replaced: other weights, by the initializers' names.
            samples: which; None: all.
        """
        for part in self.parts:
            weights = _cache(part, self.device, replaced or {})
            keep = set(part.gives) | self._shared.keys()
            uses = last_uses(part.segment.nodes, keep)
            for sample in range(self.count) if samples is None else samples:
                values = self._values(part, sample)
                run_nodes(part.segment.nodes, values, weights, uses)
                for name in part.gives:
                    self.activations.put(name, sample, values[name])

    def backward(
        self, visited: Callable[[ir.Node], bool], visit: Visit, finished: Callable[[Part], None],
        replaced: Mapping[str, Tensor] | None = None, samples: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """Run every part again, from the last to the first; gradients of `wanted` have been put under `GRADIENT`.

        Args:
            visited: which nodes `visit` is called for.
            visit: see `Visit`; called for every sample.
            finished: called behind the last sample of a part.
            replaced: other weights, by the initializers' names.
            samples: which; None: all.
        """
        for part in reversed(self.parts):
            weights = _cache(part, self.device, replaced or {})
            seen = [node for node in part.segment.nodes if visited(node)]
            for sample in range(self.count) if samples is None else samples:
                self._back(part, sample, seen, weights, visit)
            finished(part)

    def _back(self, part: Part, sample: int, seen: Sequence[ir.Node], weights: WeightCache, visit: Visit) -> None:
        values = self._values(part, sample)
        starts = [n for n in part.reads if values[n].is_floating_point()]
        values |= {name: values[name].detach().requires_grad_() for name in starts}
        with torch.enable_grad():
            run_nodes(part.segment.nodes, values, weights, {})
        known = self.activations.names(sample)
        ends = [n for n in part.gives if GRADIENT + n in known]
        given = [self.activations.get(GRADIENT + n, sample, self.device) for n in ends]
        outputs = [values[node.outputs[0].name or ""] for node in seen]
        inputs = [*outputs, *(values[n] for n in starts)]
        found = torch.autograd.grad([values[n] for n in ends], inputs, given, allow_unused=True)
        for node, gradient in zip(seen, found, strict=False):
            if gradient is not None:
                visit(node, values[node.inputs[0].name or ""].detach(), gradient)  # type: ignore[union-attr]
        for name, gradient in zip(starts, found[len(seen) :], strict=True):
            if gradient is not None:
                before = GRADIENT + name in known
                more = self.activations.get(GRADIENT + name, sample, self.device) if before else 0
                self.activations.put(GRADIENT + name, sample, gradient + more)
        for name in ends:
            self.activations.drop(GRADIENT + name, sample)

    def _values(self, part: Part, sample: int) -> Values:
        """What a sample starts a part with."""
        return {**self._shared, **{name: self.activations.get(name, sample, self.device) for name in part.reads}}


def _cache(part: Part, device: torch.device, replaced: Mapping[str, Tensor]) -> WeightCache:
    weights = WeightCache(device)
    names = {v.name or "" for node in part.segment.nodes for v in node.inputs if v is not None}
    for name in names & replaced.keys():
        weights.replace(name, replaced[name].to(device))
    return weights


def _ancestors(nodes: Sequence[ir.Node], wanted: set[str]) -> list[ir.Node]:
    """The nodes that `wanted` needs."""
    needed, chosen = set(wanted), []
    for node in reversed(nodes):
        if any((v.name or "") in needed for v in node.outputs):
            chosen.append(node)
            needed |= {v.name or "" for v in node.inputs if v is not None}
    return chosen[::-1]


def _divided(nodes: Iterable[ir.Node], differing: set[str]) -> tuple[list[ir.Node], list[ir.Node]]:
    """Nodes that are the same for all samples, and those that depend on what differs."""
    depends = set(differing)
    constant: list[ir.Node] = []
    varying: list[ir.Node] = []
    for node in nodes:
        own = any(v is not None and v.name in depends for v in node.inputs)
        (varying if own else constant).append(node)
        if own:
            depends |= {v.name or "" for v in node.outputs}
    return constant, varying


def _parts(nodes: Sequence[ir.Node], wanted: set[str], shared: set[str]) -> list[Part]:
    parts: list[Part] = []
    later = set(wanted)
    for cut in reversed(segments(nodes)):
        made = {v.name or "" for node in cut.nodes for v in node.outputs}
        read = {v.name or "" for n in cut.nodes for v in n.inputs if v is not None and not is_constant(v)}
        reads = read - made - shared
        parts.append(Part(cut, tuple(sorted(reads)), tuple(sorted(made & later))))
        later |= reads
    return parts[::-1]
