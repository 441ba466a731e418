"""The state of lowering one graph: which tensor each ONNX value became, in which precision and order.

Three ideas keep the op handlers (``lower_*.py``) small:

* A Value is a tensor plus the *order* of its dimensions. Transposes are only remembered; a TRANSPOSE is
  emitted when an op needs another order, so that NHWC convolutions, their elementwise neighbours and
  transposes back to back cost none.
* QuantizeLinear and DequantizeLinear are not ops: the quantized tensor itself flows, with its encoding.
* An op computes in integers when all its operands and its output have the same integer type, else in float.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.calibration.encodings import Encoding
from pocketport.compress.graph import constant, static_shape
from pocketport.targets.mediatek.emit import Emitter, Tensor

Order: TypeAlias = tuple[int, ...]
NHWC: Order = (0, 2, 3, 1)
ACTIVATION_TYPES = ("int8", "int16")
SAME_GRID = 2.0**-14  # two int16 scales closer than this differ by at most two steps over the whole range


class Refused(Exception):
    """A node that can't be lowered: why, and what to do."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why)
        self.why = why
        self.fix = fix


@dataclass(frozen=True)
class Value:
    """An ONNX value's tensor; emitted dimension i is ONNX dimension ``order[i]``."""

    tensor: Tensor
    order: Order


@dataclass(frozen=True)
class Weight:
    """A constant operand as the pivot holds it: integers with an encoding, or floats without."""

    array: NDArray[np.generic]
    encoding: Encoding | None

    def real(self) -> NDArray[np.float32]:
        """The real numbers, float32."""
        if self.encoding is None:
            return self.array.astype(np.float32, copy=False)
        return self.encoding.dequantize(self.array.astype(np.int32))


def identity(rank: int) -> Order:
    """ONNX's own order."""
    return tuple(range(rank))


