"""The graphs of an image's way: the vision tower over one slice, and the connector to the language model."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.builder import Weight
from pocketport.compress.families.minicpmv.parts import Parts, array_of, lazily
from pocketport.compress.families.minicpmv.timm_graphs import build_timm_vision
from pocketport.compress.families.minicpmv.versions import version_of


def build_vision(parts: Parts) -> None:
    """SigLIP ViT over one slice whose patches lie side by side in a strip (Zhai et al. 2023, arXiv 2303.15343)."""
    if version_of(parts.config).timm:
        build_timm_vision(parts)
        return
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
    for i in range(parts.config.vision_layers):
        x = _vision_layer(parts, x, bias, f"vpm.encoder.layers.{i}")
    g.output(parts.layer_norm(x, "vpm.post_layernorm", width, config.layer_norm_eps, output="vision_features"))


def _vision_layer(parts: Parts, x: ir.Value, bias: ir.Value, path: str) -> ir.Value:
    g, config, rows = parts.g, parts.config.vision_config, parts.shape.patches
    width, heads = config.hidden_size, config.num_attention_heads
    head, inner = width // heads, config.intermediate_size
    attn = f"{path}.self_attn"
    h = parts.layer_norm(x, f"{path}.layer_norm1", width, config.layer_norm_eps)
    q = parts.scaled(parts.linear(h, f"{attn}.q_proj", width, width), f"{attn}.q_proj", head)
    k, v = (parts.linear(h, f"{attn}.{p}_proj", width, width) for p in "kv")
    q = parts.heads(q, f"{attn}.q", (rows, heads, head), (1, 0, 2))
    k = parts.heads(k, f"{attn}.k", (rows, heads, head), (1, 2, 0))
    v = parts.heads(v, f"{attn}.v", (rows, heads, head), (1, 0, 2))
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


def build_connector(parts: Parts) -> None:
    """Perceiver resampler: learned queries attend to one slice's features, positions are added to the keys only.

    Version 1.0 takes `position_weights` [L,Q] instead of `position_embeds`: they resample the queries' own positions.
    """
    g, config, rows = parts.g, parts.config, parts.shape.patches
    width, queries, features_width = config.hidden_size, config.query_num, config.vision_config.hidden_size
    heads, path, eps = config.resampler_heads, "resampler.attn", config.vision_config.layer_norm_eps
    head = width // heads
    features = g.input("vision_features", (rows, features_width))
    if version_of(config).resampled_positions:
        own = parts.weight("resampler.pos_embed", queries, width)
        mixing = g.input("position_weights", (rows, queries))
        positions = g.node("MatMul", [mixing, own], "resampler.pos_embed.resampled")
    else:
        positions = g.input("position_embeds", (rows, width))
    bias = g.input("attention_bias", (1, 1, rows))
    kv = parts.linear(features, "resampler.kv_proj", width, features_width, bias=False)
    kv = parts.layer_norm(kv, "resampler.ln_kv", width, eps)
    keyed = g.node("Add", [kv, positions], "resampler.keys")
    k, v = _in_projection(parts, keyed, "k_proj", 1), _in_projection(parts, kv, "v_proj", 2)
    k = parts.heads(k, f"{path}.k", (rows, heads, head), (1, 2, 0))
    v = parts.heads(v, f"{path}.v", (rows, heads, head), (1, 0, 2))
    q = g.weight(f"{path}.queries", _projected_queries(parts, heads))
    context = parts.merged(parts.attention(q, k, v, bias, path), path, queries, width)
    x = parts.layer_norm(parts.linear(context, f"{path}.out_proj", width, width), "resampler.ln_post", width, eps)
    # The checkpoint computes x @ proj; its transpose makes this a linear layer like all others.
    proj = g.weight(
        "resampler.proj", lazily(parts.tensor("resampler.proj", width, width), np.transpose, (width, width))
    )
    g.output(g.node("Gemm", [x, proj], "resampler.proj.linear", transB=1, output="vision_tokens"))


def _in_projection(parts: Parts, x: ir.Value, part: str, index: int) -> ir.Value:
    """One of the three linear layers (0 query, 1 key, 2 value) that the checkpoint keeps stacked in one tensor."""
    width, path = parts.config.hidden_size, "resampler.attn"

    def rows(stacked: NDArray[Any]) -> NDArray[Any]:
        return stacked[index * width : (index + 1) * width]

    weight = lazily(parts.tensor(f"{path}.in_proj_weight", 3 * width, width), rows, (width, width))
    bias = lazily(parts.tensor(f"{path}.in_proj_bias", 3 * width), rows, (width,))
    inputs = [x, parts.g.weight(f"{path}.{part}.weight", weight), parts.g.weight(f"{path}.{part}.bias", bias)]
    return parts.g.node("Gemm", inputs, f"{path}.{part}", transB=1)


def _projected_queries(parts: Parts, heads: int) -> Weight:
    """The queries do not depend on the image: their norm, projection and scale are folded here, once, in float64."""
    config = parts.config
    width, queries, eps = config.hidden_size, config.query_num, config.vision_config.layer_norm_eps
    names = {
        "resampler.query": (queries, width), "resampler.ln_q.weight": (width,), "resampler.ln_q.bias": (width,),
        "resampler.attn.in_proj_weight": (3 * width, width), "resampler.attn.in_proj_bias": (3 * width,),
    }  # fmt: skip
    tensors = [parts.tensor(name, *shape) for name, shape in names.items()]
    positioned = version_of(config).positioned_queries
    own = parts.tensor("resampler.pos_embed", queries, width) if positioned else np.zeros(1, np.float32)
    head = width // heads

    def fold() -> NDArray[np.float32]:
        query, gamma, beta, weight, offset = (np.asarray(array_of(t), np.float64) for t in tensors)
        centred = query - query.mean(-1, keepdims=True)
        normed = centred / np.sqrt(centred.var(-1, keepdims=True) + eps) * gamma + beta
        placed = normed + np.asarray(array_of(own), np.float64)
        projected = (placed @ weight[:width].T + offset[:width]) * head**-0.5
        return np.asarray(projected.reshape(queries, heads, head).transpose(1, 0, 2), np.float32)

    return ir.LazyTensor(
        lambda: ir.Tensor(fold()), dtype=ir.DataType.FLOAT, shape=ir.Shape((heads, queries, head)), cache=True
    )
