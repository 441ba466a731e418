"""Inputs without meaning, on which two forms of one model are compared."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.graph import shape_of

ZEROS = 8  # one integer of so many


def random_input(value: ir.Value, rng: np.random.Generator) -> NDArray[Any]:
    """Normal floats; integers and booleans 1, here and there 0, never the first ones along the last dimension.

    Indices of 0 and 1 are in every table. As a mask such integers hide some tokens, but leave every query one that it sees: what
    attention gives without any is not the same in all forms of a model (see `BoundMasks`).
    """
    assert value.dtype is not None
    shape, dtype = shape_of(value), value.dtype.numpy()
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    integers = rng.integers(0, ZEROS, shape) > 0
    integers[..., :1] = True
    return np.asarray(integers).astype(dtype)
