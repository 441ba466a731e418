"""The layers that transformer families share, made from a checkpoint's tensors by the path of their module."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.builder import GraphBuilder, Weight
from pocketport.errors import InputError


@dataclass(frozen=True)
class Layers:
    """A graph under construction and the checkpoint that it is made from.

    Attributes:
        g: the builder of one component's graph.
        state: checkpoint tensors by name; they may be lazy.
    """

    g: GraphBuilder
    state: Mapping[str, Weight]

    def tensor(self, name: str, *shape: int) -> Weight:
        """A checkpoint tensor of this shape, in floats; InputError when it is missing or another."""
        if name not in self.state:
            raise InputError(
                "the checkpoint lacks it",
                where=f"tensor {name}",
                fix="give the checkpoint that config.json describes",
            )
        tensor = self.state[name]
        if tuple(tensor.shape) != shape:
            raise InputError(
                f"its shape is {list(tensor.shape)}, config.json asks for {list(shape)}",
                where=f"tensor {name}",
                fix="give the config.json that belongs to this checkpoint",
            )
        if not (isinstance(tensor, np.ndarray) or tensor.dtype.is_floating_point()):
            raise InputError(
                f"it holds {tensor.dtype.name}, not floats",
                where=f"tensor {name}",
                fix="download or save the checkpoint again",
            )
        return tensor

    def weight(self, name: str, *shape: int) -> ir.Value:
        """`tensor` as an initializer of the same name."""
        return self.g.weight(name, self.tensor(name, *shape))

    def linear(self, x: ir.Value, path: str, n: int, k: int, *, bias: bool = True) -> ir.Value:
        """[rows, k] → [rows, n]."""
        inputs = [x, self.weight(f"{path}.weight", n, k)]
        if bias:
            inputs.append(self.weight(f"{path}.bias", n))
        return self.g.node("Gemm", inputs, path, transB=1)

    def layer_norm(self, x: ir.Value, path: str, width: int, eps: float, output: str | None = None) -> ir.Value:
        """LayerNormalization over the last axis."""
        gamma, beta = self.weight(f"{path}.weight", width), self.weight(f"{path}.bias", width)
        return self.g.node("LayerNormalization", [x, gamma, beta], path, axis=-1, epsilon=eps, output=output)

    def heads(self, x: ir.Value, path: str, heads: tuple[int, int, int], perm: tuple[int, int, int]) -> ir.Value:
        """[rows, heads·width] → `heads` (rows, heads, width) transposed by `perm`."""
        return self.g.transpose(self.g.reshape(x, heads, f"{path}.split"), perm, f"{path}.heads")

    def scaled(self, x: ir.Value, path: str, width: int) -> ir.Value:
        """x/√width. Queries are scaled rather than scores: the smaller tensor."""
        scale = self.g.weight(f"attention_scale_{width}", np.array(width**-0.5, np.float32))
        return self.g.node("Mul", [x, scale], f"{path}.scale")

    def rotated(self, x: ir.Value, cos: ir.Value, sin: ir.Value, width: int, path: str, still: int = 0) -> ir.Value:
        """x·cos + swap_halves(x)·sin over the last axis; the sign of the rotation is in `sin` (arXiv 2104.09864).

        The halves are those of the first `width` channels; `still` further ones stay in their places.
        """
        g, sizes, names = self.g, [width // 2] * 2, [f"{path}.first", f"{path}.second"]
        if still:
            sizes, names = [*sizes, still], [*names, f"{path}.still"]
        first, second, *rest = g.split_node("Split", [x, g.integers(sizes)], f"{path}.halves", names, axis=-1)
        swapped = g.node("Concat", [second, first, *rest], f"{path}.swapped", axis=-1)
        straight = g.node("Mul", [x, cos], f"{path}.cos")
        turned = g.node("Mul", [swapped, sin], f"{path}.sin")
        return g.node("Add", [straight, turned], f"{path}.rotated")

    def attention(self, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value | None, path: str) -> ir.Value:
        """softmax(q·k + bias)·v over [heads, rows, width], [heads, width, columns], [heads, columns, width]."""
        scores = self.g.node("MatMul", [q, k], f"{path}.scores")
        if bias is not None:
            scores = self.g.node("Add", [scores, bias], f"{path}.masked_scores")
        weights = self.g.node("Softmax", [scores], f"{path}.weights", axis=-1)
        return self.g.node("MatMul", [weights, v], f"{path}.context")

    def merged(self, x: ir.Value, path: str, rows: int, columns: int) -> ir.Value:
        """[heads, rows, width] → [rows, heads·width]."""
        return self.g.reshape(self.g.transpose(x, (1, 0, 2), f"{path}.rows"), (rows, columns), f"{path}.merged")


def derived(change: Callable[..., NDArray[Any]], *tensors: Weight, shape: tuple[int, ...]) -> ir.LazyTensor:
    """`change` of tensors, a float32 weight of this shape: they are read, and it is computed, when it is asked for."""

    def compute() -> ir.TensorProtocol:
        arrays = (tensor if isinstance(tensor, np.ndarray) else tensor.numpy() for tensor in tensors)
        return ir.Tensor(np.ascontiguousarray(change(*arrays), dtype=np.float32))

    return ir.LazyTensor(compute, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape))
