"""Random weights whose statistics resemble trained ones, layer by layer."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from zlib import crc32

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

RUN_ELEMENTS = 1 << 22
CHANNEL_SPREAD = 0.3  # standard deviation of the logarithm of an input channel's scale
NORM_SPREAD = 0.1
EMBEDDING_STD = 0.02
OUTPUT_PROJECTIONS = ("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight", "attn.proj.weight")

Run = Callable[[], NDArray[Any]]


def random_runs(name: str, shape: tuple[int, ...], *, seed: int, layers: int) -> Iterator[Run]:
    """A tensor's values in bfloat16, as flat runs of whole rows, each computed when it is called and on its own.

    Seed and name decide every value. Matrices have fan-in scaling with input channels of unequal size, as trained ones
    have; projections that end a residual branch are smaller by √(2·layers) (Radford et al. 2019, section 2.3), so that
    activations keep their size through any depth; norms lie around 1, biases are small.
    """
    key = (seed, crc32(name.encode()))
    if len(shape) < 2:
        module = name.rpartition(".")[0].rpartition(".")[2].lower()
        centre = float(name.endswith("weight") and ("norm" in module or module.startswith("ln")))
        yield partial(_vector, key, math.prod(shape), centre)
        return
    columns = math.prod(shape[1:])
    spread = _column_spread(name, columns, key, layers)
    rows = max(1, RUN_ELEMENTS // columns)
    for start in range(0, shape[0], rows):
        yield partial(_rows, (*key, start), min(rows, shape[0] - start), spread)


def _column_spread(name: str, columns: int, key: tuple[int, int], layers: int) -> NDArray[np.float32]:
    if "embed" in name or name.endswith(("query", "position_embedding.weight")):
        return np.full(columns, EMBEDDING_STD, np.float32)
    normal = np.random.default_rng(key).standard_normal(columns, np.float32)
    spread = np.exp(np.float32(CHANNEL_SPREAD) * normal) / np.float32(math.sqrt(columns))
    if name.endswith(OUTPUT_PROJECTIONS):
        spread /= np.float32(math.sqrt(2 * layers))
    return np.asarray(spread, np.float32)


def _vector(key: tuple[int, ...], size: int, centre: float) -> NDArray[Any]:
    normal = np.random.default_rng(key).standard_normal(size, np.float32)
    return (np.float32(centre) + np.float32(NORM_SPREAD) * normal).astype(ml_dtypes.bfloat16)


def _rows(key: tuple[int, ...], count: int, spread: NDArray[np.float32]) -> NDArray[Any]:
    values = np.random.default_rng(key).standard_normal((count, spread.size), np.float32)
    values *= spread
    return values.astype(ml_dtypes.bfloat16).reshape(-1)
