"""Weights as onnxruntime's contrib ops take them: MatMulNBits, GatherBlockQuantized, and plain MatMul for floats.

MatMulNBits (com.microsoft): ``B`` uint8 [N, K/block, block·bits/8], the first weight of a byte in its low bits; scales
[N, K/block] in the type of the activations; zero points, where they are not in the middle, uint8
[N, ⌈K/block·bits/8⌉], packed like the weights. GatherBlockQuantized takes the same bytes as [N, K·bits/8].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.builder import GraphBuilder
from pocketport.compress.checkpoint import StoredTensor
from pocketport.compress.graph import dimensions
from pocketport.compress.quantized_weights import QuantizedWeights, pack_nibbles
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

CONTRIB = "com.microsoft"
LEAST_BLOCK, MOST_BLOCK = 16, 256  # and powers of two between


def kernel_block(block: int) -> int:
    """The block in which a scale for this many columns is written: itself, or a part of it that the kernels take.

    0 when there is none.
    """
    if block & (block - 1) == 0 and LEAST_BLOCK <= block <= MOST_BLOCK:
        return block
    part = min(block & -block, MOST_BLOCK)
    return part if part >= LEAST_BLOCK else 0


@dataclass(frozen=True)
class OnnxWeights:
    """A graph's weights by their published names, quantized or not, read when the graph is saved.

    Attributes:
        g: the graph.
        source: the checkpoint.
        weights: what of it is quantized.
        dtype: of activations, scales and whatever stays float.
        accuracy_level: of MatMulNBits: 1 computes in float32, 4 lets activations become int8 within the kernel.
    """

    g: GraphBuilder
    source: Source
    weights: QuantizedWeights
    dtype: ir.DataType
    accuracy_level: int

    def vector(self, name: str, plus: float = 0.0) -> ir.Value:
        """A weight of rank 1, or `plus` more than it."""
        tensor = self.tensor(name)
        return self._lazy(name, dimensions(tensor), lambda: self._floats(name) + np.float32(plus))

    def table_rows(self, name: str, ids: ir.Value, path: str) -> ir.Value:
        """Rows of an embedding table."""
        if name in self.weights:
            form = self.weights.form(name)
            bits, block = int(form["bits"]), kernel_block(form["block"])
            flat = self.g.reshape(
                self._integers([name], name), (form["rows"], form["columns"] * bits // 8), f"{path}.flat"
            )
            inputs = [flat, ids, self._scales([name], name), *self._zero_points([name], name)]
            return self.g.node(
                "GatherBlockQuantized", inputs, path, domain=CONTRIB, bits=bits, block_size=block, gather_axis=0,
                quantize_axis=1,
            )  # fmt: skip
        tensor = self.tensor(name)
        stored = tensor.stored_dtype if isinstance(tensor, StoredTensor) else np.dtype(np.float32)
        dtype = ir.DataType.from_numpy(stored)
        read = tensor.mapped if isinstance(tensor, StoredTensor) else tensor.numpy
        rows = self.g.node("Gather", [self._lazy(name, dimensions(tensor), read, dtype), ids], path, axis=0)
        return rows if dtype == self.dtype else self.g.node("Cast", [rows], f"{path}.cast", to=self.dtype)

    def linear(
        self, x: ir.Value, names: Sequence[str], path: str, *, biases: Sequence[str] = (), output: str | None = None
    ) -> ir.Value:
        """Linear layers over the same input, their outputs side by side.

        Layers of one form are one product; where forms differ each has its own.

        Args:
            x: [batch, tokens, K].
            names: of the weights [N, K].
            path: of the node.
            biases: names of the biases, one for each weight, or none.
            output: name of the result.
        """
        if len({self._form(name) for name in names}) > 1:
            parts = [
                self.linear(x, [name], name.removesuffix(".weight"), biases=biases[i : i + 1])
                for i, name in enumerate(names)
            ]
            return self.g.node("Concat", parts, path, axis=-1, output=output)
        label = names[0] if len(names) == 1 else f"{path}.weight"  # a tied projection shares the table's integers
        bias = self._lazy(f"{path}.bias", (self._rows(biases),), lambda: self._joined(biases)) if biases else None
        if names[0] not in self.weights:
            columns = dimensions(self.tensor(names[0]))[1]
            matrix = self._lazy(f"{label}_T", (columns, self._rows(names)), lambda: self._joined(names).T)
            if bias is None:
                return self.g.node("MatMul", [x, matrix], path, output=output)
            product = self.g.node("MatMul", [x, matrix], f"{path}.product")
            return self.g.node("Add", [product, bias], path, output=output)
        form = self.weights.form(names[0])
        zeros = [*self._zero_points(names, label), None][:1]
        inputs = [x, self._integers(names, label), self._scales(names, label), *zeros, None, bias]
        while inputs[-1] is None:
            inputs.pop()
        return self.g.node(
            "MatMulNBits", inputs, path, output=output, domain=CONTRIB, K=form["columns"], N=self._rows(names),
            bits=form["bits"], block_size=kernel_block(form["block"]), accuracy_level=self.accuracy_level,
        )  # fmt: skip

    def tensor(self, name: str) -> ir.TensorProtocol:
        """The published tensor; InputError when the checkpoint lacks it."""
        if name not in self.source.tensors:
            fix = "give the checkpoint that config.json describes"
            raise InputError("the checkpoint lacks it", where=f"tensor {name}", fix=fix)
        return self.source.tensors[name]

    def _form(self, name: str) -> tuple[Any, ...]:
        if name not in self.weights:
            return ()
        form: Mapping[str, Any] = self.weights.form(name)
        return form["bits"], form["block"], form["columns"], form["symmetric"]

    def _rows(self, names: Sequence[str]) -> int:
        return sum(dimensions(self.tensor(name))[0] for name in names)

    def _floats(self, name: str) -> NDArray[np.float32]:
        return np.asarray(self.tensor(name).numpy(), np.float32)

    def _joined(self, names: Sequence[str]) -> NDArray[np.float32]:
        return np.concatenate([self._floats(name) for name in names])

    def _integers(self, names: Sequence[str], label: str) -> ir.Value:
        form = self.weights.form(names[0])
        block = kernel_block(form["block"])
        shape = (self._rows(names), form["columns"] // block, block * form["bits"] // 8)

        def read() -> NDArray[Any]:
            return np.concatenate([self.weights.part(name, "integers") for name in names]).reshape(shape)

        return self._lazy(f"{label}_q{form['bits']}", shape, read, ir.DataType.UINT8)

    def _scales(self, names: Sequence[str], label: str) -> ir.Value:
        shape = (self._rows(names), self._blocks(names[0]))
        return self._lazy(f"{label}_scales", shape, lambda: self._per_block(names, "scale"))

    def _zero_points(self, names: Sequence[str], label: str) -> list[ir.Value]:
        """None for weights whose zero points are in the middle."""
        form = self.weights.form(names[0])
        if form["symmetric"]:
            return []
        bits, blocks = form["bits"], self._blocks(names[0])

        def read() -> NDArray[Any]:
            zeros = self._per_block(names, "zero_point")
            return pack_nibbles(zeros) if bits == 4 else zeros

        shape = (self._rows(names), -(-blocks * bits // 8))
        return [self._lazy(f"{label}_zero_points", shape, read, ir.DataType.UINT8)]

    def _blocks(self, name: str) -> int:
        form = self.weights.form(name)
        return int(form["columns"]) // kernel_block(form["block"])

    def _per_block(self, names: Sequence[str], part: str) -> NDArray[Any]:
        joined = np.concatenate([self.weights.part(name, part) for name in names])
        return np.repeat(joined, self._blocks(names[0]) // joined.shape[1], axis=1)

    def _lazy(
        self, name: str, shape: Sequence[int], read: Callable[[], NDArray[Any]], dtype: ir.DataType | None = None
    ) -> ir.Value:
        """An initializer that is read when the graph is saved, and each time anew."""
        kind = dtype or self.dtype

        def tensor() -> ir.TensorProtocol:
            return ir.Tensor(np.ascontiguousarray(read(), kind.numpy()), name=name)

        return self.g.weight(name, ir.LazyTensor(tensor, dtype=kind, shape=ir.Shape(shape), name=name))
