"""The graphs of an image's way: the tower with the merger inside it, and the connector to the language model.

Patches come in the order of `views.patch_order`: the four of a window lie side by side, and so do the four windows of
a vision token. Attention does not care for the order of its rows, so both mergers are plain reshapes, without a
permutation that would depend on the view's size.
"""

import onnx_ir as ir

from pocketport.compress.families.minicpmv4_6.config import WINDOW
from pocketport.compress.families.minicpmv4_6.parts import Parts

TOWER = "model.vision_tower"
FOUR = WINDOW * WINDOW
CONNECTOR_EPS = 1e-6  # of its norm; no file gives it


def build_vision(parts: Parts) -> None:
    """SigLIP ViT over one view whose patches lie side by side in a strip (Zhai et al. 2023, arXiv 2303.15343)."""
    g, config, rows = parts.g, parts.config.vision_config, parts.shape.patches
    width, patch = config.hidden_size, config.patch_size
    pixels = g.input("pixel_values", (1, 3, patch, patch * rows))
    position_ids = g.input("position_ids", (rows,), ir.DataType.INT32)
    bias = g.input("attention_bias", (1, 1, rows))
    path = f"{TOWER}.embeddings.patch_embedding"
    weight, offset = parts.weight(f"{path}.weight", width, 3, patch, patch), parts.weight(f"{path}.bias", width)
    x = g.node("Conv", [pixels, weight, offset], path, kernel_shape=[patch, patch], strides=[patch, patch])
    x = g.transpose(g.reshape(x, (width, rows), f"{path}.flat"), (1, 0), f"{path}.rows")
    path = f"{TOWER}.embeddings.position_embedding"
    table = parts.weight(f"{path}.weight", config.buckets_per_side**2, width)
    x = g.node("Add", [x, g.node("Gather", [table, position_ids], path, axis=0)], f"{TOWER}.embeddings")
    for i in range(config.num_hidden_layers):
        x = _layer(parts, x, bias, f"{TOWER}.encoder.layers.{i}", rows)
        if parts.config.mergers == 2 and i == parts.config.insert_layer_id:
            x, rows = _merged(parts, x, rows), rows // FOUR
            bias = g.input("merged_attention_bias", (1, 1, rows))
    g.output(parts.layer_norm(x, f"{TOWER}.post_layernorm", width, config.layer_norm_eps, output="vision_features"))


def build_connector(parts: Parts) -> None:
    """Four neighbouring features side by side through a norm and an MLP: one vision token."""
    g, width, hidden = parts.g, parts.config.vision_config.hidden_size, parts.config.decoder().hidden_size
    path, wide = "model.merger.mlp.0", FOUR * width
    features = g.input("vision_features", (parts.features, width))
    x = g.reshape(features, (parts.features // FOUR, wide), f"{path}.neighbours")
    x = parts.layer_norm(x, f"{path}.pre_norm", wide, CONNECTOR_EPS)
    x = g.node("Gelu", [parts.linear(x, f"{path}.linear_1", wide, wide)], f"{path}.gelu")
    weight, offset = (
        parts.weight(f"{path}.linear_2.weight", hidden, wide),
        parts.weight(f"{path}.linear_2.bias", hidden),
    )
    g.output(g.node("Gemm", [x, weight, offset], f"{path}.linear_2", transB=1, output="vision_tokens"))


def _layer(parts: Parts, x: ir.Value, bias: ir.Value, path: str, rows: int) -> ir.Value:
    g, config = parts.g, parts.config.vision_config
    width, inner = config.hidden_size, config.intermediate_size
    h = parts.layer_norm(x, f"{path}.layer_norm1", width, config.layer_norm_eps)
    x = g.node("Add", [x, _attention(parts, h, bias, f"{path}.self_attn", rows)], f"{path}.self_attn.residual")
    h = parts.layer_norm(x, f"{path}.layer_norm2", width, config.layer_norm_eps)
    h = parts.linear(h, f"{path}.mlp.fc1", inner, width)
    h = g.node("Gelu", [h], f"{path}.mlp.gelu", approximate="tanh")
    return g.node("Add", [x, parts.linear(h, f"{path}.mlp.fc2", width, inner)], f"{path}.mlp.residual")


def _attention(parts: Parts, h: ir.Value, bias: ir.Value | None, path: str, rows: int) -> ir.Value:
    """Self-attention over `rows` rows; without `bias` within each window of four."""
    g, config = parts.g, parts.config.vision_config
    width, heads = config.hidden_size, config.num_attention_heads
    head = width // heads
    q = parts.scaled(parts.linear(h, f"{path}.q_proj", width, width), f"{path}.q_proj", head)
    k, v = (parts.linear(h, f"{path}.{p}_proj", width, width) for p in "kv")
    q = parts.heads(q, f"{path}.q", (rows, heads, head), (1, 0, 2))
    v = parts.heads(v, f"{path}.v", (rows, heads, head), (1, 0, 2))
    if bias is not None:
        k = parts.heads(k, f"{path}.k", (rows, heads, head), (1, 2, 0))
        context = parts.attention(q, k, v, bias, path)
    else:
        k = parts.heads(k, f"{path}.k", (rows, heads, head), (1, 0, 2))
        windows = (heads * rows // FOUR, FOUR, head)
        q, k, v = (g.reshape(x, windows, f"{path}.{n}.windows") for x, n in ((q, "q"), (k, "k"), (v, "v")))
        context = parts.attention(q, g.transpose(k, (0, 2, 1), f"{path}.k.transposed"), v, None, path)
        context = g.reshape(context, (heads, rows, head), f"{path}.context.heads")
    return parts.linear(parts.merged(context, path, rows, width), f"{path}.out_proj", width, width)


def _merged(parts: Parts, x: ir.Value, rows: int) -> ir.Value:
    """[rows, D] → [rows/4, D]: attention within each window, then an MLP over it that adds to its mean."""
    g, config = parts.g, parts.config.vision_config
    path, width, eps = f"{TOWER}.vit_merger", config.hidden_size, config.layer_norm_eps
    wide, inner, windows = FOUR * width, FOUR * config.intermediate_size, rows // FOUR
    h = parts.layer_norm(x, f"{path}.layer_norm1", width, eps)
    x = g.node("Add", [x, _attention(parts, h, None, f"{path}.self_attn", rows)], f"{path}.self_attn.residual")
    stacked = g.reshape(x, (windows, FOUR, width), f"{path}.windows")
    mean = g.node("ReduceMean", [stacked, g.integers([1])], f"{path}.mean", keepdims=0)
    h = parts.layer_norm(g.reshape(x, (windows, wide), f"{path}.neighbours"), f"{path}.pre_norm", wide, eps)
    h = g.node("Gelu", [parts.linear(h, f"{path}.linear_1", inner, wide)], f"{path}.gelu", approximate="tanh")
    return g.node("Add", [parts.linear(h, f"{path}.linear_2", width, inner), mean], f"{path}.residual")
