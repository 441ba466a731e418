"""All samples on their way through a graph twice: in float, and in the numbers that its pivot has.

What goes from segment to segment lies in memory as far as a budget goes, beyond it in a file.
"""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketport.calibration.encodings import Encoding
from pocketport.calibration.reductions import real_rows
from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.executors.torch_executor import Values, WeightCache, run_nodes
from pocketport.compress.reconstruction.segments import Segment
from pocketport.errors import UsageError

EXACT = "float:"  # begins the names of activations of the float chain
BEFORE = "before:"  # begins the names of values as they are before they are rounded


class PivotConstants(WeightCache):
    """The constants of a float graph as a pivot has them: what its integers stand for, biases that were corrected.

    Args:
        pivot: where they lie.
        encodings: of its tensors, by name.
        device: where they are needed.
    """

    def __init__(self, pivot: ir.Model, encodings: Mapping[str, Encoding], device: torch.device) -> None:
        super().__init__(device)
        self._initializers, self._encodings = pivot.graph.initializers, encodings

    def stored(self, value: ir.Value) -> Tensor:
        """What stands for a constant of the float graph."""
        name = value.name or ""
        if name in self._held:
            return self._held[name]
        if (integers := self._initializers.get(f"{name}/q")) is None:
            return super().stored(self._initializers.get(name, value))
        assert integers.const_value is not None
        numbers: NDArray[np.int32] = np.asarray(integers.const_value.numpy()).astype(np.int32)
        self._held[name] = torch.from_numpy(np.array(self._encodings[name].dequantize(numbers))).to(self.device)
        return self._held[name]


class Chains:
    """Samples as far as they have come.

    Args:
        graph: float, in ops of the torch executor, with static shapes.
        constants: of its pivot.
        encodings: of its pivot's tensors, by name.
        feeds: inputs of the graph, sample after sample.
        activations: where values are kept.
        device: where it computes.

    Raises:
        UsageError: there are no samples.
    """

    def __init__(
        self, graph: ir.Model, constants: PivotConstants, encodings: Mapping[str, Encoding], feeds: Iterable[Arrays],
        activations: Activations, device: torch.device,
    ) -> None:  # fmt: skip
        self.constants, self.device = constants, device
        self.exact_constants = WeightCache(device)
        self.real: list[NDArray[np.bool_] | None] = []
        """Of each sample which rows of a padded sequence are not padding; None: all."""
        self._encodings, self._activations = encodings, activations
        inputs = [v.name or "" for v in graph.graph.inputs]
        for sample, arrays in enumerate(feeds):
            self.real.append(real_rows(arrays))
            for name in inputs:
                value = torch.from_numpy(np.array(arrays[name])).to(device)
                activations.put(EXACT + name, sample, value)
                activations.put(name, sample, self._rounded(name, value))
        if not self.real:
            raise UsageError("there are no calibration samples", where="reconstruction", fix="give at least one")

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(self.real)

    def get(self, name: str, sample: int, *, exact: bool) -> Tensor:
        """A value that is kept, of the float chain or of the rounded one."""
        return self._activations.get((EXACT if exact else "") + name, sample, self.device)

    def values(self, segment: Segment, sample: int, *, exact: bool) -> Values:
        """What a sample starts a segment with."""
        return {name: self.get(name, sample, exact=exact) for name in segment.reads}

    def run(self, nodes: Iterable[ir.Node], values: Values, before: Collection[str] = ()) -> None:
        """Compute nodes in the pivot's numbers, in place in `values`.

        Args:
            nodes: in topological order.
            values: changed.
            before: values that are kept beside it under `BEFORE` as they are before they are rounded.
        """
        for node in nodes:
            run_nodes([node], values, self.constants, {})
            for output in node.outputs:
                name = output.name or ""
                if name in before:
                    values[BEFORE + name] = values[name]
                values[name] = self._rounded(name, values[name])

    @torch.no_grad()
    def advance_exact(self, segment: Segment) -> None:
        """Bring all samples of the float chain through a segment; what it reads stays."""
        for sample in range(self.count):
            values = self.values(segment, sample, exact=True)
            run_nodes(segment.nodes, values, self.exact_constants, {})
            for name in segment.gives:
                self._activations.put(EXACT + name, sample, values[name])
        self.exact_constants.clear()

    @torch.no_grad()
    def advance(self, segment: Segment) -> None:
        """Bring all samples of the rounded chain through a segment too, and forget what no later one reads."""
        self.constants.clear()
        for sample in range(self.count):
            values = self.values(segment, sample, exact=False)
            self.run(segment.nodes, values)
            for name in segment.gives:
                self._activations.put(name, sample, values[name])
            for name in segment.last:
                self._activations.drop(EXACT + name, sample)
                self._activations.drop(name, sample)
        self.constants.clear()

    def _rounded(self, name: str, value: Tensor) -> Tensor:
        encoding = self._encodings.get(name)
        return value if encoding is None else rounded_activation(value, encoding)


def rounded_activation(x: Tensor, encoding: Encoding) -> Tensor:
    """What QuantizeLinear and DequantizeLinear make of an activation; gradients pass where nothing is clipped.

    (The straight-through estimator of Bengio et al. 2013, arXiv 1308.3432.)
    """
    scale, zero = float(encoding.scale), int(encoding.zero_point)
    low, high = encoding.bounds
    integers = (x.detach() / scale).round_().add_(zero).clamp_(low, high)
    result = integers.sub_(zero).mul_(scale)
    if not x.requires_grad:
        return result
    clipped = x.clamp((low - zero) * scale, (high - zero) * scale)
    return clipped + (result - clipped.detach())
