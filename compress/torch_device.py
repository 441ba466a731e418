"""Where torch computes, and how it takes the arrays of a checkpoint."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import RLock
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from pocketport.compress.checkpoint import StoredTensor

warnings.filterwarnings(
    "ignore", "The given NumPy array is not writable", module=__name__
)  # mapped weights are only read

_ALONE = RLock()


@cache
def best_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def matrix_dtype() -> torch.dtype:
    """The dtype of large matrix products: bfloat16 where the hardware has units for it that keep float32 sums.

    That is a GPU, or a CPU with AMX tiles; AVX-512's own bfloat16 products are slower than its float32 ones.
    """
    tiles = best_device().type == "cuda" or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if tiles else torch.float32


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch: factors and sums taken by two of them have other last bits. Matrix products have the same by any number.

    The number is in part the whole process's: one caller at a time, who may come again from within.
    """
    with _ALONE:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def as_torch(array: NDArray[Any]) -> torch.Tensor:
    """A numpy array as a tensor over the same memory, bfloat16 included."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def row_runs(matrix: torch.Tensor, rows: int) -> list[torch.Tensor]:
    """Views of at most `rows` rows (at least one), in order."""
    step = max(1, rows)
    return [matrix[start : start + step] for start in range(0, len(matrix), step)]


def stored_as_torch(tensor: ir.TensorProtocol) -> torch.Tensor:
    """A checkpoint's tensor in its stored dtype where it is in place (memory-mapped), else as it reads."""
    return as_torch(tensor.mapped() if isinstance(tensor, StoredTensor) else np.asarray(tensor.numpy()))
