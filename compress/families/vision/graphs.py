"""The graphs of vision towers and of the text towers beside them.

SigLIP is Zhai et al. 2023 (arXiv 2303.15343), its second version with images of any shape (NaFlex) Tschannen et al.
2025 (arXiv 2502.14786), CLIP Radford et al. 2021 (arXiv 2103.00020).
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.families.layers import Layers, derived
from pocketport.compress.families.vision.config import CLIP, NAFLEX, EncodersConfig, TextConfig
from pocketport.compress.families.vision.encoder import Encoder

UNSEEN = -100.0  # added to scores that attention must not see: finite, so that it has an encoding
FEATURES, POOLED, IMAGE, TEXT = "vision_features", "pooled_features", "image_embeds", "text_embeds"


@dataclass(frozen=True)
class TowerParts(Layers):
    """`Layers` of one tower.

    Attributes:
        prefix: what its tensors' names begin with (``vision_model.``), or nothing.
        config: of the whole model.
        length: image patches (L) of NaFlex, tokens (S) of text.
    """

    prefix: str
    config: EncodersConfig
    length: int


def build_vision(parts: TowerParts) -> None:
    """One image to features of its patches, and to one vector.

    `vision_features` [L,D] are the last hidden state as transformers has it. The vector is `image_embeds` [1,P] of
    models that compare images with texts, else `pooled_features` [1,D]; a tower without a pooling head has none.
    """
    g, config, prefix = parts.g, parts.config.vision, parts.prefix
    width, eps = config.hidden_size, config.layer_norm_eps
    encoder = Encoder(config)
    bias = None
    if parts.config.kind == CLIP:
        x, rows = _clip_embeddings(parts)
        x = parts.layer_norm(x, f"{prefix}pre_layrnorm", width, eps)  # sic
    elif parts.config.kind == NAFLEX:
        x, bias, rows = _naflex_embeddings(parts)
    else:
        x, rows = _fixed_embeddings(parts)
    clip = parts.config.kind == CLIP
    x = encoder.build(parts, x, bias, rows, f"{prefix}encoder.layers", FEATURES if clip else None)
    if clip:
        g.output(x)
        first = g.node("Slice", [x, *(g.integers([n]) for n in (0, 1, 0))], f"{prefix}class_row")
        projected = "visual_projection.weight" in parts.state
        pooled = parts.layer_norm(first, f"{prefix}post_layernorm", width, eps, None if projected else POOLED)
        g.output(_projected(parts, pooled, "visual_projection", width, IMAGE) if projected else pooled)
        return
    x = parts.layer_norm(x, f"{prefix}post_layernorm", width, eps, output=FEATURES)
    g.output(x)
    if config.vision_use_head:
        output = POOLED if parts.config.text is None else IMAGE
        g.output(_attention_pooled(parts, encoder, x, bias, rows, output))


def build_text(parts: TowerParts) -> None:
    """Token ids `input_ids` i32 [S] to `text_features` [S,D] and to one vector `text_embeds` [1,P].

    CLIP takes its vector where `pooling_weights` f32 [1,S] is 1: at the end of the text. SigLIP takes the last row:
    its texts are padded to S.
    """
    g, config, prefix, rows = parts.g, parts.config.text, parts.prefix, parts.length
    assert config is not None
    width = config.hidden_size
    x = _text_embeddings(parts, config)
    clip = parts.config.kind == CLIP
    seen = np.triu(np.full((1, rows, rows), UNSEEN, np.float32), 1)
    bias = g.weight("causal_bias", seen) if clip else None
    x = Encoder(config).build(parts, x, bias, rows, f"{prefix}encoder.layers")
    x = parts.layer_norm(x, f"{prefix}final_layer_norm", width, config.layer_norm_eps, output="text_features")
    g.output(x)
    if clip:
        pooled = g.node("MatMul", [g.input("pooling_weights", (1, rows)), x], f"{prefix}end_row")
        g.output(_projected(parts, pooled, "text_projection", width, TEXT))
        return
    last = g.node("Slice", [x, *(g.integers([n]) for n in (rows - 1, rows, 0))], f"{prefix}last_row")
    size = config.projection_size or width
    head = [last, parts.weight(f"{prefix}head.weight", size, width), parts.weight(f"{prefix}head.bias", size)]
    g.output(g.node("Gemm", head, f"{prefix}head", transB=1, output=TEXT))


def _projected(parts: TowerParts, x: ir.Value, path: str, width: int, output: str) -> ir.Value:
    """A projection without bias into the space that images and texts share."""
    assert parts.config.projection is not None
    weight = parts.weight(f"{path}.weight", parts.config.projection, width)
    return parts.g.node("Gemm", [x, weight], path, transB=1, output=output)


def patch_rows(
    parts: Layers, pixels: ir.Value, path: str, width: int, patch: int, patches: int, *, bias: bool
) -> ir.Value:
    """Pixels [1,3,H,W] to one row per patch [patches, width]; what is left beyond whole patches is not seen."""
    g = parts.g
    inputs = [pixels, parts.weight(f"{path}.weight", width, 3, patch, patch)]
    if bias:
        inputs.append(parts.weight(f"{path}.bias", width))
    x = g.node("Conv", inputs, path, kernel_shape=[patch, patch], strides=[patch, patch])
    return g.transpose(g.reshape(x, (width, patches), f"{path}.flat"), (1, 0), f"{path}.rows")


def _fixed_embeddings(parts: TowerParts) -> tuple[ir.Value, int]:
    """SigLIP: patches and their learned positions; and how many rows that makes."""
    config, path = parts.config.vision, f"{parts.prefix}embeddings"
    rows, width = config.side**2, config.hidden_size
    pixels = parts.g.input("pixel_values", (1, 3, config.image_size, config.image_size))
    x = patch_rows(parts, pixels, f"{path}.patch_embedding", width, config.patch_size, rows, bias=True)
    positions = parts.weight(f"{path}.position_embedding.weight", rows, width)
    return parts.g.node("Add", [x, positions], path), rows


def _clip_embeddings(parts: TowerParts) -> tuple[ir.Value, int]:
    """CLIP: a learned row in front of the patches, whose last state stands for the image."""
    g, config, path = parts.g, parts.config.vision, f"{parts.prefix}embeddings"
    patches, width = config.side**2, config.hidden_size
    pixels = g.input("pixel_values", (1, 3, config.image_size, config.image_size))
    x = patch_rows(parts, pixels, f"{path}.patch_embedding", width, config.patch_size, patches, bias=False)
    name = f"{path}.class_embedding"
    row = derived(lambda array: array[None], parts.tensor(name, width), shape=(1, width))
    x = g.node("Concat", [g.weight(name, row), x], f"{path}.with_class", axis=0)
    positions = parts.weight(f"{path}.position_embedding.weight", patches + 1, width)
    return g.node("Add", [x, positions], path), patches + 1


def _naflex_embeddings(parts: TowerParts) -> tuple[ir.Value, ir.Value, int]:
    """NaFlex: patches as rows of pixels, positions resampled to the image's grid; and the bias that hides padding."""
    g, config, path = parts.g, parts.config.vision, f"{parts.prefix}embeddings"
    rows, width, table = parts.length, config.hidden_size, int(config.num_patches**0.5) ** 2
    flat = 3 * config.patch_size**2
    pixels = g.input("pixel_values", (rows, flat))
    mixing = g.input("position_weights", (rows, table))
    bias = g.input("attention_bias", (1, 1, rows))
    x = parts.linear(pixels, f"{path}.patch_embedding", width, flat)
    own = parts.weight(f"{path}.position_embedding.weight", table, width)
    positions = g.node("MatMul", [mixing, own], f"{path}.position_embedding.resampled")
    return g.node("Add", [x, positions], path), bias, rows


