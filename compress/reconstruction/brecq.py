"""Block reconstruction in the manner of BRECQ (Li et al. 2021, arXiv 2102.05426)."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from pocketport.compress.reconstruction.chains import BEFORE, Chains
from pocketport.compress.reconstruction.options import Brecq
from pocketport.compress.reconstruction.pivot import PivotWeights
from pocketport.compress.reconstruction.segments import Segment
from pocketport.compress.reconstruction.soft_rounding import Schedule, SoftRounding
from pocketport.compress.structure import weight_operand

SEED = 0
BIAS_RATE = 1e-3  # of a bias's own mean size


class Block:
    """The weights and biases of a segment in the making.

    Args:
        chains: as far as the segment's beginning, the float chain as far as its end.
        segment: the block.
        weights: of the component.
    """

    def __init__(self, chains: Chains, segment: Segment, weights: PivotWeights) -> None:
        self._chains, self._segment, self._weights = chains, segment, weights
        device = chains.device
        self._roundings: dict[ir.Node, SoftRounding] = {}
        self._biases: dict[ir.Node, Tensor] = {}
        for node in segment.layers:
            weight = weights.weight(node)
            encoding = weights.encoding(node)
            scale, zero = (
                torch.from_numpy(np.array(v, np.float32)).to(device) for v in encoding.expanded(weight.shape)
            )
            now = torch.from_numpy(weights.integers(node).astype(np.float32)).to(device)
            real = torch.from_numpy(weight).to(device)
            self._roundings[node] = SoftRounding(real, scale, zero, encoding.bounds, now)
            if weights.bias(node) is not None:
                operand = weight_operand(node)
                assert operand is not None and operand.bias is not None
                self._biases[node] = chains.constants.get(operand.bias).clone().requires_grad_()

    def reconstruct(self, options: Brecq) -> None:
        """Minimise the error of the block's outputs over roundings and biases, and write both.

        Squared errors of every output are relative to its energy, and their sum to that of the integers that stand, from
        which it starts; where these err less in the end, over all samples, they stay. The block's input has passed the
        rounded blocks before. Unlike BRECQ's, errors are not weighed by Fisher's information of the output.
        """
        start = self._error_of_all()
        if start == 0.0:
            return
        biases = list(self._biases.values())
        size = float(np.mean([float(b.detach().abs().mean()) for b in biases])) if biases else 0.0
        schedule = Schedule(list(self._roundings.values()), options.iterations, (biases, BIAS_RATE * size))
        generator = torch.Generator().manual_seed(SEED)
        for _ in range(options.iterations):
            drawn = torch.randint(self._chains.count, (options.samples,), generator=generator).tolist()
            self._place(SoftRounding.weight)
            error = torch.stack([self._error(sample) for sample in drawn]).mean() * (self._chains.count / start)
            error.backward()  # type: ignore[no-untyped-call]
            schedule.step()
        with torch.no_grad():
            self._place(SoftRounding.decided)
            found = self._error_of_all(placed=True)
        if found < start:
            self._write()

    def _place(self, weight_of: Callable[[SoftRounding], Tensor]) -> None:
        """Let the rounded chain compute with the weights and biases as they stand."""
        for node, rounding in self._roundings.items():
            operand = weight_operand(node)
            assert operand is not None
            self._chains.constants.replace(operand.value.name or "", weight_of(rounding))
            if node in self._biases and operand.bias is not None:
                self._chains.constants.replace(operand.bias.name or "", self._biases[node])

    @torch.no_grad()
    def _error_of_all(self, *, placed: bool = False) -> float:
        """Of all samples together, with the pivot's own integers or, `placed`, with those that were decided."""
        if not placed:
            self._chains.constants.clear()
        return float(sum(self._error(sample) for sample in range(self._chains.count)))

    def _error(self, sample: int) -> Tensor:
        """Of one sample: squared errors of every output, before it is rounded itself, over the output's energy."""
        values = self._chains.values(self._segment, sample, exact=False)
        self._chains.run(self._segment.nodes, values, self._segment.gives)
        error = torch.zeros((), device=self._chains.device)
        for name in self._segment.gives:
            wanted = self._chains.get(name, sample, exact=True)
            if wanted.is_floating_point():
                energy = wanted.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
                error = error + (values[BEFORE + name] - wanted).square().sum() / energy
        return error

    def _write(self) -> None:
        for node, rounding in self._roundings.items():
            integers = rounding.integers().cpu().numpy().astype(np.int32)
            self._weights.write_weight(node, integers, self._weights.encoding(node))
        for node, bias in self._biases.items():
            self._weights.write_bias(node, bias.detach().cpu().numpy())
