"""What a layer of a sum is fed, less what the later layers of the sum make up for: its errors are seen as they stay."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sum:
    """Layers whose outputs are added up and which are rounded one after the other, see `compress.pivot.summed_weights`.

    Attributes:
        weights: of the layers, in that order.
        shares: of each layer, B [K, K of all later ones].
    """

    weights: tuple[str, ...]
    shares: tuple[Tensor, ...]


@dataclass(frozen=True)
class Visit:
    """Some rows of a sample at one layer.

    Attributes:
        weight: of the layer.
        inputs: what it is fed, […, K].
        unexplained: that which no later layer makes up for, the inputs themselves of a layer without such ones.
        gradient: by what it gives, […, N].
    """

    weight: str
    inputs: Tensor
    unexplained: Tensor
    gradient: Tensor


class SummedInputs:
    """Holds the layers of a sum back until all of them were visited.

    Args:
        sums: of one component.
    """

    def __init__(self, sums: Sequence[Sum]) -> None:
        self._sums = {weight: one for one in sums for weight in one.weights}
        self._waiting: dict[str, tuple[Tensor, Tensor]] = {}

    def visited(self, weight: str, inputs: Tensor, gradient: Tensor) -> Iterator[Visit]:
        """The visits that are complete with this one; all layers of a sum are shown the same rows of the same sample."""
        own = self._sums.get(weight)
        if own is None:
            yield Visit(weight, inputs, inputs, gradient)
            return
        self._waiting[weight] = inputs, gradient
        if self._waiting.keys() >= set(own.weights):
            seen = [self._waiting.pop(name) for name in own.weights]
            for place, (name, (x, g)) in enumerate(zip(own.weights, seen, strict=True)):
                later = [other for other, _ in seen[place + 1 :]]
                explained = torch.cat(later, -1) @ own.shares[place].to(x).T if later else 0
                yield Visit(name, x, x - explained, g)
