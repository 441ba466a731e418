"""Writes Core ML programs (MIL) through ``coremltools``: everything float16, compressed weights stay constexpr ops."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.encodings import Encoding
from pocketport.targets.apple.emitter import FLOAT16_MAX, Weight, Window, half
from pocketport.targets.apple.weights import CompressedWeight, PalettizedWeight

Value = Any  # a MIL variable; coremltools ships no types for it

_BINARY = {
    "add": "add", "sub": "sub", "mul": "mul", "div": "real_div", "pow": "pow", "max": "maximum", "min": "minimum",
    "equal": "equal", "greater": "greater", "less": "less",
}  # fmt: skip
_GELU = {"gelu": "EXACT", "gelu_tanh": "TANH_APPROXIMATION"}
_CAST = {"float": "fp16", "int": "int32", "bool": "bool"}
LEAST_EPSILON = float(np.finfo(np.float16).smallest_subnormal)  # a norm's epsilon is float16 and may not be 0


class CoreMLEmitter:
    """Emits into the MIL function that is open; see ``coreml_program``. Implements ``Emitter``."""

    def __init__(self, parameters: Mapping[str, Value], names: Mapping[str, str]) -> None:
        from coremltools.converters.mil.mil import Builder

        self._names = names
        self._build = Builder
        self._parameters = parameters
        self._name = "value"
        self._count = 0
        self.outputs: dict[str, Value] = {}

    def begin(self, name: str) -> None:
        """Values are named after ONNX's, so that a profile on the device can be read."""
        self._name = next(iter(mil_names([name]).values()))

    def _emit(self, operation: str, **arguments: Any) -> Value:
        self._count += 1
        return getattr(self._build, operation)(name=f"{self._name}_{self._count}", **arguments)

    def parameter(self, name: str, shape: tuple[int, ...], *, integer: bool) -> Value:
        """The function's input of that name."""
        return self._parameters[self._names[name]]

    def finish(self, outputs: dict[str, Value]) -> None:
        """Outputs are identities: an output may be an input, or asked for twice."""
        self.outputs = {n: self._build.identity(x=v, name=self._names[n]) for n, v in outputs.items()}

    # constants

    def constant(self, array: NDArray[np.generic]) -> Value:
        """Floats as float16, integers as int32, bool as it is."""
        return self._emit("const", val=_constant(array))

    def weight(self, weight: CompressedWeight) -> Value:
        """``constexpr_blockwise_shift_scale`` or ``constexpr_lut_to_dense``: the package keeps the integers, packed."""
        from coremltools.converters.mil.mil import types
        from coremltools.converters.mil.mil.types.type_mapping import nptype_from_builtin

        stored = nptype_from_builtin(getattr(types, weight.dtype))
        if isinstance(weight, PalettizedWeight):
            return self._emit(
                "constexpr_lut_to_dense", indices=weight.indices.astype(stored), lut=weight.table.astype(np.float16)
            )
        arguments = {"data": weight.integers.astype(stored), "scale": weight.scale.astype(np.float16)}
        if np.any(weight.zero_point):
            arguments["offset"] = weight.zero_point.astype(stored)
        return self._emit("constexpr_blockwise_shift_scale", **arguments)

    def _weight(self, weight: Weight) -> Value:
        return self.weight(weight) if isinstance(weight, CompressedWeight) else self.constant(weight)

    # activations' integers

    def quantize(self, x: Value, encoding: Encoding) -> Value:
        """Round half to even, saturate."""
        return self._emit("quantize", input=x, output_dtype=encoding.dtype, **_affine(encoding))

    def dequantize(self, x: Value, encoding: Encoding) -> Value:
        """To float16."""
        return self._emit("dequantize", input=x, **_affine(encoding))

    # element by element

    def unary(self, kind: str, x: Value) -> Value:
        """See Emitter."""
        if kind in _GELU:
            return self._emit("gelu", x=x, mode=_GELU[kind])
        return self._emit(kind, x=x)

    def binary(self, kind: str, x: Value, y: Value) -> Value:
        """See Emitter."""
        return self._emit(_BINARY[kind], x=x, y=y)

    def select(self, condition: Value, x: Value, y: Value) -> Value:
        """See Emitter."""
        return self._emit("select", cond=condition, a=x, b=y)

    def cast(self, x: Value, kind: str) -> Value:
        """See Emitter."""
        return self._emit("cast", x=x, dtype=_CAST[kind])

    def clip(self, x: Value, low: float, high: float) -> Value:
        """See Emitter."""
        bounds = np.clip([low, high], -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)
        return self._emit("clip", x=x, alpha=bounds[0], beta=bounds[1])

    # linear algebra

    def matmul(self, x: Value, y: Value) -> Value:
        """See Emitter."""
        return self._emit("matmul", x=x, y=y)

    def linear(self, x: Value, weight: Weight, bias: NDArray[np.generic] | None) -> Value:
        """See Emitter."""
        return self._emit("linear", x=x, weight=self._weight(weight), **_bias(bias))

    def conv(self, x: Value, weight: Weight, bias: NDArray[np.generic] | None, window: Window, groups: int) -> Value:
        """See Emitter."""
        kernel = self._weight(weight)
        return self._emit(
            "conv", x=x, weight=kernel, groups=groups, dilations=window.dilations, **_placed(window), **_bias(bias)
        )

    def conv_transpose(
        self,
        x: Value,
        weight: Weight,
        bias: NDArray[np.generic] | None,
        window: Window,
        groups: int,
        out_shape: tuple[int, ...],
    ) -> Value:
        """See Emitter."""
        arguments = dict(
            groups=groups, dilations=window.dilations, output_shape=out_shape, **_placed(window), **_bias(bias)
        )
        return self._emit("conv_transpose", x=x, weight=self._weight(weight), **arguments)

    def max_pool(self, x: Value, window: Window) -> Value:
        """See Emitter."""
        return self._emit("max_pool", x=x, kernel_sizes=window.kernel, **_placed(window))

    def average_pool(self, x: Value, window: Window, *, count_pads: bool) -> Value:
        """See Emitter."""
        exclude = not count_pads
        return self._emit(
            "avg_pool", x=x, kernel_sizes=window.kernel, exclude_padding_from_average=exclude, **_placed(window)
        )

    # reductions

    def reduce(self, kind: str, x: Value, axes: tuple[int, ...], *, keep: bool) -> Value:
        """See Emitter."""
        return self._emit(f"reduce_{kind}", x=x, axes=list(axes), keep_dims=keep)

    def argmax(self, x: Value, axis: int) -> Value:
        """See Emitter."""
        return self._emit("reduce_argmax", x=x, axis=axis, keep_dims=True)

    def softmax(self, x: Value, axis: int) -> Value:
        """See Emitter."""
        return self._emit("softmax", x=x, axis=axis)

    def layer_norm(
        self,
        x: Value,
        axes: tuple[int, ...],
        gamma: NDArray[np.generic],
        beta: NDArray[np.generic] | None,
        epsilon: float,
    ) -> Value:
        """See Emitter."""
        arguments = {"gamma": _constant(gamma), "epsilon": np.float16(max(epsilon, LEAST_EPSILON))}
        if beta is not None:
            arguments["beta"] = _constant(beta)
        return self._emit("layer_norm", x=x, axes=list(axes), **arguments)

    def rms_norm(self, x: Value, axes: tuple[int, ...], gamma: NDArray[np.generic], epsilon: float) -> Value:
        """Half of layer_norm([x, -x]): its mean is 0 and its variance the mean square, so nothing overflows float16."""
        mirrored = self._emit("mul", x=x, y=np.float16(-1))
        both = self._emit("concat", values=[x, mirrored], axis=axes[-1])
        gammas = np.concatenate([gamma, gamma], axis=-1)
        normed = self.layer_norm(both, axes, gammas, None, epsilon)
        shape = tuple(x.shape)
        return self.slice(normed, (0,) * len(shape), shape, (1,) * len(shape))

    # data movement

    def reshape(self, x: Value, shape: tuple[int, ...]) -> Value:
        """See Emitter."""
        return x if tuple(x.shape) == shape else self._emit("reshape", x=x, shape=list(shape))

    def transpose(self, x: Value, permutation: tuple[int, ...]) -> Value:
        """See Emitter."""
        return self._emit("transpose", x=x, perm=list(permutation))

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """See Emitter."""
        return self._emit("concat", values=list(values), axis=axis)

    def slice(self, x: Value, begin: tuple[int, ...], end: tuple[int, ...], step: tuple[int, ...]) -> Value:
        """See Emitter."""
        return self._emit("slice_by_index", x=x, begin=list(begin), end=list(end), stride=list(step))

    def gather(self, x: Value, indices: Value, axis: int, out_shape: tuple[int, ...]) -> Value:
        """See Emitter."""
        return self._emit("gather", x=x, indices=indices, axis=axis)

    def pad(self, x: Value, before: tuple[int, ...], after: tuple[int, ...], value: float) -> Value:
        """See Emitter."""
        sizes = np.stack([before, after], axis=1).reshape(-1).astype(np.int32)
        return self._emit("pad", x=x, pad=sizes, mode="constant", constant_val=np.float16(value))

    def expand(self, x: Value, shape: tuple[int, ...]) -> Value:
        """See Emitter."""
        return self._emit("tile", x=x, reps=[n // o for n, o in zip(shape, x.shape, strict=True)])

    def upsample(self, x: Value, factors: tuple[int, int]) -> Value:
        """See Emitter."""
        return self._emit(
            "upsample_nearest_neighbor", x=x, scale_factor_height=factors[0], scale_factor_width=factors[1]
        )


def mil_names(names: Iterable[str]) -> dict[str, str]:
    """Identifiers that Core ML takes, one for each distinct name, told apart by a number where they would meet."""
    chosen: dict[str, str] = {}
    for name in names:
        if name in chosen:
            continue
        safe = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
        safe = safe if safe and not safe[0].isdigit() else f"_{safe}"
        taken = set(chosen.values())
        chosen[name] = next(n for n in (safe, *(f"{safe}_{i}" for i in range(2, len(taken) + 3))) if n not in taken)
    return chosen


def _constant(array: NDArray[np.generic]) -> NDArray[np.generic]:
    if array.dtype.kind == "b":
        return array
    return half(array) if array.dtype.kind == "f" else array.astype(np.int32)


def _affine(encoding: Encoding) -> dict[str, Any]:
    zero_point = encoding.zero_point.astype(encoding.dtype).reshape(())[()]
    return {"scale": np.float16(encoding.scale), **({"zero_point": zero_point} if zero_point else {})}


def _bias(bias: NDArray[np.generic] | None) -> dict[str, Any]:
    return {} if bias is None else {"bias": _constant(bias)}


def _placed(window: Window) -> dict[str, Any]:
    top, left, bottom, right = window.pads
    return {"strides": window.strides, "pad_type": "custom", "pad": [top, bottom, left, right]}
