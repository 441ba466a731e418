"""The graphs of the language model: embedding, prefill over the whole prompt, decode of one token."""

import onnx_ir as ir

from pocketport.compress.families.minicpmv.parts import Parts


def build_embed(parts: Parts) -> None:
    """Token ids to embeddings."""
    g, config = parts.g, parts.config
    ids = g.input("input_ids", (parts.shape.prompt,), ir.DataType.INT32)
    table = parts.weight("llm.model.embed_tokens.weight", config.vocab_size, config.hidden_size)
    g.output(g.node("Gather", [table, ids], "llm.model.embed_tokens", axis=0, output="embeds"))


def build_prefill(parts: Parts) -> None:
    """The whole prompt at once; keys and values of every position go out, logits only for the last one."""
    g, config, rows = parts.g, parts.config, parts.shape.prompt
    group = config.num_attention_heads // config.num_key_value_heads
    x, cos, sin = _language_inputs(parts, rows)
    bias = g.input("attention_bias", (1, rows, rows))
    # One bias for every query head of a group: queries are stacked group by group along the rows.
    bias = g.node("Concat", [bias] * group, "attention_bias.grouped", axis=1) if group > 1 else bias
    for i in range(config.num_hidden_layers):
        x = _language_layer(parts, x, cos, sin, bias, i, past=None)
    last = [g.integers([n]) for n in (rows - 1, rows, 0)]
    _language_head(parts, g.node("Slice", [x, *last], "llm.model.last_row"))


def build_decode(parts: Parts) -> None:
    """One token against a cache of C columns; the new column goes out, the host writes it into the cache."""
    g, config, columns = parts.g, parts.config, parts.shape.cache
    x, cos, sin = _language_inputs(parts, 1)
    bias = g.input("attention_bias", (1, 1, columns + 1))
    shape = (1, config.num_key_value_heads, columns, config.head_dim)
    layers = range(config.num_hidden_layers)
    past = [tuple(g.input(f"past_{kind}_{i}", shape) for kind in ("key", "value")) for i in layers]
    for i in layers:
        x = _language_layer(parts, x, cos, sin, bias, i, past=past[i])
    _language_head(parts, x)


def _language_inputs(parts: Parts, rows: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    g, head = parts.g, parts.config.head_dim
    embeds = g.input("inputs_embeds", (rows, parts.config.hidden_size))
    return embeds, g.input("rope_cos", (rows, head)), g.input("rope_sin", (rows, head))


def _language_head(parts: Parts, x: ir.Value) -> None:
    """Norm and vocabulary projection; ``logits`` comes first among the outputs."""
    config = parts.config
    path = "llm.lm_head" if "llm.lm_head.weight" in parts.state else "llm.model.embed_tokens"
    weight = parts.weight(f"{path}.weight", config.vocab_size, config.hidden_size)
    x = parts.rms_norm(x, "llm.model.norm")
    logits = parts.g.node("Gemm", [x, weight], "llm.lm_head", transB=1, output="logits")
    parts.g.output(logits, first=True)


def _language_layer(
    parts: Parts,
    x: ir.Value,
    cos: ir.Value,
    sin: ir.Value,
    bias: ir.Value,
    index: int,
    past: tuple[ir.Value, ...] | None,
) -> ir.Value:
    """Llama block: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""
    g, config = parts.g, parts.config
    rows = 1 if past else parts.shape.prompt
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    path = f"llm.model.layers.{index}"
    attn, mlp = f"{path}.self_attn", f"{path}.mlp"
    h = parts.rms_norm(x, f"{path}.input_layernorm")
    q = parts.linear(h, f"{attn}.q_proj", heads * head, width, bias=False)
    k = parts.linear(h, f"{attn}.k_proj", kv * head, width, bias=False)
    v = parts.linear(h, f"{attn}.v_proj", kv * head, width, bias=False)
    q = parts.heads(parts.scaled(q, f"{attn}.q_proj", head), f"{attn}.q", (rows, heads, head), (1, 0, 2))
    k = parts.heads(k, f"{attn}.k", (rows, kv, head), (1, 0, 2))
    v = parts.heads(v, f"{attn}.v", (rows, kv, head), (1, 0, 2))
    q, k = _rotated(parts, q, cos, sin, f"{attn}.q"), _rotated(parts, k, cos, sin, f"{attn}.k")
    for kind, value in (("key", k), ("value", v)):
        name = f"present_{kind}_{index}"
        g.output(g.reshape(value, (1, kv, rows, head), f"{attn}.{name}", output=name))
    if past:
        k, v = (_extended(parts, p, new, attn, n) for p, new, n in zip(past, (k, v), ("key", "value"), strict=True))
    q = g.reshape(q, (kv, heads // kv * rows, head), f"{attn}.q.grouped")
    context = parts.attention(q, g.transpose(k, (0, 2, 1), f"{attn}.k.transposed"), v, bias, attn)
    context = g.reshape(context, (heads, rows, head), f"{attn}.context.heads")
    context = parts.merged(context, f"{attn}.context", rows, heads * head)
    x = g.node(
        "Add",
        [x, parts.linear(context, f"{attn}.o_proj", width, heads * head, bias=False)],
        f"{attn}.residual",
    )
    h = parts.rms_norm(x, f"{path}.post_attention_layernorm")
    gate = parts.linear(h, f"{mlp}.gate_proj", inner, width, bias=False)
    gate = g.node("Mul", [gate, g.node("Sigmoid", [gate], f"{mlp}.sigmoid")], f"{mlp}.silu")
    h = g.node("Mul", [gate, parts.linear(h, f"{mlp}.up_proj", inner, width, bias=False)], f"{mlp}.gated")
    return g.node("Add", [x, parts.linear(h, f"{mlp}.down_proj", width, inner, bias=False)], f"{mlp}.residual")


def _rotated(parts: Parts, x: ir.Value, cos: ir.Value, sin: ir.Value, path: str) -> ir.Value:
    """x·cos + swap_halves(x)·sin; the sign of the rotation is in `sin` (Su et al. 2021, arXiv 2104.09864)."""
    g, half = parts.g, parts.config.head_dim // 2
    halves = g.split_node(
        "Split", [x, g.integers([half, half])], f"{path}.halves", [f"{path}.first", f"{path}.second"], axis=-1
    )
    swapped = g.node("Concat", halves[::-1], f"{path}.swapped", axis=-1)
    straight, turned = g.node("Mul", [x, cos], f"{path}.cos"), g.node("Mul", [swapped, sin], f"{path}.sin")
    return g.node("Add", [straight, turned], f"{path}.rotated")


def _extended(parts: Parts, past: ir.Value, new: ir.Value, attn: str, kind: str) -> ir.Value:
    """The cache with the new column behind it, [kv, C+1, d]."""
    g, config = parts.g, parts.config
    shape = (config.num_key_value_heads, parts.shape.cache, config.head_dim)
    flat = g.reshape(past, shape, f"{attn}.past_{kind}")
    return g.node("Concat", [flat, new], f"{attn}.{kind}s", axis=1)
