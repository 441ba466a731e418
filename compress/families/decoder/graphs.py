"""The graphs of a decoder-only language model: embedding, prefill over the whole prompt, decode of one token.

They are laid down in ``docs/architecture.md``. Weights keep the checkpoint's names and go into the graphs as they
lie on disk; norms that multiply by 1 + weight (Gemma) are the exception: the sum goes in as ``<name>_plus_one``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pocketport.compress.builder import Weight
from pocketport.compress.families.decoder.config import LINEAR, DecoderConfig
from pocketport.compress.families.decoder.delta import DeltaLayer
from pocketport.compress.families.layers import Layers
from pocketport.compress.graph import dimensions


@dataclass(frozen=True)
class DecoderParts(Layers):
    """`Layers` of a decoder.

    Attributes:
        config: the decoder.
        prefix: path of its module in the checkpoint (``model``, ``llm.model``, ``model.language_model``).
        head: path of the vocabulary projection (``lm_head``, ``llm.lm_head``).
        prompt: prompt tokens (S), left-padded.
        cache: columns of the KV cache that decode reads (C): prompt plus new tokens.
        deepstack: behind each of this many first layers prefill adds an input ``deepstack_embeds_<i>`` [S,H]: the
            features that Qwen3-VL's vision tower takes from its middle, zero where there is text.
    """

    config: DecoderConfig
    prefix: str
    head: str
    prompt: int
    cache: int
    deepstack: int = 0

    def number(self, name: str, value: float) -> ir.Value:
        """A float32 scalar, shared by all that use its name."""
        return self.g.weight(name, np.array(value, np.float32))

    def times(self, x: ir.Value, name: str, value: float, path: str, output: str | None = None) -> ir.Value:
        """x·value; x itself where the value is 1."""
        return x if value == 1 else self.g.node("Mul", [x, self.number(name, value)], path, output=output)

    def rms_norm(self, x: ir.Value, path: str, width: int) -> ir.Value:
        """RMSNormalization over the last axis."""
        name = f"{path}.weight"
        if self.config.unit_offset_norm:
            gamma = self.g.weight(f"{name}_plus_one", _plus_one(self.tensor(name, width), f"{name}_plus_one"))
        else:
            gamma = self.weight(name, width)
        return self.g.node("RMSNormalization", [x, gamma], path, axis=-1, epsilon=self.config.norm_eps)


@dataclass(frozen=True)
class Attending:
    """What all layers of one kind of attention share.

    Attributes:
        cos, sin: of the rotary positions, [rows, d].
        bias: added to the scores, [1, group·rows, columns].
    """

    cos: ir.Value
    sin: ir.Value
    bias: ir.Value


Past = tuple[ir.Value, ir.Value]


def decoder_components(make: Callable[[str], DecoderParts]) -> dict[str, ir.Model]:
    """The finished graphs ``embed``, ``prefill`` and ``decode``.

    Args:
        make: the parts of the component of this name, over a fresh `GraphBuilder`.

    Raises:
        InputError: a tensor is missing from the checkpoint, or has another shape than its configuration says.
    """
    graphs = {}
    for name, build in BUILDERS.items():
        parts = make(name)
        build(parts)
        graphs[name] = parts.g.finish()
    return graphs


def build_embed(parts: DecoderParts) -> None:
    """Token ids to embeddings."""
    g, config = parts.g, parts.config
    ids = g.input("input_ids", (parts.prompt,), ir.DataType.INT32)
    path = f"{parts.prefix}.embed_tokens"
    table = parts.weight(f"{path}.weight", config.vocab_size, config.hidden_size)
    scaled = config.embedding_scale != 1
    x = g.node("Gather", [table, ids], path, axis=0, output=None if scaled else "embeds")
    g.output(parts.times(x, "embedding_scale", config.embedding_scale, f"{path}.scale", output="embeds"))


def build_prefill(parts: DecoderParts) -> None:
    """The whole prompt at once; keys and values of every position go out, logits only for the last one."""
    g, rows = parts.g, parts.prompt
    x, attending = _inputs(parts, rows, rows)
    for i in range(parts.config.num_hidden_layers):
        x = _layer(parts, x, attending.get(parts.config.layer_types[i]), i, past=None)
        if i < parts.deepstack:
            seen = g.input(f"deepstack_embeds_{i}", (rows, parts.config.hidden_size))
            x = g.node("Add", [x, seen], f"{parts.prefix}.layers.{i}.deepstack")
    last = [g.integers([n]) for n in (rows - 1, rows, 0)]
    _head(parts, g.node("Slice", [x, *last], f"{parts.prefix}.last_row"))


def build_decode(parts: DecoderParts) -> None:
    """One token against a cache of C columns; the new column goes out, the host writes it into the cache."""
    g, config, columns = parts.g, parts.config, parts.cache
    x, attending = _inputs(parts, 1, columns + 1)
    shape = (1, config.num_key_value_heads, columns, config.head_dim)
    past = {
        i: (g.input(f"past_key_{i}", shape), g.input(f"past_value_{i}", shape))
        for i, kind in enumerate(config.layer_types)
        if kind != LINEAR
    }
    for i, kind in enumerate(config.layer_types):
        x = _layer(parts, x, attending.get(kind), i, past.get(i), decoding=True)
    _head(parts, x)


BUILDERS: Mapping[str, Callable[[DecoderParts], None]] = {
    "embed": build_embed, "prefill": build_prefill, "decode": build_decode,
}  # fmt: skip


def _inputs(parts: DecoderParts, rows: int, columns: int) -> tuple[ir.Value, dict[str, Attending]]:
    """The graph's inputs but for the cache: embeddings, and per kind of attention positions and bias."""
    g, config = parts.g, parts.config
    x = g.input("inputs_embeds", (rows, config.hidden_size))
    ropes: dict[str, Past] = {}
    for kind in config.kinds:
        prefix = config.rope_prefix(kind)
        if prefix not in ropes:
            cos, sin = (g.input(f"{prefix}rope_{n}", (rows, config.head_dim)) for n in ("cos", "sin"))
            ropes[prefix] = (cos, sin)
    attending = {}
    group = config.num_attention_heads // config.num_key_value_heads
    for kind in config.kinds:
        name = f"{config.input_prefix(kind)}attention_bias"
        bias = g.input(name, (1, rows, columns))
        if rows > 1 and group > 1:  # one bias for every query head of a group: they are stacked along the rows
            bias = g.node("Concat", [bias] * group, f"{name}.grouped", axis=1)
        attending[kind] = Attending(*ropes[config.rope_prefix(kind)], bias)
    return x, attending


