"""Constants of an OpenVINO model: weights in 4 and 8 bits with the subgraph that its plugins recognise as compressed.

``Constant(u4|i4|u8|i8) [N, G, block] → Convert(f16) → [Subtract(Convert(zero points))] → Multiply(scales f16) →
Reshape [N, K] → Convert(f32)``: what NNCF writes, and what the plugins execute without ever decompressing in memory.
Weights whose zero points are in the middle are signed and have none.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.checkpoint import StoredTensor
from pocketport.compress.formats.contract import Progress
from pocketport.compress.graph import dimensions
from pocketport.compress.quantized_weights import QuantizedWeights, pack_nibbles
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

ALIGNMENT = 64
SIGN_BITS = {4: 0x88, 8: 0x80}  # flipping them makes v − 2^(bits−1) of v


class OpenVinoWeights:
    """Published tensors as nodes of an OpenVINO graph.

    What a constant holds goes into a scratch file and is mapped from there: memory holds one tensor at a time until
    OpenVINO has written its own file.

    Args:
        source: the checkpoint.
        weights: what of it is quantized.
        scratch: the file for constants; the caller removes it when the model is saved.
        progress: called with the matrices that lie there, and their number.
    """

    def __init__(self, source: Source, weights: QuantizedWeights, scratch: Path, progress: Progress) -> None:
        from openvino import opset15

        self.op: Any = opset15
        self._source, self._weights, self._scratch = source, weights, scratch
        self._nodes: dict[str, Any] = {}
        self._progress = progress
        self._maps: list[Any] = []  # OpenVINO's constants point into them

    def constant(self, value: NDArray[Any] | int | float | list[int], dtype: type = np.int64) -> Any:
        """A small constant."""
        return self.op.constant(np.asarray(value, dtype))

    def vector(self, name: str, plus: float = 0.0) -> Any:
        """A weight of rank 1, or `plus` more than it, in float32."""
        return self.constant(np.asarray(self._tensor(name).numpy(), np.float32) + np.float32(plus), np.float32)

    def matrix(self, name: str) -> Any:
        """A matrix [N, K] as float32, whatever it is stored in; the same node for all that use it."""
        if name not in self._nodes:
            self._nodes[name] = self._compressed(name) if name in self._weights else self._stored(name)
            self._progress(len(self._nodes), max(len(self._nodes), len(self._weights)))
        return self._nodes[name]

    def _tensor(self, name: str) -> Any:
        if name not in self._source.tensors:
            fix = "give the checkpoint that config.json describes"
            raise InputError("the checkpoint lacks it", where=f"tensor {name}", fix=fix)
        return self._source.tensors[name]

    def _stored(self, name: str) -> Any:
        """A float matrix in the type in which it lies."""
        tensor = self._tensor(name)
        array = tensor.mapped() if isinstance(tensor, StoredTensor) else np.asarray(tensor.numpy(), np.float16)
        kinds = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
        node = self._mapped(array, kinds[array.dtype.name], dimensions(tensor), name)
        return node if array.dtype == np.float32 else self.op.convert(node, "f32", name=f"{name}/convert")

    def _compressed(self, name: str) -> Any:
        form, op = self._weights.form(name), self.op
        bits, rows, columns = form["bits"], form["rows"], form["columns"]
        groups = columns // form["block"]
        grouped = (rows, groups, form["block"]) if groups > 1 else (rows, columns)
        per_group = (*grouped[:-1], 1)
        kind = f"{'i' if form['symmetric'] else 'u'}{bits}"
        integers = self._weights.part(name, "integers")
        if form["symmetric"]:
            integers = integers ^ np.uint8(SIGN_BITS[bits])
        value = op.convert(self._mapped(integers, kind, grouped, name), "f16", name=f"{name}/convert.f16")
        if not form["symmetric"]:
            zeros = self._weights.part(name, "zero_point").reshape(1, -1)
            packed = pack_nibbles(zeros) if bits == 4 else zeros
            stored = self._mapped(packed, kind, per_group, f"{name}/zero_point")
            zero = op.convert(stored, "f16", name=f"{name}/zero_point/convert")
            value = op.subtract(value, zero, name=f"{name}/zero_point/subtract")
        scale = self._weights.part(name, "scale").astype(np.float16)
        value = op.multiply(value, self._mapped(scale, "f16", per_group, f"{name}/scale"), name=f"{name}/scaled")
        if groups > 1:
            value = op.reshape(value, self.constant([rows, columns]), special_zero=False, name=f"{name}/reshape")
        return op.convert(value, "f32", name=f"{name}/convert")

    def _mapped(self, array: NDArray[Any], kind: str, shape: tuple[int, ...], name: str) -> Any:
        """A constant over the bytes of `array` in the scratch file."""
        import openvino

        with self._scratch.open("ab") as stream:
            stream.write(bytes(-stream.tell() % ALIGNMENT))
            offset = stream.tell()
            stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            size = stream.tell() - offset
        raw = np.memmap(self._scratch, np.uint8, "r+", offset=offset, shape=(size,))
        tensor = openvino.Tensor(raw, openvino.Shape(shape), getattr(openvino.Type, kind))
        self._maps += [raw, tensor]
        node = self.op.constant(tensor, shared_memory=True)
        node.set_friendly_name(name)
        return node
