"""The five component graphs of a MiniCPM-V 2.5 model (arXiv 2408.01800, section 3), as ``docs/architecture.md`` lays down.

Weights keep the published checkpoint's names, and its tensors go into the graphs as they lie on disk.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.builder import GraphBuilder, Weight
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.errors import InputError


@dataclass(frozen=True)
class StaticShape:
    """The lengths that are fixed at compile time.

    Attributes:
        patches: image patches of one slice (L); smaller slices are padded.
        prompt: prompt tokens (S), left-padded.
        cache: columns of the KV cache that decode reads (C): prompt plus new tokens.
    """

    patches: int
    prompt: int
    cache: int


def build_graphs(state: Mapping[str, Weight], config: MiniCPMVConfig, shape: StaticShape) -> dict[str, ir.Model]:
    """The component graphs by name, in the order in which data flows.

    Args:
        state: checkpoint tensors by name; they may be lazy.
        config: the checkpoint's ``config.json``.
        shape: the static lengths.

    Raises:
        InputError: a tensor of the family is missing from `state`, or has another shape than `config` says.
    """
    builders: dict[str, Callable[[_Parts], None]] = {
        "vision": _vision, "connector": _connector, "embed": _embed, "prefill": _prefill, "decode": _decode,
    }  # fmt: skip
    graphs = {}
    for name, build in builders.items():
        parts = _Parts(GraphBuilder(name), state, config, shape)
        build(parts)
        graphs[name] = parts.g.finish()
    return graphs


@dataclass(frozen=True)
class _Parts:
    """What the component builders share: layers by the path of their module in the checkpoint."""

    g: GraphBuilder
    state: Mapping[str, Weight]
    config: MiniCPMVConfig
    shape: StaticShape

    def tensor(self, name: str, *shape: int) -> Weight:
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
                where=f"tensor {name}", fix="give the config.json that belongs to this checkpoint",
            )  # fmt: skip
        return tensor

    def weight(self, name: str, *shape: int) -> ir.Value:
        return self.g.weight(name, self.tensor(name, *shape))

    def linear(
        self, x: ir.Value, path: str, n: int, k: int, *, bias: bool = True, output: str | None = None
    ) -> ir.Value:
        inputs = [x, self.weight(f"{path}.weight", n, k)]
        if bias:
            inputs.append(self.weight(f"{path}.bias", n))
        return self.g.node("Gemm", inputs, path, transB=1, output=output)

    def layer_norm(self, x: ir.Value, path: str, width: int, eps: float, output: str | None = None) -> ir.Value:
        gamma, beta = self.weight(f"{path}.weight", width), self.weight(f"{path}.bias", width)
        return self.g.node("LayerNormalization", [x, gamma, beta], path, axis=-1, epsilon=eps, output=output)

    def rms_norm(self, x: ir.Value, path: str) -> ir.Value:
        gamma = self.weight(f"{path}.weight", self.config.hidden_size)
        return self.g.node("RMSNormalization", [x, gamma], path, axis=-1, epsilon=self.config.rms_norm_eps)

    def heads(self, x: ir.Value, path: str, rows: int, heads: int, width: int, perm: tuple[int, int, int]) -> ir.Value:
        """[rows, heads·width] → [rows, heads, width] transposed by `perm`."""
        return self.g.transpose(self.g.reshape(x, (rows, heads, width), f"{path}.split"), perm, f"{path}.heads")

    def scaled(self, x: ir.Value, path: str, width: int) -> ir.Value:
        """Queries are scaled before the scores: the smaller tensor."""
        scale = self.g.weight(f"attention_scale_{width}", np.array(width**-0.5, np.float32))
        return self.g.node("Mul", [x, scale], f"{path}.scale")

    def attention(self, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value, path: str) -> ir.Value:
        """softmax(q·k + bias)·v over [heads, rows, width], [heads, width, columns], [heads, columns, width]."""
        scores = self.g.node("MatMul", [q, k], f"{path}.scores")
        masked = self.g.node("Add", [scores, bias], f"{path}.masked_scores")
        weights = self.g.node("Softmax", [masked], f"{path}.weights", axis=-1)
        return self.g.node("MatMul", [weights, v], f"{path}.context")

    def merged(self, x: ir.Value, path: str, rows: int, columns: int) -> ir.Value:
        """[heads, rows, width] → [rows, heads·width]."""
        return self.g.reshape(self.g.transpose(x, (1, 0, 2), f"{path}.rows"), (rows, columns), f"{path}.merged")


def _vision(parts: _Parts) -> None:
    """SigLIP ViT over one slice whose patches lie side by side in a strip (Zhai et al. 2023, arXiv 2303.15343)."""
    g, config, length = parts.g, parts.config.vision_config, parts.shape.patches
    width, patch = config.hidden_size, config.patch_size
    table = (config.image_size // patch) ** 2
    pixels = g.input("pixel_values", (1, 3, patch, patch * length))
    position_ids = g.input("position_ids", (length,), ir.DataType.INT32)
    bias = g.input("attention_bias", (1, 1, length))
    path = "vpm.embeddings.patch_embedding"
    weight, offset = (
        parts.weight(f"{path}.weight", width, 3, patch, patch),
        parts.weight(f"{path}.bias", width),
    )
    x = g.node("Conv", [pixels, weight, offset], path, kernel_shape=[patch, patch], strides=[patch, patch])
    x = g.transpose(g.reshape(x, (width, length), f"{path}.flat"), (1, 0), f"{path}.rows")
    path = "vpm.embeddings.position_embedding"
    positions = g.node("Gather", [parts.weight(f"{path}.weight", table, width), position_ids], path, axis=0)
    x = g.node("Add", [x, positions], "vpm.embeddings")
    for i in range(config.num_hidden_layers):
        x = _vision_layer(parts, x, bias, f"vpm.encoder.layers.{i}")
    g.output(parts.layer_norm(x, "vpm.post_layernorm", width, config.layer_norm_eps, output="vision_features"))


def _vision_layer(parts: _Parts, x: ir.Value, bias: ir.Value, path: str) -> ir.Value:
    g, config, rows = parts.g, parts.config.vision_config, parts.shape.patches
    width, heads = config.hidden_size, config.num_attention_heads
    head, inner = width // heads, config.intermediate_size
    attn = f"{path}.self_attn"
    h = parts.layer_norm(x, f"{path}.layer_norm1", width, config.layer_norm_eps)
    q = parts.scaled(parts.linear(h, f"{attn}.q_proj", width, width), f"{attn}.q_proj", head)
    k, v = (parts.linear(h, f"{attn}.{p}_proj", width, width) for p in "kv")
    q = parts.heads(q, f"{attn}.q", rows, heads, head, (1, 0, 2))
    k = parts.heads(k, f"{attn}.k", rows, heads, head, (1, 2, 0))
    v = parts.heads(v, f"{attn}.v", rows, heads, head, (1, 0, 2))
    context = parts.merged(parts.attention(q, k, v, bias, attn), attn, rows, width)
    x = g.node("Add", [x, parts.linear(context, f"{attn}.out_proj", width, width)], f"{attn}.residual")
    h = parts.linear(
        parts.layer_norm(x, f"{path}.layer_norm2", width, config.layer_norm_eps),
        f"{path}.mlp.fc1",
        inner,
        width,
    )
    h = g.node("Gelu", [h], f"{path}.mlp.gelu", approximate="tanh")
    return g.node("Add", [x, parts.linear(h, f"{path}.mlp.fc2", width, inner)], f"{path}.mlp.residual")


def _connector(parts: _Parts) -> None:
    """Perceiver resampler: learned queries attend to one slice's features, positions are added to the keys only."""
    g, config, rows = parts.g, parts.config, parts.shape.patches
    width, queries, features_width = config.hidden_size, config.query_num, config.vision_config.hidden_size
    heads, path, eps = config.resampler_heads, "resampler.attn", config.vision_config.layer_norm_eps
    head = width // heads
    features = g.input("vision_features", (rows, features_width))
    positions = g.input("position_embeds", (rows, width))
    bias = g.input("attention_bias", (1, 1, rows))
    kv = parts.linear(features, "resampler.kv_proj", width, features_width, bias=False)
    kv = parts.layer_norm(kv, "resampler.ln_kv", width, eps)
    keyed = g.node("Add", [kv, positions], "resampler.keys")
    k, v = _in_projection(parts, keyed, "k_proj", 1), _in_projection(parts, kv, "v_proj", 2)
    k = parts.heads(k, f"{path}.k", rows, heads, head, (1, 2, 0))
    v = parts.heads(v, f"{path}.v", rows, heads, head, (1, 0, 2))
    q = g.weight(f"{path}.queries", _projected_queries(parts, heads))
    context = parts.merged(parts.attention(q, k, v, bias, path), path, queries, width)
    x = parts.layer_norm(parts.linear(context, f"{path}.out_proj", width, width), "resampler.ln_post", width, eps)
    # The checkpoint computes x @ proj; its transpose makes this a linear layer like all others.
    proj = g.weight("resampler.proj", _lazy(parts.tensor("resampler.proj", width, width), np.transpose, (width, width)))
    g.output(g.node("Gemm", [x, proj], "resampler.proj.linear", transB=1, output="vision_tokens"))