def _head(parts: DecoderParts, x: ir.Value) -> None:
    """Norm and vocabulary projection; ``logits`` comes first among the outputs."""
    config, name = parts.config, f"{parts.head}.weight"
    if name not in parts.state and config.tie_word_embeddings:
        name = f"{parts.prefix}.embed_tokens.weight"
    weight = parts.weight(name, config.vocab_size, config.hidden_size)
    x = parts.rms_norm(x, f"{parts.prefix}.norm", config.hidden_size)
    x = parts.times(x, "logits_scale", config.logits_scale, f"{parts.prefix}.norm.scale")
    logits = parts.g.node("Gemm", [x, weight], parts.head, transB=1, output="logits")
    parts.g.output(logits, first=True)


def _layer(
    parts: DecoderParts, x: ir.Value, attending: Attending | None, index: int, past: Past | None, decoding: bool = False
) -> ir.Value:
    """One block: norm, attention, norm, gated MLP; each of the two adds to the residual stream.

    Without `attending` its attention is linear.
    """
    g, config = parts.g, parts.config
    path = f"{parts.prefix}.layers.{index}"
    attn, mlp = f"{path}.self_attn", f"{path}.mlp"
    width, scale = config.hidden_size, config.residual_scale
    before_mlp = "pre_feedforward_layernorm" if config.sandwich_norms else "post_attention_layernorm"
    h = parts.rms_norm(x, f"{path}.input_layernorm", width)
    if attending is not None:
        h = _attention(parts, h, attending, index, past)
    else:
        h = _linear_attention(parts, h, index, decoding)
    if config.sandwich_norms:
        h = parts.rms_norm(h, f"{path}.post_attention_layernorm", width)
    h = parts.times(h, "residual_scale", scale, f"{attn}.residual.scale")
    x = g.node("Add", [x, h], f"{attn}.residual")
    h = parts.rms_norm(x, f"{path}.{before_mlp}", width)
    h = _gated_mlp(parts, h, mlp)
    if config.sandwich_norms:
        h = parts.rms_norm(h, f"{path}.post_feedforward_layernorm", width)
    h = parts.times(h, "residual_scale", scale, f"{mlp}.residual.scale")
    return g.node("Add", [x, h], f"{mlp}.residual")


def _linear_attention(parts: DecoderParts, h: ir.Value, index: int, decoding: bool) -> ir.Value:
    """The gated delta rule; its states become outputs, and inputs of decode."""
    config = parts.config
    assert config.delta is not None
    path = f"{parts.prefix}.layers.{index}.linear_attn"
    layer = DeltaLayer(parts, config.delta, path, index, config.hidden_size, config.norm_eps)
    return layer.decode(h) if decoding else layer.prefill(h, parts.prompt)


