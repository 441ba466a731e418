"""The vision tower of versions 1.0 and 2.0: SigLIP as timm's ``vit_so400m_patch14_siglip_384`` publishes it.

Unlike the later towers its position table is resampled to each view, queries, keys and values come from one
projection, and its GELU is the exact one.
"""

import onnx_ir as ir

from pocketport.compress.families.minicpmv.parts import Parts, lazily


def build_timm_vision(parts: Parts) -> None:
    """One slice whose patches lie side by side in a strip; `position_weights` [L, table] resample the position table."""
    g, config, length = parts.g, parts.config.vision_config, parts.shape.patches
    width, patch, table = config.hidden_size, config.patch_size, config.buckets_per_side**2
    pixels = g.input("pixel_values", (1, 3, patch, patch * length))
    mixing = g.input("position_weights", (length, table))
    bias = g.input("attention_bias", (1, 1, length))
    path = "vpm.patch_embed.proj"
    weight, offset = parts.weight(f"{path}.weight", width, 3, patch, patch), parts.weight(f"{path}.bias", width)
    x = g.node("Conv", [pixels, weight, offset], path, kernel_shape=[patch, patch], strides=[patch, patch])
    x = g.transpose(g.reshape(x, (width, length), f"{path}.flat"), (1, 0), f"{path}.rows")
    path = "vpm.pos_embed"
    stored = g.weight(path, lazily(parts.tensor(path, 1, table, width), lambda rows: rows[0], (table, width)))
    x = g.node("Add", [x, g.node("MatMul", [mixing, stored], f"{path}.resampled")], "vpm.embeddings")
    for i in range(parts.config.vision_layers):
        x = _block(parts, x, bias, f"vpm.blocks.{i}")
    g.output(parts.layer_norm(x, "vpm.norm", width, config.layer_norm_eps, output="vision_features"))


def _block(parts: Parts, x: ir.Value, bias: ir.Value, path: str) -> ir.Value:
    g, config, rows = parts.g, parts.config.vision_config, parts.shape.patches
    width, heads, inner, eps = (
        config.hidden_size, config.num_attention_heads, config.intermediate_size, config.layer_norm_eps,
    )  # fmt: skip
    head, attn = width // heads, f"{path}.attn"
    h = parts.layer_norm(x, f"{path}.norm1", width, eps)
    fused = parts.linear(h, f"{attn}.qkv", 3 * width, width)
    names = [f"{attn}.{n}" for n in "qkv"]
    q, k, v = g.split_node("Split", [fused, g.integers([width] * 3)], f"{attn}.split", names, axis=-1)
    q = parts.heads(parts.scaled(q, f"{attn}.q", head), f"{attn}.q", (rows, heads, head), (1, 0, 2))
    k = parts.heads(k, f"{attn}.k", (rows, heads, head), (1, 2, 0))
    v = parts.heads(v, f"{attn}.v", (rows, heads, head), (1, 0, 2))
    context = parts.merged(parts.attention(q, k, v, bias, attn), attn, rows, width)
    x = g.node("Add", [x, parts.linear(context, f"{attn}.proj", width, width)], f"{attn}.residual")
    h = parts.linear(parts.layer_norm(x, f"{path}.norm2", width, eps), f"{path}.mlp.fc1", inner, width)
    h = g.node("Gelu", [h], f"{path}.mlp.gelu", approximate="none")
    return g.node("Add", [x, parts.linear(h, f"{path}.mlp.fc2", width, inner)], f"{path}.mlp.residual")
