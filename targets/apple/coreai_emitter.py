"""Writes Core AI programs (MLIR) through ``coreai-core``: everything float16, compressed weights stay packed integers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.encodings import Encoding
from pocketport.targets.apple.emitter import FLOAT16_MAX, Weight, Window, half
from pocketport.targets.apple.weights import CompressedWeight, PalettizedWeight, pack

Value = Any  # an MLIR value; coreai-core ships no types for it

_UNARY = {"gelu": ("gelu", {}), "gelu_tanh": ("gelu", {"approximate": "tanh"}), "abs": ("abs_", {})}
_BINARY = {
    "add": "broadcasting_add", "sub": "broadcasting_sub", "mul": "broadcasting_mul", "div": "broadcasting_divide",
    "pow": "broadcasting_pow", "max": "broadcasting_maximum", "min": "broadcasting_minimum", "equal": "broadcasting_equal",
    "greater": "broadcasting_greater",
}  # fmt: skip
INLINE_ELEMENTS = 16  # constants up to here, and uniform ones, are written into the program's text
ALIGNMENT = 16  # of constants in the file: readers put it in plain heap buffers, which are aligned no better
_UNSIGNED = np.uint32  # permutations, kernel sizes and strides
_SIGNED = np.int32  # axes, slices and shapes


class CoreAIEmitter:
    """Emits into the graph that is open; see ``coreai_program``. Implements ``Emitter``."""

    def __init__(self, parameters: Sequence[tuple[str, Value]]) -> None:
        from coreai._compiler.dialects import coreai

        self._ops = coreai
        self._parameters = dict(parameters)
        self._count = 0
        self.outputs: dict[str, Value] = {}

    def begin(self, name: str) -> None:
        """Core AI values have no names."""

    def parameter(self, name: str, shape: tuple[int, ...], *, integer: bool) -> Value:
        """The graph's argument of that name."""
        return self._parameters[name]

    def finish(self, outputs: dict[str, Value]) -> None:
        """Remember the outputs."""
        self.outputs = outputs

    # constants

    def constant(self, array: NDArray[np.generic]) -> Value:
        """Floats as float16, integers as int32, bool as it is."""
        if array.dtype.kind == "b":
            return self._ops.constant(array)
        return self._stored(half(array) if array.dtype.kind == "f" else array.astype(np.int32))

    def weight(self, weight: CompressedWeight) -> Value:
        """Packed integers, expanded per block to float16. The runtime takes scales of no other type than the result's."""
        if isinstance(weight, PalettizedWeight):
            indices = self._integers(weight.indices, weight.bits, signed=False)
            return self._ops.lut_to_dense(indices, self._stored(weight.table.astype(np.float16)), np.int16(0))
        scale = weight.scale.astype(np.float16)
        integers, zero_point = (
            self._integers(part, weight.bits, signed=weight.signed) for part in (weight.integers, weight.zero_point)
        )
        return self._ops.blockwise_shift_scale(
            integers, self._stored(scale), zero_point, np.zeros(scale.shape, np.float16)
        )

    def _integers(self, integers: NDArray[np.generic], bits: int, *, signed: bool) -> Value:
        if bits == 8:
            return self._stored(integers)
        from coreai._compiler.ir import IntegerType

        # coreai.constant() would store a byte per element below 8 bits, and the runtime then reads out of bounds
        element = (IntegerType.get_signed if signed else IntegerType.get_unsigned)(bits)
        return self._stored(pack(integers, bits), element, integers.shape)

    def _stored(self, array: NDArray[np.generic], element: Any = None, shape: tuple[int, ...] | None = None) -> Value:
        """A constant. Large ones get a name of ours: the library's are random, and would be in the file's bytes."""
        from coreai._compiler._mlir_libs._coreaiIR._bindings.mlir.dialects.coreai import create_elements_attr
        from coreai._compiler.ir import DenseResourceElementsAttr, Location, RankedTensorType

        kind = RankedTensorType.get(
            list(array.shape if shape is None else shape), element or _element_type(array.dtype)
        )
        if array.size < INLINE_ELEMENTS or not (array != array.reshape(-1)[0]).any():
            return self._ops.ConstantOp(
                value=create_elements_attr(Location.unknown(), kind, np.ascontiguousarray(array))
            ).result
        name = f"constant_{self._count}"
        self._count += 1
        buffer = np.ascontiguousarray(array)
        return self._ops.ConstantOp(
            value=DenseResourceElementsAttr.get_from_buffer(buffer, name, kind, ALIGNMENT)
        ).result

    def _weight(self, weight: Weight) -> Value:
        return self.weight(weight) if isinstance(weight, CompressedWeight) else self.constant(weight)

    # activations' integers

    def quantize(self, x: Value, encoding: Encoding) -> Value:
        """Round half to even, saturate."""
        return self._ops.quantize(x, *self._affine(x, encoding))

    def dequantize(self, x: Value, encoding: Encoding) -> Value:
        """To float16."""
        return self._ops.dequantize(x, *self._affine(x, encoding))

    def _affine(self, x: Value, encoding: Encoding) -> tuple[Any, ...]:
        zero_point = encoding.zero_point.astype(encoding.dtype)
        axes = np.arange(x.type.rank, dtype=_SIGNED)
        return np.float16(encoding.scale).reshape(()), zero_point.reshape(()), np.zeros((), np.float16), axes

    # element by element

    def unary(self, kind: str, x: Value) -> Value:
        """See Emitter."""
        name, options = _UNARY.get(kind, (kind, {}))
        return getattr(self._ops, name)(x, **options)

    def binary(self, kind: str, x: Value, y: Value) -> Value:
        """See Emitter."""
        if kind == "less":
            return self._ops.broadcasting_greater(y, x)
        return getattr(self._ops, _BINARY[kind])(x, y)

    def select(self, condition: Value, x: Value, y: Value) -> Value:
        """See Emitter."""
        return self._ops.broadcasting_where(condition, x, y)

    def cast(self, x: Value, kind: str) -> Value:
        """See Emitter."""
        return self._ops.cast(x, {"float": np.float16, "int": np.int32, "bool": np.bool_}[kind])

    def clip(self, x: Value, low: float, high: float) -> Value:
        """See Emitter."""
        if high < FLOAT16_MAX:
            x = self._ops.broadcasting_minimum(x, np.float16(high))
        return self._ops.broadcasting_maximum(x, np.float16(low)) if low > -FLOAT16_MAX else x

    # linear algebra

    def matmul(self, x: Value, y: Value) -> Value:
        """See Emitter."""
        return self._ops.broadcasting_batch_matmul(x, y)

    def linear(self, x: Value, weight: Weight, bias: NDArray[np.generic] | None) -> Value:
        """A matrix product; the weight lies transposed on disk."""
        across = weight.transposed((1, 0)) if isinstance(weight, CompressedWeight) else np.ascontiguousarray(weight.T)
        product = self._ops.broadcasting_batch_matmul(x, self._weight(across))
        return product if bias is None else self._ops.broadcasting_add(product, self.constant(bias))

    def conv(self, x: Value, weight: Weight, bias: NDArray[np.generic] | None, window: Window, groups: int) -> Value:
        """See Emitter; padding and bias are ops of their own."""
        x = self._padded(x, window, 0.0)
        strides, dilations = _unsigned(window.strides), _unsigned(window.dilations)
        result = self._ops.conv2d(x, self._weight(weight), strides, dilations, _UNSIGNED(groups))
        return self._biased(result, bias)

    def conv_transpose(
        self,
        x: Value,
        weight: Weight,
        bias: NDArray[np.generic] | None,
        window: Window,
        groups: int,
        out_shape: tuple[int, ...],
    ) -> Value:
        """Without padding, then cut to what the padding leaves."""
        zeros = _unsigned((0, 0))
        full = self._ops.conv_transpose2d(
            x, self._weight(weight), _unsigned(window.strides), zeros, _unsigned(window.dilations), zeros, _UNSIGNED(groups)
        )  # fmt: skip
        top, left = window.pads[:2]
        if any(window.pads):
            end = (out_shape[0], out_shape[1], top + out_shape[2], left + out_shape[3])
            full = self.slice(full, (0, 0, top, left), end, (1, 1, 1, 1))
        return self._biased(full, bias)

    def _biased(self, x: Value, bias: NDArray[np.generic] | None) -> Value:
        return x if bias is None else self._ops.broadcasting_add(x, self.constant(bias.reshape(-1, 1, 1)))

    def _padded(self, x: Value, window: Window, value: float) -> Value:
        top, left, bottom, right = window.pads
        return self.pad(x, (0, 0, top, left), (0, 0, bottom, right), value) if any(window.pads) else x

    def max_pool(self, x: Value, window: Window) -> Value:
        """See Emitter."""
        x = self._padded(x, window, -FLOAT16_MAX)
        sizes = [_unsigned(v) for v in (window.kernel, window.strides, window.dilations)]
        shape = list(x.type.shape)
        for axis in (0, 1):
            reach = window.dilations[axis] * (window.kernel[axis] - 1) + 1
            shape[2 + axis] = (shape[2 + axis] - reach) // window.strides[axis] + 1
        return self._ops.maxpool2d(self._half(shape), x, *sizes, np.bool_(False))

    def average_pool(self, x: Value, window: Window, *, count_pads: bool) -> Value:
        """The windows' sums over the number of elements counted, which is a constant."""
        height, width = x.type.shape[2:]
        sizes = [_unsigned(v) for v in (window.kernel, window.strides)]
        sums = self._ops.sumpool2d(self._padded(x, window, 0.0), *sizes, self._stored(_unsigned(window.dilations)))
        rows = _counts(height, window, 0, count_pads=count_pads)
        columns = _counts(width, window, 1, count_pads=count_pads)
        return self.binary("mul", sums, self.constant(1.0 / np.outer(rows, columns)[None, None]))

    # reductions

    def reduce(self, kind: str, x: Value, axes: tuple[int, ...], *, keep: bool) -> Value:
        """See Emitter."""
        shape = [1 if d in axes else n for d, n in enumerate(x.type.shape)]
        result = getattr(self._ops, f"reduce_{kind}")(x, _signed(axes))
        return result if keep else self.reshape(result, tuple(n for d, n in enumerate(shape) if d not in axes))

    def argmax(self, x: Value, axis: int) -> Value:
        """See Emitter."""
        return self.cast(self._ops.argmax(x, _SIGNED(axis)), "int")

    def softmax(self, x: Value, axis: int) -> Value:
        """See Emitter."""
        return self._ops.softmax(x, _SIGNED(axis))

    def layer_norm(
        self,
        x: Value,
        axes: tuple[int, ...],
        gamma: NDArray[np.generic],
        beta: NDArray[np.generic] | None,
        epsilon: float,
    ) -> Value:
        """Statistics in float32, ONNX's default ``stash_type``: a square overflows float16 from 256 on."""
        wide = self._ops.cast(x, np.float32)
        centred = self._ops.broadcasting_sub(wide, self._ops.reduce_mean(wide, _signed(axes)))
        scaled = self._ops.broadcasting_mul(self._over_rms(centred, axes, epsilon), self.constant(gamma))
        return scaled if beta is None else self._ops.broadcasting_add(scaled, self.constant(beta))

    def rms_norm(self, x: Value, axes: tuple[int, ...], gamma: NDArray[np.generic], epsilon: float) -> Value:
        """See layer_norm."""
        wide = self._ops.cast(x, np.float32)
        return self._ops.broadcasting_mul(self._over_rms(wide, axes, epsilon), self.constant(gamma))

    def _over_rms(self, x: Value, axes: tuple[int, ...], epsilon: float) -> Value:
        mean = self._ops.reduce_mean(self._ops.broadcasting_mul(x, x), _signed(axes))
        factor = self._ops.rsqrt(self._ops.broadcasting_add(mean, np.float32(epsilon)))
        return self._ops.cast(self._ops.broadcasting_mul(x, factor), np.float16)

    # data movement

    def reshape(self, x: Value, shape: tuple[int, ...]) -> Value:
        """See Emitter."""
        return x if tuple(x.type.shape) == shape else self._ops.reshape(x, _signed(shape))

    def transpose(self, x: Value, permutation: tuple[int, ...]) -> Value:
        """See Emitter."""
        return self._ops.transpose(x, _unsigned(permutation))

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """See Emitter."""
        return self._ops.concat(_SIGNED(axis), list(values))

    def slice(self, x: Value, begin: tuple[int, ...], end: tuple[int, ...], step: tuple[int, ...]) -> Value:
        """See Emitter."""
        return self._ops.slice_(x, _signed(begin), _signed(end), _signed(step))

    def gather(self, x: Value, indices: Value, axis: int, out_shape: tuple[int, ...]) -> Value:
        """Rows of x with `axis` in front, which is then put back in place."""
        rank = x.type.rank
        front = (axis, *(d for d in range(rank) if d != axis))
        rows = self.transpose(x, front) if axis else x
        flat = self._ops.reshape(indices, _signed((int(np.prod(indices.type.shape)), 1)))
        taken = self._ops.gather_nd(rows, flat)
        if axis:
            taken = self.transpose(taken, tuple(np.argsort(front)))
        return self.reshape(taken, out_shape)

    def pad(self, x: Value, before: tuple[int, ...], after: tuple[int, ...], value: float) -> Value:
        """See Emitter."""
        sizes = np.stack([before, after], axis=1).reshape(-1)
        return self._ops.pad(x, sizes.astype(_UNSIGNED), np.float16(value))

    def expand(self, x: Value, shape: tuple[int, ...]) -> Value:
        """See Emitter."""
        return self._ops.broadcast_to(x, _signed(shape))

    def upsample(self, x: Value, factors: tuple[int, int]) -> Value:
        """Nearest-neighbour interpolation at half-pixel centres, which repeats pixels for whole factors."""
        from coreai._compiler.ir import Attribute

        batch, channels, height, width = x.type.shape
        shape = _signed((batch, channels, height * factors[0], width * factors[1]))
        scale = np.array([1, 1, *factors], np.float32)
        mode = Attribute.parse("#coreai.interpolation_mode<nearest_neighbor>")
        return self._ops.interpolate(x, shape, scale, np.zeros(4, np.float32), mode)

    def _half(self, shape: Sequence[int]) -> Any:
        from coreai._compiler.ir import F16Type, RankedTensorType

        return RankedTensorType.get(list(shape), F16Type.get())


def _element_type(dtype: np.dtype[Any]) -> Any:
    from coreai._compiler.ir import F16Type, IntegerType

    if dtype == np.float16:
        return F16Type.get()
    return (IntegerType.get_unsigned if dtype.kind == "u" else IntegerType.get_signed)(8 * dtype.itemsize)


def _unsigned(values: Sequence[int]) -> NDArray[np.uint32]:
    return np.array(values, _UNSIGNED)


def _signed(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, _SIGNED)


def _counts(size: int, window: Window, axis: int, *, count_pads: bool) -> NDArray[np.float64]:
    """How many elements each window along one axis averages over."""
    before, after = window.pads[axis], window.pads[axis + 2]
    inside = np.full(before + size + after, float(count_pads))
    inside[before : before + size] = 1.0
    windows = np.lib.stride_tricks.sliding_window_view(inside, window.kernel[axis])[:: window.strides[axis]]
    return np.asarray(windows.sum(axis=1))
