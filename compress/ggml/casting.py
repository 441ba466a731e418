"""Tensors of a checkpoint as the bytes of a GGUF file: floats cast in runs of rows, packed ones in the file's order."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.checkpoint import StoredTensor
from pocketport.compress.ggml.names import Form, Place, rotary_rows
from pocketport.compress.ggml.writer import TensorData
from pocketport.compress.graph import dimensions
from pocketport.compress.quantized_weights import PackedWeight, QuantizedWeights
from pocketport.errors import InputError

RUN_ELEMENTS = 1 << 22
FLOAT_DTYPES: Mapping[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
THIRDS = 3


def float_tensor(place: Place, tensor: ir.TensorProtocol, kind: str, heads: int = 1) -> TensorData:
    """A tensor that stays float.

    Args:
        place: its names and how its numbers differ.
        tensor: of the checkpoint.
        kind: ``f32``, ``f16`` or ``bf16``.
        heads: of queries or keys, where `place` reorders rows.

    Raises:
        InputError: when its runs are taken: a number is too large for `kind`.
    """
    shape = dimensions(tensor)
    if place.form is Form.TRANSPOSED:
        shape = shape[::-1]
    elif place.form is Form.THIRD:
        shape = (shape[0] // THIRDS, *shape[1:])
    return TensorData(place.gguf, kind, shape, lambda: _cast(place, tensor, FLOAT_DTYPES[kind], heads))


def packed_tensor(place: Place, weights: QuantizedWeights, heads: int = 1) -> TensorData:
    """A tensor in one of ggml's block formats; `heads` as in `float_tensor`."""
    form = weights.form(place.published)
    shape = tuple(form["shape"])

    def runs() -> Iterator[NDArray[Any]]:
        weight = weights[place.published]
        assert isinstance(weight, PackedWeight)
        rows = weight.data.reshape(shape[0], -1)
        yield rows if place.form is Form.SAME else rows[rotary_rows(shape[0], heads)]

    return TensorData(place.gguf, form["type"], shape, runs)


def computed_tensor(name: str, kind: str, shape: tuple[int, ...], compute: Callable[[], NDArray[Any]]) -> TensorData:
    """A tensor that is computed when it is written, float32 before the cast to `kind`."""
    return TensorData(name, kind, shape, lambda: [_checked(compute().astype(np.float32), FLOAT_DTYPES[kind], name)])


def _cast(place: Place, tensor: ir.TensorProtocol, dtype: np.dtype[Any], heads: int) -> Iterator[NDArray[Any]]:
    array = tensor.mapped() if isinstance(tensor, StoredTensor) else np.asarray(tensor.numpy())
    order: NDArray[np.intp] | None = None
    if place.form is Form.TRANSPOSED:
        array = array.T
    elif place.form is Form.THIRD:
        length = len(array) // THIRDS
        array = array[place.part * length : (place.part + 1) * length]
    elif place.form in (Form.QUERY_ROWS, Form.KEY_ROWS):
        order = rotary_rows(len(array), heads)
    step = max(1, RUN_ELEMENTS * len(array) // array.size)
    for start in range(0, len(array), step):
        run = array[start : start + step] if order is None else array[order[start : start + step]]
        shifted = run.astype(np.float32) + 1 if place.form is Form.PLUS_ONE else run
        yield _checked(shifted, dtype, place.published)


def _checked(run: NDArray[Any], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    if run.dtype == dtype:
        return run
    with np.errstate(over="ignore"):
        cast = run.astype(np.float32, copy=False).astype(dtype)
    if dtype == np.float16 and not np.isfinite(cast).all():
        raise InputError(
            "it holds numbers that float16 can't",
            where=f"tensor {name}",
            fix="write the variant f32, or a quantized one",
        )
    return cast
