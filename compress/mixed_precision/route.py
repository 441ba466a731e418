"""The way of samples of one shape through a graph, part by part."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.blockwise.segments import Segment, segments
from pocketport.compress.executors.torch_executor import Values, WeightCache, run_nodes
from pocketport.compress.structure import is_constant


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


class Route:
    """Samples of the same shapes, and the nodes that `wanted` needs.

    Args:
        graph: with these static shapes.
        wanted: values to be computed.
        activations: takes the inputs that differ from sample to sample.
    """

    def __init__(self, graph: ir.Model, wanted: Sequence[str], activations: Activations) -> None:
        self.shared: Values = {}
        """What is the same for all of them."""
        self._wanted, self._activations = set(wanted), activations
        self._nodes = _ancestors(list(graph.graph), self._wanted)
        self._samples: list[int] = []
        self._differing: set[str] = set()

    def take(self, sample: int, inputs: Values) -> None:
        """Keep what differs from sample to sample by sample, the rest once."""
        for name, value in inputs.items():
            known = self.shared.setdefault(name, value)
            if name not in self._differing and value is not known and not torch.equal(value, known):
                self._differing.add(name)
                for earlier in self._samples:
                    self._activations.put(name, earlier, known)
            if name in self._differing:
                self._activations.put(name, sample, value)
        self._samples.append(sample)

    def opened(self, device: torch.device) -> list[Part]:
        """Compute what is the same for all samples, which are all taken now; the parts that are not."""
        if len(self._samples) == 1:  # nothing differs yet: all of it is the sample
            self._differing = set(self.shared)
            for name, value in self.shared.items():
                self._activations.put(name, self._samples[0], value)
        constant, varying = _divided(self._nodes, self._differing)
        shared: dict[str, Tensor] = {n: v.to(device) for n, v in self.shared.items() if n not in self._differing}
        with torch.no_grad():
            run_nodes(constant, shared, WeightCache(device), {})
        self.shared = shared
        return _parts(varying, self._wanted, set(shared))

    def among(self, samples: Sequence[int] | None) -> list[int]:
        """Its own ones of some samples; None: all."""
        return self._samples if samples is None else [s for s in samples if s in self._samples]


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
