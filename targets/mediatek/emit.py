"""Writing .tflite flatbuffers: tensors, operators, one subgraph, one signature. Same calls, same bytes.

The schema is LiteRT's own (``ai_edge_litert.schema_py_generated``); nothing of the ONNX side is known here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.encodings import Encoding
from pocketport.errors import ToolchainError
from pocketport.files import atomic_file

SIGNATURE = "serving_default"
FILE_IDENTIFIER = b"TFL3"
BUFFER_ALIGNMENT = 16  # the schema's force_align on tensor data, which LiteRT's kernels rely on
LARGEST_FILE = 2**31 - 1  # flatbuffer offsets are 32-bit

# Kernel versions that have the types and attributes used here, as the registry of LiteRT 2.3 numbers them (it refuses
# a file that asks for more). An op that is not listed is used in its first version.
OP_VERSIONS: Mapping[str, int] = {
    "ADD": 4, "AVERAGE_POOL_2D": 3, "BATCH_MATMUL": 4, "CAST": 1, "CONCATENATION": 3, "CONV_2D": 5,
    "DEPTHWISE_CONV_2D": 5, "DEQUANTIZE": 5, "FULLY_CONNECTED": 12, "GATHER": 4, "GELU": 1, "LEAKY_RELU": 2,
    "LOGISTIC": 3, "MAXIMUM": 3, "MAX_POOL_2D": 3, "MEAN": 3, "MINIMUM": 3, "MUL": 4, "PAD": 3, "PADV2": 3,
    "QUANTIZE": 3, "REDUCE_MAX": 3, "RELU": 3, "RESIZE_BILINEAR": 4, "RESIZE_NEAREST_NEIGHBOR": 4, "SLICE": 4,
    "SOFTMAX": 3, "SPLIT": 4, "STRIDED_SLICE": 4, "SUB": 4, "SUM": 2, "TANH": 3, "TRANSPOSE": 5,
    "TRANSPOSE_CONV": 4,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of the flatbuffer.

    Attributes:
        index: its place in the subgraph.
        shape: as emitted (convolutions' tensors are NHWC).
        dtype: ``float32``, ``int8``, ``int16``, ``int32``, ``int64``, ``int4`` or ``bool``.
        encoding: of integers that stand for real numbers, else None.
        data: the array of a constant (int4 held as int8), else None.
    """

    index: int
    shape: tuple[int, ...]
    dtype: str
    encoding: Encoding | None = None
    data: NDArray[np.generic] | None = None