def _in_projection(parts: _Parts, x: ir.Value, part: str, index: int) -> ir.Value:
    """One of the three linear layers (0 query, 1 key, 2 value) that the checkpoint keeps stacked in one tensor."""
    width, path = parts.config.hidden_size, "resampler.attn"

    def rows(stacked: NDArray[Any]) -> NDArray[Any]:
        return stacked[index * width : (index + 1) * width]

    weight = _lazy(parts.tensor(f"{path}.in_proj_weight", 3 * width, width), rows, (width, width))
    bias = _lazy(parts.tensor(f"{path}.in_proj_bias", 3 * width), rows, (width,))
    inputs = [x, parts.g.weight(f"{path}.{part}.weight", weight), parts.g.weight(f"{path}.{part}.bias", bias)]
    return parts.g.node("Gemm", inputs, f"{path}.{part}", transB=1)


def _projected_queries(parts: _Parts, heads: int) -> Weight:
    """The queries do not depend on the image: their norm, projection and scale are folded here, once, in float64."""
    config = parts.config
    width, queries, eps = config.hidden_size, config.query_num, config.vision_config.layer_norm_eps
    names = {
        "resampler.query": (queries, width), "resampler.ln_q.weight": (width,), "resampler.ln_q.bias": (width,),
        "resampler.attn.in_proj_weight": (3 * width, width), "resampler.attn.in_proj_bias": (3 * width,),
    }  # fmt: skip
    tensors = [parts.tensor(name, *shape) for name, shape in names.items()]
    head = width // heads

    def fold() -> NDArray[np.float32]:
        query, gamma, beta, weight, offset = (np.asarray(_array(t), np.float64) for t in tensors)
        centred = query - query.mean(-1, keepdims=True)
        normed = centred / np.sqrt(centred.var(-1, keepdims=True) + eps) * gamma + beta
        projected = (normed @ weight[:width].T + offset[:width]) * head**-0.5
        return np.asarray(projected.reshape(queries, heads, head).transpose(1, 0, 2), np.float32)

    return ir.LazyTensor(
        lambda: ir.Tensor(fold()), dtype=ir.DataType.FLOAT, shape=ir.Shape((heads, queries, head)), cache=True
    )


