"""The graphs of an image's way: the vision tower over its patches, and the mergers to the language model.

Qwen2-VL (arXiv 2409.12191, section 2.1), Qwen2.5-VL (arXiv 2502.13923, section 2.1) and Qwen3-VL (arXiv 2511.21631).
Rows are patches in the published order: the patches of one vision token lie one behind another.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from pocketport.compress.families.layers import derived
from pocketport.compress.families.qwen_vl.parts import Parts

QUICK_GELU = 1.702  # Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2
MLP_PATHS: Mapping[str, tuple[str, str]] = {"qwen2_vl": ("fc1", "fc2"), "qwen3_vl": ("linear_fc1", "linear_fc2")}
MERGER_PATHS: Mapping[str, tuple[str, str, str]] = {
    "qwen2_vl": ("ln_q", "mlp.0", "mlp.2"),
    "qwen2_5_vl": ("ln_q", "mlp.0", "mlp.2"),
    "qwen3_vl": ("norm", "linear_fc1", "linear_fc2"),
}


def build_vision(parts: Parts) -> None:
    """ViT with two-dimensional rotary positions over the flattened patches of one image.

    Inputs: ``pixel_values`` [L, patch width], ``rope_cos`` and ``rope_sin`` [L, d], ``attention_bias`` [1,1,L];
    ``window_bias`` [1,L,L] where layers attend within windows; ``position_weights`` [L, table], which resample the
    learned position table, where there is one. Outputs: ``vision_features`` [L,D], and ``deepstack_features_<i>``
    [L,D] for each layer whose output goes to the language model too.
    """
    g, config, length = parts.g, parts.config.vision, parts.shape.patches
    width = config.width
    pixels = g.input("pixel_values", (length, config.patch_width))
    x = _patch_embedding(parts, pixels)
    if config.table_side:
        mixing = g.input("position_weights", (length, config.table_side**2))
        table = parts.weight(f"{parts.visual}.pos_embed.weight", config.table_side**2, width)
        positions = g.node("MatMul", [mixing, table], f"{parts.visual}.pos_embed.resampled")
        x = g.node("Add", [x, positions], f"{parts.visual}.pos_embed")
    cos, sin = (g.input(f"rope_{n}", (length, config.head)) for n in ("cos", "sin"))
    everything = g.input("attention_bias", (1, 1, length))
    within = everything if config.window is None else g.input("window_bias", (1, length, length))
    features: list[ir.Value] = []
    for i in range(config.depth):
        bias = within if config.sees_windows(i) else everything
        x = _block(parts, x, (cos, sin), bias, i)
        if i in config.deepstack:
            x.name = f"deepstack_features_{len(features)}"
            features.append(x)
    x.name = "vision_features"
    for value in (x, *features):
        g.output(value)


def build_connector(parts: Parts) -> None:
    """The patch merger: the patches of one token side by side through an MLP; one more for each deepstack feature.

    Inputs ``vision_features`` and ``deepstack_features_<i>`` [L,D], outputs ``vision_tokens`` and
    ``deepstack_tokens_<i>`` [Q,H], Q = L / merge².
    """
    g, config = parts.g, parts.config.vision
    shape = (parts.shape.patches, config.width)
    features = g.input("vision_features", shape)
    seen = [g.input(f"deepstack_features_{i}", shape) for i in range(len(config.deepstack))]
    g.output(_merger(parts, features, f"{parts.visual}.merger", "vision_tokens"))
    for i, value in enumerate(seen):
        path = f"{parts.visual}.deepstack_merger_list.{i}"
        g.output(_merger(parts, value, path, f"deepstack_tokens_{i}", norm_merged=True))


def _patch_embedding(parts: Parts, pixels: ir.Value) -> ir.Value:
    """A convolution that sees each patch once is a linear layer over the flattened patches."""
    g, config = parts.g, parts.config.vision
    path = f"{parts.visual}.patch_embed.proj"
    kernel = (config.temporal, config.patch, config.patch)
    stored = parts.tensor(f"{path}.weight", config.width, config.channels, *kernel)
    shape = (config.width, config.patch_width)
    flat = derived(lambda kernels: kernels.reshape(shape), stored, shape=shape)
    inputs = [pixels, g.weight(f"{path}.weight_flat", flat)]
    if parts.config.kind == "qwen3_vl":
        inputs.append(parts.weight(f"{path}.bias", config.width))
    return g.node("Gemm", inputs, path, transB=1)


def _block(parts: Parts, x: ir.Value, rope: tuple[ir.Value, ir.Value], bias: ir.Value, index: int) -> ir.Value:
    """Norm, attention, norm, MLP; each of the two adds to the residual stream."""
    g, width = parts.g, parts.config.vision.width
    path = f"{parts.visual}.blocks.{index}"
    attended = _attention(parts, parts.norm(x, f"{path}.norm1", width), rope, bias, f"{path}.attn")
    x = g.node("Add", [x, attended], f"{path}.attn.residual")
    h = _mlp(parts, parts.norm(x, f"{path}.norm2", width), f"{path}.mlp")
    return g.node("Add", [x, h], f"{path}.mlp.residual")


def _attention(parts: Parts, h: ir.Value, rope: tuple[ir.Value, ir.Value], bias: ir.Value, path: str) -> ir.Value:
    g, config, rows = parts.g, parts.config.vision, parts.shape.patches
    width, heads, head = config.width, config.heads, config.head
    fused = parts.linear(h, f"{path}.qkv", 3 * width, width)
    names = [f"{path}.{n}" for n in "qkv"]
    q, k, v = g.split_node("Split", [fused, g.integers([width] * 3)], f"{path}.split", names, axis=-1)
    q = parts.scaled(q, f"{path}.q", head)
    q, k, v = (parts.heads(x, name, (rows, heads, head), (1, 0, 2)) for x, name in zip((q, k, v), names, strict=True))
    q, k = (parts.rotated(x, *rope, head, name) for x, name in zip((q, k), names, strict=False))
    context = parts.attention(q, g.transpose(k, (0, 2, 1), f"{path}.k.transposed"), v, bias, path)
    return parts.linear(parts.merged(context, path, rows, width), f"{path}.proj", width, width)


def _mlp(parts: Parts, h: ir.Value, path: str) -> ir.Value:
    g, config = parts.g, parts.config.vision
    width, inner = config.width, config.inner
    if parts.config.kind == "qwen2_5_vl":
        gate = parts.linear(h, f"{path}.gate_proj", inner, width)
        gate = g.node("Mul", [gate, g.node("Sigmoid", [gate], f"{path}.sigmoid")], f"{path}.silu")
        h = g.node("Mul", [gate, parts.linear(h, f"{path}.up_proj", inner, width)], f"{path}.gated")
        return parts.linear(h, f"{path}.down_proj", width, inner)
    first, second = MLP_PATHS[parts.config.kind]
    h = parts.linear(h, f"{path}.{first}", inner, width)
    if config.activation == "quick_gelu":
        steep = g.node("Mul", [h, g.weight("quick_gelu", np.array(QUICK_GELU, np.float32))], f"{path}.steep")
        h = g.node("Mul", [h, g.node("Sigmoid", [steep], f"{path}.sigmoid")], f"{path}.gelu")
    else:
        h = g.node("Gelu", [h], f"{path}.gelu", approximate="tanh")
    return parts.linear(h, f"{path}.{second}", width, inner)


def _merger(parts: Parts, x: ir.Value, path: str, output: str, *, norm_merged: bool = False) -> ir.Value:
    """[L,D] → [Q,H]. The norm is of each patch, or of all patches of a token together."""
    g, config = parts.g, parts.config.vision
    norm, first, second = (f"{path}.{name}" for name in MERGER_PATHS[parts.config.kind])
    tokens, wide = parts.shape.patches // config.merged, config.merged * config.width
    if not norm_merged:
        x = parts.norm(x, norm, config.width)
    x = g.reshape(x, (tokens, wide), f"{path}.side_by_side")
    if norm_merged:
        x = parts.norm(x, norm, wide)
    x = g.node("Gelu", [parts.linear(x, first, wide, wide)], f"{path}.gelu", approximate="none")
    inputs = [
        x,
        parts.weight(f"{second}.weight", config.out_width, wide),
        parts.weight(f"{second}.bias", config.out_width),
    ]
    return g.node("Gemm", inputs, second, transB=1, output=output)
