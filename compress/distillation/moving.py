"""Quantized weights under scales that move: what they stand for, its gradient, and how they are stored."""

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketport.compress.ggml.dequantize import SCALES, dequantize
from pocketport.compress.ggml.types import TYPES
from pocketport.compress.quantized_weights import PackedWeight, Quantized, QuantizedWeight, QuantizedWeights


class Moving(Protocol):
    """One weight [N, K].

    Attributes:
        shape: of the changes of its scales, each relative to where that scale starts.
    """

    shape: tuple[int, ...]

    def floats(self, change: Tensor) -> Tensor:
        """What it stands for, float32 [N, K]."""
        ...

    def slopes(self, by_weight: Tensor, change: Tensor) -> Tensor:
        """A gradient by the weight [N, K], which is used up, as the one by the changes."""
        ...

    def stored(self, change: Tensor) -> Quantized:
        """As it is written."""
        ...


def moving_weight(weights: QuantizedWeights, name: str, *, half: bool) -> Moving:
    """One of the weights; `half`: the scales of one in integers are float16 numbers."""
    if weights.form(name)["form"] == "packed":
        return MovingBlocks(weights, name)
    return MovingIntegers(weights, name, half=half)


class MovingIntegers:
    """A matrix in integers: the scale of every group moves."""

    def __init__(self, weights: QuantizedWeights, name: str, *, half: bool) -> None:
        self._weights, self._name, self._half = weights, name, half
        self.shape = weights.part(name, "scale").shape

    def floats(self, change: Tensor) -> Tensor:
        """See `Moving`."""
        return torch.from_numpy(self._moved(change).dequantized()).to(change.device)

    def slopes(self, by_weight: Tensor, change: Tensor) -> Tensor:
        """See `Moving`: Σ ∂W ∘ W / (1 + change) over each group."""
        return by_weight.mul_(self.floats(change)).reshape(*self.shape, -1).sum(-1) / (1 + change)

    def stored(self, change: Tensor) -> QuantizedWeight:
        """See `Moving`."""
        weight = self._moved(change)
        return replace(weight, scale=weight.scale.astype(np.float16).astype(np.float32)) if self._half else weight

    def _moved(self, change: Tensor) -> QuantizedWeight:
        weight = self._weights[self._name]
        assert isinstance(weight, QuantizedWeight)
        return replace(weight, scale=weight.scale * (1 + change.cpu().numpy()))


class MovingBlocks:
    """A matrix in one of ggml's block formats: the floats of every block move, its steps and codes stay.

    A weight is linear in the floats of its block (scale, and offset where there is one), so that it is a sum of what
    ggml makes of the block with all but one of them 0.
    """

    def __init__(self, weights: QuantizedWeights, name: str) -> None:
        self._weights, self._name = weights, name
        form = weights.form(name)
        self._kind, (rows, columns) = TYPES[form["type"]], form["shape"]
        self._dtype, self._places = SCALES[form["type"]]
        self.shape: tuple[int, ...] = (len(self._places), rows, columns // self._kind.block)

    def floats(self, change: Tensor) -> Tensor:
        """See `Moving`."""
        return self._terms(change.device).mul_(1 + change[..., None]).sum(0).flatten(1)

    def slopes(self, by_weight: Tensor, change: Tensor) -> Tensor:
        """See `Moving`: Σ ∂W ∘ term over each block."""
        slopes: Tensor = torch.linalg.vecdot(self._terms(change.device), by_weight.reshape(*self.shape[1:], -1))
        return slopes

    def stored(self, change: Tensor) -> PackedWeight:
        """See `Moving`."""
        blocks = self._blocks()
        for place, factor in zip(self._places, 1 + change.cpu().numpy(), strict=True):
            field = self._field(blocks, place)
            field[:] = field.astype(np.float32) * factor.reshape(-1, 1)
        weight = self._weights[self._name]
        assert isinstance(weight, PackedWeight)
        return replace(weight, data=blocks.reshape(weight.data.shape))

    def _terms(self, device: torch.device) -> Tensor:
        """float32 [floats of a block, N, blocks of a row, weights of a block]."""
        terms = []
        for place in self._places:
            blocks = self._blocks()
            for other in self._places:
                if other != place:
                    self._field(blocks, other)[:] = 0
            terms.append(torch.from_numpy(dequantize(self._kind, blocks, self._name)))
        return torch.stack(terms).reshape(*self.shape, -1).to(device)

    def _blocks(self) -> NDArray[np.uint8]:
        """A copy of its bytes, [blocks, bytes of a block]."""
        weight = self._weights[self._name]
        assert isinstance(weight, PackedWeight)
        return weight.data.reshape(-1, self._kind.size).copy()

    def _field(self, blocks: NDArray[np.uint8], place: int) -> NDArray[np.floating]:
        """One of the floats of every block, [blocks, 1], over the same memory."""
        return blocks[:, place : place + np.dtype(self._dtype).itemsize].view(self._dtype)
