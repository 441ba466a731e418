"""Calibration samples on their way through a graph: what differs from one to the next, what is the same for all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.executors.torch_executor import Values, WeightCache, run_nodes
from pocketport.errors import UsageError

STREAM = "inputs_embeds"  # differs from sample to sample, even if there is one only
ROW_WEIGHTS = "row_weights"
FLOAT = "float:"  # begins the names of activations of the float chain


@dataclass(frozen=True)
class Samples:
    """Calibration samples on their way through the graph.

    Attributes:
        count: how many.
        shared: what is the same for all of them.
        activations: what is not.
        row_weights: how much each row of a sample counts, [S] ≥ 0; None: all the same.
        prefix: `FLOAT` for the chain whose weights are not quantized.
    """

    count: int
    shared: Values
    activations: Activations
    row_weights: Sequence[Tensor | None]
    prefix: str = ""

    def values(self, sample: int, device: torch.device) -> Values:
        """What a sample starts a stage with."""
        own = self.names(sample)
        return {**self.shared, **{name: self.activations.get(self.prefix + name, sample, device) for name in own}}

    def names(self, sample: int) -> set[str]:
        """What is kept of a sample."""
        mine = {name for name in self.activations.names(sample) if name.startswith(FLOAT) == bool(self.prefix)}
        return {name.removeprefix(self.prefix) for name in mine}

    def keep(self, kept: frozenset[str], sample: int, values: Values) -> None:
        """Keep these values of a sample and nothing else of it."""
        before = self.names(sample)
        for name in kept - before - self.shared.keys():
            self.activations.put(self.prefix + name, sample, values[name])
        for name in before - kept:
            self.activations.drop(self.prefix + name, sample)

    def weighted(self, value: Tensor, sample: int) -> tuple[Tensor, float]:
        """The rows [n, K] of an activation, each times the root of its weight and without those of weight 0; and the
        weights' sum. Where there are fewer rows than weights they are the last ones."""
        rows, weights = value.reshape(-1, value.shape[-1]), self.row_weights[sample]
        if weights is None:
            return rows, float(len(rows))
        weights = weights[-len(rows) :].to(rows.device)
        seen = weights > 0
        return rows[seen] * weights[seen, None].sqrt(), float(weights.sum())


def taken_in(
    graph: ir.Model, feeds: Iterator[Arrays], activations: Activations, device: torch.device
) -> tuple[Samples, list[ir.Node]]:
    """Read all samples; what is the same for all of them, and what follows from that alone, is computed once.

    Args:
        graph: the component.
        feeds: its inputs, sample after sample; with ``row_weights`` [S] or without.
        activations: where what differs is kept.
        device: where nodes are run.

    Returns:
        The samples, and the nodes that depend on what differs.

    Raises:
        UsageError: there are no samples.
        InputError: an op can't be run in torch.
    """
    shared: Values = {}
    differing: set[str] = set()
    row_weights: list[Tensor | None] = []
    for count, arrays in enumerate(feeds):
        row_weights.append(None)
        for name, array in arrays.items():
            value = torch.from_numpy(np.asarray(array))
            if name == ROW_WEIGHTS:
                row_weights[count] = value
                continue
            if name not in shared:
                shared[name] = value
            if name not in differing and (name == STREAM or not torch.equal(value, shared[name])):
                differing.add(name)
                for earlier in range(count):
                    activations.put(name, earlier, shared[name])
            if name in differing:
                activations.put(name, count, value)
    if not row_weights:
        raise UsageError("there are no calibration samples", where="calibration", fix="give data, or use rtn or mse")
    values = {name: value.to(device) for name, value in shared.items() if name not in differing}
    constant: list[ir.Node] = []
    varying: list[ir.Node] = []
    for node in graph.graph:
        depends = any(v is not None and v.name in differing for v in node.inputs)
        (varying if depends else constant).append(node)
        if depends:
            differing |= {v.name or "" for v in node.outputs}
    run_nodes(constant, values, WeightCache(device), {})
    return Samples(len(row_weights), values, activations, row_weights), varying


def float_chain(samples: Samples) -> Samples:
    """The same samples once more, for the chain whose weights stay as they are."""
    for sample in range(samples.count):
        for name in samples.names(sample):
            value = samples.activations.get(name, sample, torch.device("cpu"))
            samples.activations.put(FLOAT + name, sample, value)
    return replace(samples, prefix=FLOAT)
