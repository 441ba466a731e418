"""What the component graphs of MiniCPM-V share: configuration, static lengths and layers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.builder import Weight
from pocketport.compress.families.layers import Layers
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig


@dataclass(frozen=True)
class StaticShape:
    """The lengths that are fixed at compile time.

    Attributes:
        patches: image patches of one slice (L); smaller slices are padded.
        prompt: prompt tokens (S), left-padded.
        cache: columns of the KV cache that decode reads (C): prompt plus new tokens.
    """

    patches: int
    prompt: int
    cache: int


@dataclass(frozen=True)
class Parts(Layers):
    """`Layers` of this family.

    Attributes:
        config: the checkpoint's ``config.json``.
        shape: the static lengths.
    """

    config: MiniCPMVConfig
    shape: StaticShape


def array_of(tensor: Weight) -> NDArray[np.generic]:
    """The numbers of a weight."""
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()


def lazily(tensor: Weight, change: Callable[[NDArray[Any]], NDArray[Any]], shape: tuple[int, ...]) -> Weight:
    """`change` of a tensor, computed when the weight is read."""
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(change(array_of(tensor)))),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(shape),
    )