class Lowering:
    """Lowers node by node into an Emitter. `graph` has its shapes filled in (``compress.graph.inferred``)."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.emitter = Emitter()
        self.folded: set[ir.Node] = set()
        self._values: dict[str, Value] = {}
        self._weights: dict[str, Weight] = {}
        self._derived: dict[tuple[Any, ...], Tensor] = {}

    # What the graph says.

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The static ONNX shape; Refused where a dimension is unknown."""
        shape = static_shape(value)
        if shape is None:
            raise Refused(f"the shape of {value.name!r} is not static", "fix every dimension when ingesting (--shape)")
        return shape

    def encoding(self, value: ir.Value) -> Encoding | None:
        """How the pivot quantizes `value` (its QuantizeLinear's encoding), None if it stays float."""
        for use in value.uses():
            if use.node.op_type == "QuantizeLinear":
                return encoding_of(use.node)
        return None

    def weight(self, value: ir.Value | None) -> Weight | None:
        """The constant behind `value` (an initializer, dequantized or not), None for an activation."""
        if value is None or value.name is None:
            return None
        if value.name in self._weights:
            return self._weights[value.name]
        array = constant(value)
        return None if array is None else Weight(array, None)

    # Defining and reading values.

    def define(self, value: ir.Value, tensor: Tensor, order: Order | None = None) -> None:
        """Say which tensor `value` became."""
        self._values[str(value.name)] = Value(tensor, order or identity(len(tensor.shape)))

    def define_weight(self, value: ir.Value, weight: Weight) -> None:
        """Say that `value` is a dequantized constant."""
        self._weights[str(value.name)] = weight

    def value(self, value: ir.Value) -> Value:
        """What `value` became; constants are emitted when they are first read as an activation."""
        name = str(value.name)
        if name not in self._values:
            weight = self.weight(value)
            if weight is None:
                raise Refused(f"nothing produces {name!r}", "check the model with onnx.checker")
            array, encoding = weight.array, weight.encoding
            if encoding is not None and encoding.axis is None and encoding.dtype in ACTIVATION_TYPES:
                made = self.emitter.constant(array, name=name, dtype=encoding.dtype, encoding=encoding)
            elif encoding is None and array.dtype.kind in "iub":
                whole = array.astype(np.int32) if array.dtype == np.int64 else array  # as int64 inputs become int32
                made = self.emitter.constant(whole, name=name)
            else:
                made = self.emitter.constant(weight.real(), name=name)
            self.define(value, made)
        return self._values[name]

    def read(self, value: ir.Value, order: Order | None = None) -> Tensor:
        """The tensor of `value` in the given order of dimensions (ONNX's own if not given)."""
        held = self.value(value)
        return self.reordered(held, order or identity(len(held.order)))

    def reordered(self, held: Value, order: Order) -> Tensor:
        """`held` with its dimensions in another order: folded for constants, a RESHAPE where only 1s move."""
        if held.order == order:
            return held.tensor
        moves = tuple(held.order.index(d) for d in order)
        tensor = held.tensor
        if tensor.data is not None:
            return self.emitter.constant(tensor.data.transpose(moves), dtype=tensor.dtype, encoding=tensor.encoding)
        shape = tuple(tensor.shape[m] for m in moves)
        if [m for m in moves if tensor.shape[m] != 1] == [d for d, n in enumerate(tensor.shape) if n != 1]:
            return self.reshaped(tensor, shape)
        key = ("TRANSPOSE", tensor.index, moves)
        if key not in self._derived:
            self._derived[key] = self._moved(
                "TRANSPOSE", [tensor, self.indices(moves)], tensor, shape, table="TransposeOptions"
            )
        return self._derived[key]

    def reshaped(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """`tensor` with another shape."""
        shape = tuple(int(d) for d in shape)
        if shape == tensor.shape:
            return tensor
        if tensor.data is not None:
            return self.emitter.constant(tensor.data.reshape(shape), dtype=tensor.dtype, encoding=tensor.encoding)
        key = ("RESHAPE", tensor.index, shape)
        if key not in self._derived:
            inputs = [tensor, self.indices(shape)]
            self._derived[key] = self._moved(
                "RESHAPE", inputs, tensor, shape, table="ReshapeOptions", newShape=list(shape)
            )
        return self._derived[key]

    def indices(self, values: Sequence[int]) -> Tensor:
        """An int32 constant: axes, shapes, paddings."""
        return self.emitter.constant(np.asarray(values, np.int32))

    def _moved(self, code: str, inputs: Sequence[Tensor], like: Tensor, shape: Sequence[int], **options: Any) -> Tensor:
        output = self.emitter.tensor(f"{code.lower()}_of_{like.index}", shape, like.dtype, like.encoding)
        self.emitter.operator(code, inputs, [output], **options)
        return output

    # Precision.

    def as_float(self, tensor: Tensor) -> Tensor:
        """`tensor` as float32: folded for constants, else a DEQUANTIZE shared by all readers."""
        if tensor.encoding is None:
            return tensor
        if tensor.data is not None:
            return self.emitter.constant(tensor.encoding.dequantize(tensor.data.astype(np.int32)))
        key = ("DEQUANTIZE", tensor.index)
        if key not in self._derived:
            made = self.emitter.tensor(f"float_of_{tensor.index}", tensor.shape, "float32")
            self.emitter.operator("DEQUANTIZE", [tensor], [made], table="DequantizeOptions")
            self._derived[key] = made
        return self._derived[key]

    def quantized(self, tensor: Tensor, encoding: Encoding, name: str = "") -> Tensor:
        """`tensor` in `encoding`: itself if it already is, else a QUANTIZE of float or of another scale."""
        if tensor.encoding is not None and same_grid(tensor.encoding, encoding):
            return tensor
        if tensor.data is not None:
            integers = encoding.quantize(self.as_float(tensor).data)  # type: ignore[arg-type]
            return self.emitter.constant(
                integers.astype(encoding.dtype), name=name, dtype=encoding.dtype, encoding=encoding
            )
        key = ("QUANTIZE", tensor.index, encoding.dtype, float(encoding.scale), int(encoding.zero_point))
        if key not in self._derived:
            made = self.emitter.tensor(name or f"quantized_of_{tensor.index}", tensor.shape, encoding.dtype, encoding)
            self.emitter.operator("QUANTIZE", [tensor], [made], table="QuantizeOptions")
            self._derived[key] = made
        return self._derived[key]

    def settle(self, tensors: Sequence[Tensor], output: ir.Value) -> tuple[list[Tensor], Encoding | None]:
        """The operands in the precision to compute in, and the output's encoding (None: float)."""
        encoding = self.encoding(output)
        if encoding is not None and all(t.encoding is not None and t.dtype == encoding.dtype for t in tensors):
            return list(tensors), encoding
        return [self.as_float(t) for t in tensors], None

    # Emitting.

    def emit(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        output: ir.Value,
        encoding: Encoding | None = None,
        *,
        order: Order | None = None,
        dtype: str = "float32",
        **options: Any,
    ) -> Tensor:
        """Append the op that computes `output` in the given order of dimensions; define `output` by it."""
        onnx_shape = self.shape(output)
        order = order or identity(len(onnx_shape))
        made = self.emitter.tensor(
            str(output.name), [onnx_shape[d] for d in order], encoding.dtype if encoding else dtype, encoding
        )
        self.emitter.operator(code, inputs, [made], **options)
        self.define(output, made, order)
        return made

    def internal(self, code: str, inputs: Sequence[Tensor], shape: Sequence[int], **options: Any) -> Tensor:
        """Append a float op whose result is only used inside a decomposition."""
        made = self.emitter.tensor(f"{code.lower()}_{inputs[0].index}", shape, "float32")
        self.emitter.operator(code, inputs, [made], **options)
        return made


def encoding_of(node: ir.Node) -> Encoding:
    """The encoding that a QuantizeLinear or DequantizeLinear node carries.

    Raises:
        Refused: scale or zero point is not a constant.
    """
    scale = constant(node.inputs[1])
    zero_point = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or (len(node.inputs) > 2 and zero_point is None):
        raise Refused("its scale or zero point is computed at run time", "quantize with constant encodings")
    source = zero_point.dtype if zero_point is not None else _integer_type(node)
    block = attribute(node, "block_size", 0)
    scale = scale.reshape(()) if scale.size == 1 else scale
    zeros = np.zeros(scale.shape, np.int32) if zero_point is None else zero_point.astype(np.int32).reshape(scale.shape)
    axis = None if scale.ndim == 0 else int(attribute(node, "axis", 1))
    return Encoding(str(source), scale.astype(np.float32), zeros, axis, int(block))


def _integer_type(node: ir.Node) -> str:
    value = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    return str((value.dtype or ir.DataType.UINT8).numpy()) if value is not None else "uint8"


def same_grid(first: Encoding, second: Encoding) -> bool:
    """Whether integers in `first` may be read as `second`: the same type, zero point and (nearly) scale.

    Nearly, because int16 SOFTMAX, LOGISTIC and TANH write at 1/32768 where a calibrated [0, 1] has 1/32767.
    Only int16 is treated so; its values keep `first`'s exact scale.
    """
    if first.dtype != second.dtype or first.axis is not None or second.axis is not None:
        return False
    if int(first.zero_point) != int(second.zero_point):
        return False
    tolerance = SAME_GRID if first.dtype == "int16" else 1e-6
    return abs(float(first.scale) / float(second.scale) - 1.0) <= tolerance


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """A node attribute's Python value, or `default`."""
    held = node.attributes.get(name)
    return default if held is None else held.value