def _array(tensor: Weight) -> NDArray[np.generic]:
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()


def _lazy(tensor: Weight, change: Callable[[NDArray[Any]], NDArray[Any]], shape: tuple[int, ...]) -> Weight:
    """`change` of a tensor, computed when the weight is read."""
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(change(_array(tensor)))),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(shape),
    )


def _embed(parts: _Parts) -> None:
    g, config = parts.g, parts.config
    ids = g.input("input_ids", (parts.shape.prompt,), ir.DataType.INT32)
    table = parts.weight("llm.model.embed_tokens.weight", config.vocab_size, config.hidden_size)
    g.output(g.node("Gather", [table, ids], "llm.model.embed_tokens", axis=0, output="embeds"))


def _prefill(parts: _Parts) -> None:
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


def _decode(parts: _Parts) -> None:
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


def _language_inputs(parts: _Parts, rows: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    g, head = parts.g, parts.config.head_dim
    embeds = g.input("inputs_embeds", (rows, parts.config.hidden_size))
    return embeds, g.input("rope_cos", (rows, head)), g.input("rope_sin", (rows, head))


def _language_head(parts: _Parts, x: ir.Value) -> None:
    """Norm and vocabulary projection; ``logits`` comes first among the outputs."""
    config = parts.config
    path = "llm.lm_head" if "llm.lm_head.weight" in parts.state else "llm.model.embed_tokens"
    weight = parts.weight(f"{path}.weight", config.vocab_size, config.hidden_size)
    x = parts.rms_norm(x, "llm.model.norm")
    logits = parts.g.node("Gemm", [x, weight], "llm.lm_head", transB=1, output="logits")
    parts.g.output(logits, first=True)


def _language_layer(
    parts: _Parts,
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
    q = parts.heads(parts.scaled(q, f"{attn}.q_proj", head), f"{attn}.q", rows, heads, head, (1, 0, 2))
    k = parts.heads(k, f"{attn}.k", rows, kv, head, (1, 0, 2))
    v = parts.heads(v, f"{attn}.v", rows, kv, head, (1, 0, 2))
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


def _rotated(parts: _Parts, x: ir.Value, cos: ir.Value, sin: ir.Value, path: str) -> ir.Value:
    """x·cos + swap_halves(x)·sin; the sign of the rotation is in `sin` (Su et al. 2021, arXiv 2104.09864)."""
    g, half = parts.g, parts.config.head_dim // 2
    halves = g.split_node(
        "Split", [x, g.integers([half, half])], f"{path}.halves", [f"{path}.first", f"{path}.second"], axis=-1
    )
    swapped = g.node("Concat", halves[::-1], f"{path}.swapped", axis=-1)
    straight, turned = g.node("Mul", [x, cos], f"{path}.cos"), g.node("Mul", [swapped, sin], f"{path}.sin")
    return g.node("Add", [straight, turned], f"{path}.rotated")


def _extended(parts: _Parts, past: ir.Value, new: ir.Value, attn: str, kind: str) -> ir.Value:
    """The cache with the new column behind it, [kv, C+1, d]."""
    g, config = parts.g, parts.config
    shape = (config.num_key_value_heads, parts.shape.cache, config.head_dim)
    flat = g.reshape(past, shape, f"{attn}.past_{kind}")
    return g.node("Concat", [flat, new], f"{attn}.{kind}s", axis=1)