class Emitter:
    """Collects one subgraph and writes it."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self._subgraph = schema.SubGraphT()
        self._subgraph.name, self._subgraph.tensors, self._subgraph.operators = "main", [], []
        self._buffers: list[Any] = [schema.BufferT()]  # buffer 0 means "no data"
        self._bytes = 0
        self._codes: dict[str, int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Tensor] = {}

    def tensor(self, name: str, shape: Sequence[int], dtype: str, encoding: Encoding | None = None) -> Tensor:
        """A tensor without data: an input, or what an operator will write."""
        return self._add(name, tuple(int(d) for d in shape), dtype, encoding, None)

    def constant(
        self, array: NDArray[np.generic], *, name: str = "", dtype: str = "", encoding: Encoding | None = None
    ) -> Tensor:
        """A tensor with data. int64 indices become int32; equal small plain constants are written once."""
        dtype = dtype or str(array.dtype)
        if encoding is None and dtype == "int64":
            array, dtype = array.astype(np.int32), "int32"
        key = (dtype, array.shape, array.tobytes()) if encoding is None and array.nbytes <= 1024 else None
        if key in self._constants:
            return self._constants[key]
        made = self._add(name or "constant", array.shape, dtype, encoding, array)
        if key is not None:
            self._constants[key] = made
        return made

    def scalar(self, value: float) -> Tensor:
        """A float32 constant without dimensions."""
        return self.constant(np.array(value, np.float32))

    def _add(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        encoding: Encoding | None,
        data: NDArray[np.generic] | None,
    ) -> Tensor:
        record = self.schema.TensorT()
        record.name, record.shape, record.buffer = name, list(shape), 0
        record.type = getattr(self.schema.TensorType, dtype.upper())
        if encoding is not None:
            quantization = self.schema.QuantizationParametersT()
            quantization.scale = [float(s) for s in np.atleast_1d(encoding.scale)]
            quantization.zeroPoint = [int(z) for z in np.atleast_1d(encoding.zero_point)]
            quantization.quantizedDimension = encoding.axis or 0
            record.quantization = quantization
        if data is not None:
            record.buffer = len(self._buffers)
            self._buffers.append(_buffer(self.schema, data, dtype))
            self._bytes += _stored_bytes(data, dtype)
        self._subgraph.tensors.append(record)
        return Tensor(len(self._subgraph.tensors) - 1, shape, dtype, encoding, data)

    def operator(self, code: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], **options: Any) -> None:
        """Append an operator: `code` is the schema's name (``CONV_2D``), `options` its option table's fields.

        The key ``table`` names that table (``Conv2DOptions``); ops without options leave it out.
        """
        record = self.schema.OperatorT()
        record.opcodeIndex = self._codes.setdefault(code, len(self._codes))
        record.inputs = [-1 if t is None else t.index for t in inputs]
        record.outputs = [t.index for t in outputs]
        table = options.pop("table", None)
        if table is not None:
            record.builtinOptionsType = getattr(self.schema.BuiltinOptions, table)
            record.builtinOptions = getattr(self.schema, f"{table}T")(**options)
        self._subgraph.operators.append(record)

    def save(self, path: Path, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], description: str) -> None:
        """Write the model. The signature maps the given names to tensors, in the given order.

        Raises:
            ToolchainError: the model passes the flatbuffer's 2 GB.
        """
        import flatbuffers

        schema, where = self.schema, str(path)
        if self._bytes > LARGEST_FILE:
            raise ToolchainError(
                f"{self._bytes / 2**30:.1f} GiB of weights pass a .tflite file's 2 GiB",
                where=where,
                fix="split the component, or use w4",
            )
        model = schema.ModelT()
        model.version, model.description = 3, description
        model.operatorCodes = [self._operator_code(code) for code in self._codes]
        self._subgraph.inputs = [t.index for t in inputs.values()]
        self._subgraph.outputs = [t.index for t in outputs.values()]
        model.subgraphs, model.buffers = [self._subgraph], self._buffers
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
        signature.inputs = [schema.TensorMapT(name, t.index) for name, t in inputs.items()]
        signature.outputs = [schema.TensorMapT(name, t.index) for name, t in outputs.items()]
        model.signatureDefs = [signature]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
        with atomic_file(path) as temporary:
            temporary.write_bytes(builder.Output())

    def _operator_code(self, code: str) -> Any:
        record = self.schema.OperatorCodeT()
        record.builtinCode = getattr(self.schema.BuiltinOperator, code)
        record.deprecatedBuiltinCode = min(
            record.builtinCode, 127
        )  # the field is int8; 127 sends readers to builtinCode
        record.version = OP_VERSIONS.get(code, 1)
        return record


def _stored_bytes(data: NDArray[np.generic], dtype: str) -> int:
    return (data.size + 1) // 2 if dtype == "int4" else data.size * np.dtype(dtype).itemsize


def _packed(data: NDArray[np.generic], dtype: str) -> NDArray[np.uint8]:
    """Little-endian bytes; two int4 in a byte, the first in the low half."""
    if dtype == "int4":
        nibbles = data.astype(np.uint8).ravel() & 0xF
        nibbles = np.append(nibbles, np.zeros(nibbles.size % 2, np.uint8))
        return (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8)
    little = np.ascontiguousarray(data, dtype=np.dtype(dtype).newbyteorder("<"))
    return little.reshape(-1).view(np.uint8)


def _buffer(schema: Any, data: NDArray[np.generic], dtype: str) -> Any:
    """A BufferT that packs its data when it is written, at BUFFER_ALIGNMENT: the generated one leaves force_align out.

    Until then a memory-mapped weight stays on disk.
    """

    class AlignedBuffer(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:
            stored = _packed(data, dtype)
            builder.StartVector(1, stored.size, BUFFER_ALIGNMENT)
            builder.head -= stored.size
            builder.Bytes[builder.head : builder.head + stored.size] = stored.tobytes()
            vector = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    return AlignedBuffer()
