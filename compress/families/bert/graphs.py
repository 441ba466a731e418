"""A BERT encoder (Devlin et al. 2019, arXiv 1810.04805) with a sentence embedding on top, as one static graph.

`input_ids` i32 [S] and `attention_mask` f32 [S] (1 for tokens, 0 for padding) give `last_hidden_state` [S, H] and
`sentence_embedding` [1, H]: the mean over the tokens, scaled to length 1 (Reimers and Gurevych 2019, arXiv 1908.10084).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pocketport.compress.builder import GraphBuilder, Weight
from pocketport.compress.families.bert.config import BertConfig
from pocketport.compress.families.layers import Layers

MASKED = -100.0  # added to the scores of padding: finite, so that it has an encoding


@dataclass(frozen=True)
class _Parts(Layers):
    config: BertConfig
    length: int

    def norm(self, x: ir.Value, path: str, output: str | None = None) -> ir.Value:
        return self.layer_norm(x, path, self.config.hidden_size, self.config.layer_norm_eps, output)

    def number(self, name: str, value: float) -> ir.Value:
        return self.g.weight(name, np.array(value, np.float32))


def build_bert(state: Mapping[str, Weight], config: BertConfig, length: int) -> ir.Model:
    """The graph for `length` tokens; InputError when a tensor is missing or has another shape than `config` says."""
    parts = _Parts(GraphBuilder("main"), state, config, length)
    g, width = parts.g, config.hidden_size
    ids = g.input("input_ids", (length,), ir.DataType.INT32)
    mask = g.input("attention_mask", (length,))
    x = g.node(
        "Gather",
        [parts.weight("embeddings.word_embeddings.weight", config.vocab_size, width), ids],
        "embeddings.words",
        axis=0,
    )
    x = g.node("Add", [x, g.weight("embeddings.positions", _positions(parts))], "embeddings.sum")
    x = parts.norm(x, "embeddings.LayerNorm")
    shifted = g.node("Sub", [mask, parts.number("one", 1.0)], "mask.shifted")  # 0 for tokens, −1 for padding
    bias = g.node("Mul", [shifted, parts.number("masked", -MASKED)], "mask.bias")
    bias = g.reshape(bias, (1, 1, length), "attention_bias")
    for i in range(config.num_hidden_layers):
        x = _layer(parts, x, bias, f"encoder.layer.{i}", last=i == config.num_hidden_layers - 1)
    g.output(x)
    # The mean over the tokens as one matrix product: mask [1, S] · x [S, H]. Its length cancels in the normalization.
    total = g.node("MatMul", [g.reshape(mask, (1, length), "pooling.weights"), x], "pooling.sum")
    norm = g.node("ReduceL2", [total, g.integers([-1])], "pooling.norm", keepdims=1)
    g.output(g.node("Div", [total, norm], "pooling", output="sentence_embedding"))
    return g.finish()


def _positions(parts: _Parts) -> Weight:
    """Position and segment embeddings do not depend on the tokens: one table, [S, H]."""
    config, width = parts.config, parts.config.hidden_size
    positions = parts.tensor("embeddings.position_embeddings.weight", config.max_position_embeddings, width)
    segments = parts.tensor("embeddings.token_type_embeddings.weight", config.type_vocab_size, width)
    return np.asarray(np.asarray(positions)[: parts.length] + np.asarray(segments)[0], np.float32)


def _layer(parts: _Parts, x: ir.Value, bias: ir.Value, path: str, *, last: bool) -> ir.Value:
    """Post-norm block: attention, then the two-layer MLP with the exact GELU."""
    g, config, rows = parts.g, parts.config, parts.length
    width, heads, inner = config.hidden_size, config.num_attention_heads, config.intermediate_size
    attn = f"{path}.attention"
    own, split = f"{attn}.self", (rows, heads, width // heads)
    q, k, v = (parts.linear(x, f"{own}.{part}", width, width) for part in ("query", "key", "value"))
    q = parts.heads(parts.scaled(q, f"{own}.query", width // heads), f"{own}.query", split, (1, 0, 2))
    k = parts.heads(k, f"{own}.key", split, (1, 2, 0))
    v = parts.heads(v, f"{own}.value", split, (1, 0, 2))
    context = parts.merged(parts.attention(q, k, v, bias, own), own, rows, width)
    attended = parts.linear(context, f"{attn}.output.dense", width, width)
    x = parts.norm(g.node("Add", [x, attended], f"{attn}.output.residual"), f"{attn}.output.LayerNorm")
    h = g.node("Gelu", [parts.linear(x, f"{path}.intermediate.dense", inner, width)], f"{path}.intermediate.gelu")
    h = parts.linear(h, f"{path}.output.dense", width, inner)
    total = g.node("Add", [x, h], f"{path}.output.residual")
    return parts.norm(total, f"{path}.output.LayerNorm", output="last_hidden_state" if last else None)
