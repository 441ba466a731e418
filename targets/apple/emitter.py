"""What a lowering needs to be able to write: about thirty primitives, once for Core AI and once for Core ML.

``onnx_*.py`` say what each ONNX op means in these primitives, so that both formats have one semantics.
All floats are float16 and all integers int32 in what is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.encodings import Encoding
from pocketport.targets.apple.weights import CompressedWeight

FLOAT16_MAX = float(np.finfo(np.float16).max)
Weight = NDArray[np.generic] | CompressedWeight
V = TypeVar("V")


@dataclass(frozen=True)
class Window:
    """A sliding window over H and W: `pads` is (top, left, bottom, right) as ONNX has it."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)


class Emitter(Protocol[V]):
    """Writes a program, value by value. Shapes are static, axes are non-negative, NCHW."""

    def begin(self, name: str) -> None:
        """Name what is emitted next after the ONNX value that it makes."""

    def parameter(self, name: str, shape: tuple[int, ...], *, integer: bool) -> V:
        """An input of the program: float16 or int32."""

    def constant(self, array: NDArray[np.generic]) -> V:
        """A constant: floats as float16, integers as int32, bool as bool."""

    def weight(self, weight: CompressedWeight) -> V:
        """A compressed constant, expanded to float16 where it is used."""

    def quantize(self, x: V, encoding: Encoding) -> V:
        """Float to 8-bit integers, per tensor."""

    def dequantize(self, x: V, encoding: Encoding) -> V:
        """8-bit integers to float16, per tensor."""

    def unary(self, kind: str, x: V) -> V:
        """One of abs, cos, erf, exp, gelu, gelu_tanh, log, relu, sigmoid, sin, sqrt, tanh."""

    def binary(self, kind: str, x: V, y: V) -> V:
        """Broadcasting add, sub, mul, div, pow, max, min; equal, greater, less (bool)."""

    def select(self, condition: V, x: V, y: V) -> V:
        """x where `condition`, else y, broadcasting."""

    def cast(self, x: V, kind: str) -> V:
        """To ``float``, ``int`` or ``bool``."""

    def clip(self, x: V, low: float, high: float) -> V:
        """min(max(x, low), high)."""

    def matmul(self, x: V, y: V) -> V:
        """Matrix product of the last two dimensions, broadcasting the others."""

    def linear(self, x: V, weight: Weight, bias: NDArray[np.generic] | None) -> V:
        """x [..., K] · weight [N, K] transposed + bias [N]."""

    def conv(self, x: V, weight: Weight, bias: NDArray[np.generic] | None, window: Window, groups: int) -> V:
        """2-D convolution, weight [C out, C in / groups, kH, kW]."""

    def conv_transpose(
        self,
        x: V,
        weight: Weight,
        bias: NDArray[np.generic] | None,
        window: Window,
        groups: int,
        out_shape: tuple[int, ...],
    ) -> V:
        """Its transpose, weight [C in, C out / groups, kH, kW]."""

    def max_pool(self, x: V, window: Window) -> V:
        """Maximum over windows; padding never wins."""

    def average_pool(self, x: V, window: Window, *, count_pads: bool) -> V:
        """Mean over windows, padding counted as zeros or not at all."""

    def reduce(self, kind: str, x: V, axes: tuple[int, ...], *, keep: bool) -> V:
        """mean, sum, max or min."""

    def argmax(self, x: V, axis: int) -> V:
        """Place of the first greatest along one axis, which stays as a dimension of 1 (int32)."""

    def softmax(self, x: V, axis: int) -> V:
        """Softmax along one axis."""

    def layer_norm(
        self, x: V, axes: tuple[int, ...], gamma: NDArray[np.generic], beta: NDArray[np.generic] | None, epsilon: float
    ) -> V:
        """Over the trailing `axes`, with the statistics in more than float16's range."""

    def rms_norm(self, x: V, axes: tuple[int, ...], gamma: NDArray[np.generic], epsilon: float) -> V:
        """The same without centring."""

    def reshape(self, x: V, shape: tuple[int, ...]) -> V:
        """Another shape of as many elements."""

    def transpose(self, x: V, permutation: tuple[int, ...]) -> V:
        """Permuted dimensions."""

    def concat(self, values: Sequence[V], axis: int) -> V:
        """Joined along `axis`."""

    def slice(self, x: V, begin: tuple[int, ...], end: tuple[int, ...], step: tuple[int, ...]) -> V:
        """One range per dimension, 0 ≤ begin ≤ end ≤ size, step > 0."""

    def gather(self, x: V, indices: V, axis: int, out_shape: tuple[int, ...]) -> V:
        """Slices of x along `axis`, 0 ≤ indices < size."""

    def pad(self, x: V, before: tuple[int, ...], after: tuple[int, ...], value: float) -> V:
        """Constant padding per dimension."""

    def expand(self, x: V, shape: tuple[int, ...]) -> V:
        """Broadcast to `shape` of the same rank."""

    def upsample(self, x: V, factors: tuple[int, int]) -> V:
        """Each pixel repeated, H and W by whole factors."""

    def finish(self, outputs: dict[str, V]) -> None:
        """Say which values the program returns, by name."""


class Discard:
    """An emitter that writes nothing: lowering into it finds what can't be lowered, without a toolchain."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def half(array: NDArray[np.generic]) -> NDArray[np.float16]:
    """float16, with what lies beyond its range at the range's end."""
    return np.clip(array.astype(np.float64), -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)
