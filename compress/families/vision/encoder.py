"""The pre-norm transformer encoder that SigLIP and CLIP share, and every model whose vision tower is one of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pocketport.compress.families.layers import Layers

ACTIVATIONS: Mapping[str, str] = {
    "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu": "none", "quick_gelu": "quick",
}  # fmt: skip
QUICK = 1.702  # x·σ(1.702x) is close to GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415)


@dataclass(frozen=True)
class Encoder:
    """The encoder's dimensions.

    Attributes:
        width: channels of the residual stream.
        inner: channels inside the MLP.
        heads: attention heads.
        depth: how many blocks.
        eps: of every norm.
        activation: a key of `ACTIVATIONS`.
    """

    width: int
    inner: int
    heads: int
    depth: int
    eps: float
    activation: str

    def build(
        self, parts: Layers, x: ir.Value, bias: ir.Value | None, rows: int, path: str, output: str | None = None
    ) -> ir.Value:
        """[rows, width] → [rows, width] through all blocks, without a norm behind them.

        Args:
            parts: the graph under construction.
            x: the embeddings.
            bias: added to the scores, of a shape that broadcasts to [heads, rows, rows]; None: all see all.
            rows: how many rows.
            path: of the list of blocks (``…encoder.layers``).
            output: name of the result.
        """
        for i in range(self.depth):
            x = self._block(parts, x, bias, rows, f"{path}.{i}", output if i == self.depth - 1 else None)
        return x

    def _block(
        self, parts: Layers, x: ir.Value, bias: ir.Value | None, rows: int, path: str, output: str | None
    ) -> ir.Value:
        """Norm, attention, norm, MLP; each of the two adds to the residual stream."""
        g, width, head = parts.g, self.width, self.width // self.heads
        attn = f"{path}.self_attn"
        h = parts.layer_norm(x, f"{path}.layer_norm1", width, self.eps)
        q = parts.scaled(parts.linear(h, f"{attn}.q_proj", width, width), f"{attn}.q_proj", head)
        k, v = (parts.linear(h, f"{attn}.{p}_proj", width, width) for p in "kv")
        q = parts.heads(q, f"{attn}.q", (rows, self.heads, head), (1, 0, 2))
        k = parts.heads(k, f"{attn}.k", (rows, self.heads, head), (1, 2, 0))
        v = parts.heads(v, f"{attn}.v", (rows, self.heads, head), (1, 0, 2))
        context = parts.merged(parts.attention(q, k, v, bias, attn), attn, rows, width)
        x = g.node("Add", [x, parts.linear(context, f"{attn}.out_proj", width, width)], f"{attn}.residual")
        h = parts.layer_norm(x, f"{path}.layer_norm2", width, self.eps)
        return g.node("Add", [x, self.mlp(parts, h, f"{path}.mlp")], f"{path}.mlp.residual", output=output)

    def mlp(self, parts: Layers, x: ir.Value, path: str) -> ir.Value:
        """fc2(activation(fc1(x)))."""
        h = activated(parts, parts.linear(x, f"{path}.fc1", self.inner, self.width), self.activation, path)
        return parts.linear(h, f"{path}.fc2", self.width, self.inner)


def activated(parts: Layers, x: ir.Value, activation: str, path: str) -> ir.Value:
    """One of `ACTIVATIONS`."""
    g, kind = parts.g, ACTIVATIONS[activation]
    if kind != "quick":
        return g.node("Gelu", [x], f"{path}.gelu", approximate=kind)
    slope = g.weight("quick_gelu_slope", np.array(QUICK, np.float32))
    steep = g.node("Sigmoid", [g.node("Mul", [x, slope], f"{path}.slope")], f"{path}.sigmoid")
    return g.node("Mul", [x, steep], f"{path}.quick_gelu")
