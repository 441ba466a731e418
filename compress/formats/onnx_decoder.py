"""A decoder in onnxruntime's contrib ops, with open lengths and the KV cache as inputs and outputs.

Inputs, outputs and ops are those that onnxruntime-genai's model builder lays out: ``input_ids`` [batch, sequence],
``attention_mask`` [batch, total], ``past_key_values.<i>.key|value`` [batch, kv, past, d] → ``logits`` and
``present.<i>.key|value``. GroupQueryAttention rotates queries and keys itself, from tables of cosines and sines.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from pocketport.compress.builder import GraphBuilder
from pocketport.compress.families.decoder.config import SLIDING, DecoderConfig
from pocketport.compress.formats.language_model import LanguageModel, last_hidden, projections
from pocketport.compress.formats.onnx_linear import CONTRIB, OnnxWeights
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.compress.sources.source import Source

BATCH, SEQUENCE, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"


def decoder_graph(
    source: Source,
    weights: QuantizedWeights,
    model: LanguageModel,
    dtype: ir.DataType,
    accuracy_level: int,
) -> ir.Model:
    """The graph from token ids to logits; its weights are read when it is saved.

    Args:
        source: the checkpoint.
        weights: what of it is quantized.
        model: the decoder.
        dtype: of activations and cache, FLOAT or FLOAT16.
        accuracy_level: of MatMulNBits.

    Raises:
        InputError: the checkpoint lacks a tensor.
    """
    g = GraphBuilder("decoder")
    ids = g.input("input_ids", (BATCH, SEQUENCE), ir.DataType.INT64)
    mask = g.input("attention_mask", (BATCH, TOTAL), ir.DataType.INT64)
    ops = OnnxDecoder(OnnxWeights(g, source, weights, dtype, accuracy_level), model, mask)
    x = ops.w.table_rows(model.table, ids, model.table.removesuffix(".weight"))
    x = last_hidden(ops, model, ops.scaled(x, model.config.embedding_scale))
    g.output(ops.w.linear(x, [model.head], "lm_head", output="logits"), first=True)
    return g.finish()


class OnnxDecoder:
    """`DecoderOps` that append nodes to a graph.

    Args:
        w: the graph and its weights.
        model: the decoder.
        mask: the attention mask [batch, total], ones where there is a token, on the right of padding or left of it.
    """

    def __init__(self, w: OnnxWeights, model: LanguageModel, mask: ir.Value) -> None:
        self.w, self.g, self.model = w, w.g, model
        self.config: DecoderConfig = model.config
        g, one = self.g, self.g.weight("int64_one", np.array(1, np.int64))
        tokens = g.node("ReduceSum", [mask, g.integers([1])], "mask.tokens", keepdims=0)
        last = g.node("Sub", [tokens, one], "mask.last")
        total = g.node("Gather", [g.node("Shape", [mask], "mask.shape"), one], "mask.total", axis=0)
        self._lengths = [
            g.node("Cast", [v], f"{v.name}.int32", to=ir.DataType.INT32) for v in (last, total)
        ]  # of the keys less 1, and with padding
        self._tables: dict[str, list[ir.Value]] = {}

    def rms_norm(self, x: ir.Value, name: str) -> ir.Value:
        """RMSNorm over the last axis."""
        path, gamma = name.removesuffix(".weight"), self._gamma(name)
        return self.g.node("SimplifiedLayerNormalization", [x, gamma], path, axis=-1, epsilon=self.config.norm_eps)

    def add_and_norm(self, x: ir.Value, added: ir.Value, name: str) -> tuple[ir.Value, ir.Value]:
        """One node for both."""
        path = name.removesuffix(".weight")
        normed, _, _, total = self.g.split_node(
            "SkipSimplifiedLayerNormalization", [x, added, self._gamma(name)], path, [path, "", "", f"{path}.sum"],
            domain=CONTRIB, epsilon=self.config.norm_eps,
        )  # fmt: skip
        return total, normed

    def scaled(self, x: ir.Value, value: float) -> ir.Value:
        """x·value; x itself where the value is 1."""
        if value == 1:
            return x
        factor = self.g.weight(f"factor_{value!r}", np.array(value, self.w.dtype.numpy()))
        return self.g.node("Mul", [x, factor], f"{x.name}.scaled")

    def attention(self, x: ir.Value, layer: int) -> ir.Value:
        """Projections, norms of queries and keys, GroupQueryAttention."""
        config, path = self.config, f"{self.model.layer(layer)}.self_attn"
        heads, kv, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        paths = projections(path)
        biases = [f"{p}.bias" for p in paths] if config.qkv_bias else []
        queries: list[ir.Value | None] = [
            self.w.linear(x, [f"{p}.weight" for p in paths], f"{path}.qkv_proj", biases=biases), None, None
        ]  # fmt: skip
        if config.qk_norm:
            q, k, v = self.g.split_node(
                "Split", [queries[0], self.g.integers([heads * width, kv * width, kv * width])], f"{path}.split",
                [f"{path}.{name}" for name in "qkv"], axis=-1,
            )  # fmt: skip
            queries = [self._head_norm(q, f"{path}.q_norm"), self._head_norm(k, f"{path}.k_norm"), v]
        shapes = [(BATCH, kv, length, width) for length in (PAST, TOTAL)]
        parts = ("key", "value")
        past = [self.g.input(f"past_key_values.{layer}.{part}", shapes[0], self.w.dtype) for part in parts]
        sliding = config.layer_types[layer] == SLIDING
        rotary = self._rotary(config.layer_types[layer]) if config.rotary[layer] else []
        context, *present = self.g.split_node(
            "GroupQueryAttention", [*queries, *past, *self._lengths, *rotary], f"{path}.attention",
            [f"{path}.attention", *(f"present.{layer}.{part}" for part in parts)], domain=CONTRIB, num_heads=heads,
            kv_num_heads=kv, scale=config.attention_scalar**-0.5, do_rotary=int(bool(rotary)),
            local_window_size=config.sliding_window if sliding else -1,
        )  # fmt: skip
        for value in present:
            value.shape, value.dtype = ir.Shape(shapes[1]), self.w.dtype
            self.g.output(value)
        bias = [f"{path}.o_proj.bias"] if config.output_bias else []
        return self.w.linear(context, [f"{path}.o_proj.weight"], f"{path}.o_proj", biases=bias)

    def gated_mlp(self, x: ir.Value, path: str) -> ir.Value:
        """down(activation(gate(x))·up(x))."""

        def linear(value: ir.Value, name: str) -> ir.Value:
            bias = [f"{path}.{name}.bias"] if self.config.mlp_bias else []
            return self.w.linear(value, [f"{path}.{name}.weight"], f"{path}.{name}", biases=bias)

        gate, up = linear(x, "gate_proj"), linear(x, "up_proj")
        activated = ACTIVATIONS[self.config.activation](self.g, gate, path)
        return linear(self.g.node("Mul", [activated, up], f"{path}.gated"), "down_proj")

    def _gamma(self, name: str) -> ir.Value:
        return self.w.vector(name, plus=1.0 if self.config.unit_offset_norm else 0.0)

    def _head_norm(self, x: ir.Value, path: str) -> ir.Value:
        heads = self.g.reshape(x, (0, -1, self.config.head_dim), f"{path}.heads")
        normed = self.rms_norm(heads, f"{path}.weight")
        width = self.config.num_attention_heads if path.endswith("q_norm") else self.config.num_key_value_heads
        return self.g.reshape(normed, (0, -1, width * self.config.head_dim), f"{path}.flat")

    def _rotary(self, kind: str) -> Sequence[ir.Value]:
        """Cosines and sines [context, d/2] of one kind of layer, and which of their rows the tokens take if not their own.

        Longrope has two tables, the shorter for contexts up to `long_from`; they lie one behind the other.
        """
        prefix, rope = self.config.rope_prefix(kind), self.config.rope_of(kind)
        if prefix not in self._tables:
            context, half = self.config.max_position_embeddings, self.config.head_dim // 2
            lengths = [context]
            if rope.kind == "longrope" and 0 < rope.long_from < context:
                lengths = [rope.long_from, context]
            tables = zip(*(rope.tables(np.arange(length), length) for length in lengths), strict=True)
            self._tables[prefix] = [
                self.g.weight(
                    f"{prefix}{name}", np.ascontiguousarray(np.concatenate(parts)[:, half:], self.w.dtype.numpy())
                )
                for name, parts in zip(("cos_cache", "sin_cache"), tables, strict=True)
            ]
            if len(lengths) > 1:
                self._tables[prefix].append(self._rows(rope.long_from))
        return self._tables[prefix]

    def _rows(self, boundary: int) -> ir.Value:
        """Positions of the tokens [batch, sequence], `boundary` more when the context is longer than that."""
        g = self.g
        positions = g.input("position_ids", (BATCH, SEQUENCE), ir.DataType.INT64)
        length = g.weight("int64_boundary", np.array(boundary, np.int64))
        last = g.node("ReduceMax", [positions], "position.last", keepdims=0)
        longer = g.node("GreaterOrEqual", [last, length], "position.beyond")
        beyond = g.node("Cast", [longer], "position.beyond.int64", to=ir.DataType.INT64)
        return g.node("Add", [positions, g.node("Mul", [beyond, length], "position.offset")], "position.rows")


def _silu(g: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
    return g.node("Mul", [x, g.node("Sigmoid", [x], f"{path}.sigmoid")], f"{path}.silu")


def _gelu_tanh(g: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
    return g.node("Gelu", [x], f"{path}.gelu", approximate="tanh")


ACTIVATIONS: dict[str, Callable[[GraphBuilder, ir.Value, str], ir.Value]] = {"silu": _silu, "gelu_tanh": _gelu_tanh}