def _text_embeddings(parts: TowerParts, config: TextConfig) -> ir.Value:
    g, path, width, rows = parts.g, f"{parts.prefix}embeddings", config.hidden_size, parts.length
    ids = g.input("input_ids", (rows,), ir.DataType.INT32)
    words = parts.weight(f"{path}.token_embedding.weight", config.vocab_size, width)
    x = g.node("Gather", [words, ids], f"{path}.token_embedding", axis=0)
    name = f"{path}.position_embedding.weight"
    table = parts.tensor(name, config.max_position_embeddings, width)
    if rows < config.max_position_embeddings:
        table = derived(lambda array: array[:rows], table, shape=(rows, width))
    return g.node("Add", [x, g.weight(name, table)], path)


def _attention_pooled(
    parts: TowerParts, encoder: Encoder, x: ir.Value, bias: ir.Value | None, rows: int, output: str
) -> ir.Value:
    """One learned query attends to all rows, and a residual MLP follows, [1,D]."""
    g, width, heads = parts.g, encoder.config.hidden_size, encoder.config.num_attention_heads
    head = width // heads
    path, attn = f"{parts.prefix}head", f"{parts.prefix}head.attention"
    stacked = parts.tensor(f"{attn}.in_proj_weight", 3 * width, width)
    offsets = parts.tensor(f"{attn}.in_proj_bias", 3 * width)

    def project(name: str, index: int) -> ir.Value:
        """Keys (1) or values (2): a third of the stacked linear layers."""
        third = slice(index * width, (index + 1) * width)
        weight = derived(lambda array: array[third], stacked, shape=(width, width))
        offset = derived(lambda array: array[third], offsets, shape=(width,))
        inputs = [x, g.weight(f"{attn}.{name}.weight", weight), g.weight(f"{attn}.{name}.bias", offset)]
        return g.node("Gemm", inputs, f"{attn}.{name}", transB=1)

    def query(
        probe: NDArray[np.float32], weight: NDArray[np.float32], offset: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """The query does not depend on the image: its projection and scale are folded here, in float64."""
        projected = probe[0].astype(np.float64) @ weight[:width].T.astype(np.float64) + offset[:width]
        folded: NDArray[np.float64] = projected.reshape(1, heads, head).transpose(1, 0, 2) * head**-0.5
        return folded

    probe = parts.tensor(f"{path}.probe", 1, 1, width)
    q = g.weight(f"{attn}.query", derived(query, probe, stacked, offsets, shape=(heads, 1, head)))
    k = parts.heads(project("k_proj", 1), f"{attn}.k", (rows, heads, head), (1, 2, 0))
    v = parts.heads(project("v_proj", 2), f"{attn}.v", (rows, heads, head), (1, 0, 2))
    context = parts.merged(parts.attention(q, k, v, bias, attn), attn, 1, width)
    pooled = parts.linear(context, f"{attn}.out_proj", width, width)
    h = encoder.mlp(
        parts, parts.layer_norm(pooled, f"{path}.layernorm", width, encoder.config.layer_norm_eps), f"{path}.mlp"
    )
    return g.node("Add", [pooled, h], f"{path}.residual", output=output)