def _attention(parts: DecoderParts, h: ir.Value, attending: Attending, index: int, past: Past | None) -> ir.Value:
    """Grouped-query attention with rotary positions; the new keys and values become outputs."""
    g, config = parts.g, parts.config
    rows = 1 if past else parts.prompt
    width, head = config.hidden_size, config.head_dim
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    attn = f"{parts.prefix}.layers.{index}.self_attn"
    gate = None
    if config.gated_attention:
        q, gate = _gated_queries(parts, h, attn, rows)
    else:
        q = parts.linear(h, f"{attn}.q_proj", heads * head, width, bias=config.qkv_bias)
    k = parts.linear(h, f"{attn}.k_proj", kv * head, width, bias=config.qkv_bias)
    v = parts.linear(h, f"{attn}.v_proj", kv * head, width, bias=config.qkv_bias)
    if not config.qk_norm:  # a norm would undo the scale
        q = parts.scaled(q, f"{attn}.q_proj", config.attention_scalar)
    q = parts.heads(q, f"{attn}.q", (rows, heads, head), (1, 0, 2))
    k = parts.heads(k, f"{attn}.k", (rows, kv, head), (1, 0, 2))
    v = parts.heads(v, f"{attn}.v", (rows, kv, head), (1, 0, 2))
    if config.qk_norm:
        q, k = (parts.rms_norm(x, f"{attn}.{n}_norm", head) for x, n in ((q, "q"), (k, "k")))
        q = parts.scaled(q, f"{attn}.q_norm", config.attention_scalar)
    if config.rotary[index]:
        turning = config.rope.width
        q, k = (
            parts.rotated(x, attending.cos, attending.sin, turning, f"{attn}.{n}", head - turning)
            for x, n in ((q, "q"), (k, "k"))
        )
    for kind, value in (("key", k), ("value", v)):
        name = f"present_{kind}_{index}"
        g.output(g.reshape(value, (1, kv, rows, head), f"{attn}.{name}", output=name))
    if past:
        k, v = (_extended(parts, p, new, attn, n) for p, new, n in zip(past, (k, v), ("key", "value"), strict=True))
    q = g.reshape(q, (kv, heads // kv * rows, head), f"{attn}.q.grouped")
    context = parts.attention(q, g.transpose(k, (0, 2, 1), f"{attn}.k.transposed"), v, attending.bias, attn)
    context = g.reshape(context, (heads, rows, head), f"{attn}.context.heads")
    context = parts.merged(context, f"{attn}.context", rows, heads * head)
    if gate is not None:
        context = g.node("Mul", [context, gate], f"{attn}.gated")
    return parts.linear(context, f"{attn}.o_proj", width, heads * head, bias=config.output_bias)


def _gated_queries(parts: DecoderParts, h: ir.Value, attn: str, rows: int) -> tuple[ir.Value, ir.Value]:
    """Queries and the gate of attention's output, each [rows, heads·d]: one projection gives both, head by head."""
    g, config = parts.g, parts.config
    heads, head = config.num_attention_heads, config.head_dim
    both = parts.linear(h, f"{attn}.q_proj", 2 * heads * head, config.hidden_size, bias=config.qkv_bias)
    both = g.reshape(both, (rows, heads, 2 * head), f"{attn}.q_proj.heads")
    names = [f"{attn}.q_proj.queries", f"{attn}.q_proj.gate"]
    q, gate = g.split_node("Split", [both, g.integers([head, head])], f"{attn}.q_proj.split", names, axis=2)
    q, gate = (g.reshape(x, (rows, heads * head), f"{x.name}.flat") for x in (q, gate))
    return q, g.node("Sigmoid", [gate], f"{attn}.gate")


def _gated_mlp(parts: DecoderParts, h: ir.Value, mlp: str) -> ir.Value:
    """down(activation(gate(h))·up(h)) (Shazeer 2020, arXiv 2002.05202)."""
    g, config = parts.g, parts.config
    width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
    gate = parts.linear(h, f"{mlp}.gate_proj", inner, width, bias=bias)
    if config.activation == "silu":
        gate = g.node("Mul", [gate, g.node("Sigmoid", [gate], f"{mlp}.sigmoid")], f"{mlp}.silu")
    else:
        gate = g.node("Gelu", [gate], f"{mlp}.gelu", approximate="tanh")
    h = g.node("Mul", [gate, parts.linear(h, f"{mlp}.up_proj", inner, width, bias=bias)], f"{mlp}.gated")
    return parts.linear(h, f"{mlp}.down_proj", width, inner, bias=bias)


def _extended(parts: DecoderParts, past: ir.Value, new: ir.Value, attn: str, kind: str) -> ir.Value:
    """The cache with the new column behind it, [kv, C+1, d]."""
    g, config = parts.g, parts.config
    shape = (config.num_key_value_heads, parts.cache, config.head_dim)
    flat = g.reshape(past, shape, f"{attn}.past_{kind}")
    return g.node("Concat", [flat, new], f"{attn}.{kind}s", axis=1)


def _plus_one(weight: Weight, name: str) -> ir.LazyTensor:
    """weight + 1, read and added when it is asked for."""

    def read() -> ir.TensorProtocol:
        array = weight if isinstance(weight, np.ndarray) else weight.numpy()
        return ir.Tensor(np.asarray(array, np.float32) + np.float32(1), name=name)

    shape = weight.shape if isinstance(weight, np.ndarray) else dimensions(weight)
    return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)
