"""The pre-norm transformer encoder that SigLIP and CLIP share, and every model whose vision tower is one of them."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pocketport.compress.families.layers import Layers
from pocketport.compress.families.vision.config import ACTIVATIONS, TowerConfig

QUICK = 1.702  # x·σ(1.702x) is close to GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415)


@dataclass(frozen=True)
class Encoder:
    """The blocks of one tower.

    Attributes:
        config: the tower's.
    """

    config: TowerConfig

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
        for i in range(self.config.num_hidden_layers):
            x = self._block(
                parts, x, bias, rows, f"{path}.{i}", output if i == self.config.num_hidden_layers - 1 else None
            )
        return x

    def _block(
        self, parts: Layers, x: ir.Value, bias: ir.Value | None, rows: int, path: str, output: str | None
    ) -> ir.Value:
        """Norm, attention, norm, MLP; each of the two adds to the residual stream."""
        g, width, heads, eps = (
            parts.g,
            self.config.hidden_size,
            self.config.num_attention_heads,
            self.config.layer_norm_eps,
        )
        head = width // heads
        attn = f"{path}.self_attn"
        h = parts.layer_norm(x, f"{path}.layer_norm1", width, eps)
        q = parts.scaled(parts.linear(h, f"{attn}.q_proj", width, width), f"{attn}.q_proj", head)
        k, v = (parts.linear(h, f"{attn}.{p}_proj", width, width) for p in "kv")
        q = parts.heads(q, f"{attn}.q", (rows, heads, head), (1, 0, 2))
        k = parts.heads(k, f"{attn}.k", (rows, heads, head), (1, 2, 0))
        v = parts.heads(v, f"{attn}.v", (rows, heads, head), (1, 0, 2))
        context = parts.merged(parts.attention(q, k, v, bias, attn), attn, rows, width)
        x = g.node("Add", [x, parts.linear(context, f"{attn}.out_proj", width, width)], f"{attn}.residual")
        h = parts.layer_norm(x, f"{path}.layer_norm2", width, eps)
        return g.node("Add", [x, self.mlp(parts, h, f"{path}.mlp")], f"{path}.mlp.residual", output=output)

    def mlp(self, parts: Layers, x: ir.Value, path: str) -> ir.Value:
        """fc2(activation(fc1(x)))."""
        width, inner = self.config.hidden_size, self.config.intermediate_size
        h = activated(parts, parts.linear(x, f"{path}.fc1", inner, width), self.config.hidden_act, path)
        return parts.linear(h, f"{path}.fc2", width, inner)


def activated(parts: Layers, x: ir.Value, activation: str, path: str) -> ir.Value:
    """One of `ACTIVATIONS`."""
    g, kind = parts.g, ACTIVATIONS[activation]
    if kind != "quick":
        return g.node("Gelu", [x], f"{path}.gelu", approximate=kind)
    slope = g.weight("quick_gelu_slope", np.array(QUICK, np.float32))
    steep = g.node("Sigmoid", [g.node("Mul", [x, slope], f"{path}.slope")], f"{path}.sigmoid")
    return g.node("Mul", [x, steep], f"{path}.quick_gelu")
