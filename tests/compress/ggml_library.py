"""The format owner's own quantizers and dequantizers: libggml by ctypes, and the numpy ones of the package gguf."""

import ctypes
from functools import cache
from importlib import resources

import gguf
import numpy as np
from numpy.typing import NDArray

from pocketport.compress.ggml.types import TYPES

C_NAMES = {"q2_k": "q2_K", "q3_k": "q3_K", "q4_k": "q4_K", "q5_k": "q5_K", "q6_k": "q6_K"}
FLOATS = ctypes.POINTER(ctypes.c_float)


@cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(resources.files("libggml") / "lib64" / "libggml-base.so"))
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, FLOATS, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, FLOATS,
    ]  # fmt: skip
    return loaded


def quantized(kind: str, matrix: NDArray[np.float32], importance: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    """What llama.cpp makes of a matrix [rows, K], bytes [rows, bytes of a row]."""
    rows, columns = matrix.shape
    result = np.zeros((rows, TYPES[kind].row_bytes(columns)), np.uint8)
    heed = None if importance is None else importance.ctypes.data_as(FLOATS)
    source = np.ascontiguousarray(matrix).ctypes.data_as(FLOATS)
    written = library().ggml_quantize_chunk(TYPES[kind].code, source, result.ctypes.data, 0, rows, columns, heed)
    assert written == result.nbytes
    return result


def dequantized(kind: str, data: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """What llama.cpp reads from the bytes of rows."""
    result = np.empty((len(data), columns), np.float32)
    function = getattr(library(), f"dequantize_row_{C_NAMES.get(kind, kind)}")
    function(
        ctypes.c_void_p(data.ctypes.data), result.ctypes.data_as(FLOATS), ctypes.c_int64(result.size)
    )  # fmt: skip
    return result


def dequantized_by_gguf(kind: str, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The same by the package gguf."""
    result: NDArray[np.float32] = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind.upper()])
    return result
