"""The example chip's runtime: numpy kernels for the ops in ``legality.toml``."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pocketport.calibration.storage import read_npz
from pocketport.errors import InputError
from pocketport.targets.contract import Arrays

PROGRAM, WEIGHTS, FORMAT = "program.json", "weights.npz", 1

Attributes: TypeAlias = Mapping[str, Any]
Tensor: TypeAlias = Any  # a numpy array of any dtype


class ProgramExecutor:
    """A loaded program. After `close` it holds no memory and can't run."""

    def __init__(self, path: Path) -> None:
        self._program = read_program(path)
        self._constants: dict[str, NDArray[np.generic]] = read_npz(path / WEIGHTS)

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run the ops in order, feeds and results by the pivot's names."""
        values = {**self._constants, **feeds}
        for op in self._program["ops"]:
            inputs = [None if name is None else values[name] for name in op["inputs"]]
            values[op["outputs"][0]] = KERNELS[op["op"]](inputs, op["attributes"])
        return {name: np.asarray(values[name]) for name in self._program["outputs"]}

    def close(self) -> None:
        """Free the constants."""
        self._constants = {}


def read_program(path: Path) -> dict[str, Any]:
    """The program of an artifact; InputError when `path` holds none of this format."""
    try:
        program: dict[str, Any] = json.loads((path / PROGRAM).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"not an example program: {error}", where=str(path), fix="compile again") from error
    if program.get("format") != FORMAT:
        raise InputError("unknown program format", where=str(path), fix="compile again with this version")
    return program


def _spread(values: Tensor, like: Tensor, attributes: Attributes) -> Tensor:
    """Scales or zero points brought to the shape of the tensor that they belong to."""
    if values.ndim == 0:
        return values
    axis = attributes.get("axis", 1) % like.ndim
    if attributes.get("block_size", 0):
        return np.repeat(values, attributes["block_size"], axis=axis)
    return values.reshape([-1 if d == axis else 1 for d in range(like.ndim)])


def _quantize(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, scale, zero = inputs
    limits = np.iinfo(zero.dtype)
    scaled = np.rint(x / _spread(scale, x, attributes)) + _spread(zero, x, attributes)
    return np.clip(scaled, limits.min, limits.max).astype(zero.dtype)


def _dequantize(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, scale, *zero = inputs
    centred = x.astype(np.int32)
    if zero:
        centred = centred - _spread(zero[0].astype(np.int32), x, attributes)
    return (centred * _spread(scale, x, attributes)).astype(np.float32)


def _conv(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, weight, *bias = inputs
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    row, column = attributes.get("strides", (1, 1))
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, ::row, ::column]
    y = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)
    return y + bias[0].reshape(1, -1, 1, 1) if bias else y


def _gemm(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, weight, *bias = inputs
    y = x @ (weight.T if attributes.get("transB", 0) else weight)
    return y + bias[0] if bias else y


def _layer_norm(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, gamma, *beta = inputs
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    y = centred / np.sqrt(variance + attributes.get("epsilon", 1e-5)) * gamma
    return y + beta[0] if beta else y


def _softmax(inputs: list[Any], attributes: Attributes) -> Tensor:
    axis = attributes.get("axis", -1)
    powers = np.exp(inputs[0] - inputs[0].max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _gelu(inputs: list[Any], attributes: Attributes) -> Tensor:
    """The tanh form only: numpy has no erf."""
    x = inputs[0]
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


KERNELS: Mapping[str, Callable[[list[Any], Attributes], Tensor]] = {
    "Add": lambda i, a: i[0] + i[1],
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Flatten": lambda i, a: i[0].reshape(int(np.prod(i[0].shape[: a.get("axis", 1)])), -1),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda i, a: i[0].mean(axis=(2, 3), keepdims=True),
    "LayerNormalization": _layer_norm,
    "MatMul": lambda i, a: i[0] @ i[1],
    "Mul": lambda i, a: i[0] * i[1],
    "QuantizeLinear": _quantize,
    "Relu": lambda i, a: np.maximum(i[0], 0),
    "Reshape": lambda i, a: i[0].reshape(i[1]),
    "Softmax": _softmax,
    "Transpose": lambda i, a: np.transpose(i[0], a["perm"]),
}
