"""The published model in torch, for the parity gate: other people's code where there is any, else from its description.

Towers of version 2.5 and later are transformers' Idefics2 (which is where they came from). Those of 1.0 and 2.0 are
written here as timm 0.9 describes ``vit_so400m_patch14_siglip_384`` (timm itself needs a torchvision that has no CPU
build). The resampler is torch's own multi-head attention. Nothing is shared with the graphs: images are squares rather
than strips, position tables are resampled by torch, queries are not folded. Parameter names are the published ones.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pocketport.compress.families.minicpmv.config import MiniCPMVConfig, VisionConfig
from pocketport.compress.families.minicpmv.versions import version_of
from pocketport.compress.families.transformers_reference import imported_transformers
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

TOWER, RESAMPLER = "vpm", "resampler"


class TimmAttention(nn.Module):
    """Bidirectional attention with one projection for queries, keys and values."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [1,L,D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class TimmBlock(nn.Module):
    """One pre-norm block; its GELU is exact."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attn = TimmAttention(config)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, inner), act=nn.GELU(), fc2=nn.Linear(inner, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`x` [1,L,D]."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class TimmTower(nn.Module):
    """timm's SigLIP tower without its pooling head: ``forward_features`` with ``dynamic_img_size``."""

    def __init__(self, config: VisionConfig, layers: int) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.side = config.buckets_per_side
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(config.num_channels, width, patch, patch)))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.side**2, width))
        self.blocks = nn.ModuleList(TimmBlock(config) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """`pixels` [1,3,h,w] → [1,L,D]."""
        x = self.patch_embed(pixels)
        x = (x + resampled(self.pos_embed[0], self.side, x.shape[-2:], antialias=True)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out


class Resampler(nn.Module):
    """Queries attend to the patches of a view; positions go to the keys (and, up to 2.0, to the queries).

    Version 4.5 adds temporal positions between the frames of a video; an image has none (its ``temporal_ids`` are −1,
    whose embedding is zero), so that one frame is resampled as in 2.6.
    """

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__()
        width, queries, eps = config.hidden_size, config.query_num, config.vision_config.layer_norm_eps
        version = version_of(config)
        self.stored_keys = version.resampled_positions
        self.query = nn.Parameter(torch.zeros(queries, width))
        self.proj = nn.Parameter(torch.zeros(width, width))
        self.kv_proj = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        self.attn = nn.MultiheadAttention(width, config.resampler_heads, batch_first=True)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(width, eps=eps) for _ in range(3))
        self.pos_embed = nn.Parameter(torch.zeros(queries, width)) if version.positioned_queries else None

    def forward(self, features: Tensor, target: tuple[int, int]) -> Tensor:
        """`features` [1,L,D], `target` (rows, columns) of patches → [1,Q,H]."""
        values = self.ln_kv(self.kv_proj(features))
        queries = self.ln_q(self.query)[None]
        if self.pos_embed is not None:
            queries = queries + self.pos_embed
        out, _ = self.attn(queries, values + self._positions(target), values, need_weights=False)
        result: Tensor = self.ln_post(out) @ self.proj
        return result

    def _positions(self, target: tuple[int, int]) -> Tensor:
        """Of the keys, [1,L,H]."""
        if self.stored_keys and self.pos_embed is not None:
            side = math.isqrt(len(self.pos_embed))
            return resampled(self.pos_embed, side, target, antialias=False).flatten(2).transpose(1, 2)
        return sincos(self.query.shape[1], target)[None]


def resampled(table: Tensor, side: int, target: tuple[int, ...], *, antialias: bool) -> Tensor:
    """A table [side², D] of a square, bicubically resampled to `target` (rows, columns): [1,D,rows,columns]."""
    square = table.T.reshape(1, -1, side, side)
    if tuple(target) == (side, side):
        return square
    return F.interpolate(square, size=tuple(target), mode="bicubic", align_corners=False, antialias=antialias)


def sincos(width: int, target: tuple[int, int]) -> Tensor:
    """The published 2D positions [L,width]: columns in the first half of the channels, rows in the second."""
    speeds = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = (torch.arange(count, dtype=torch.float64) for count in target)
    places = torch.stack([columns.repeat(len(rows)), rows.repeat_interleave(len(columns))])
    angles = places[..., None] * speeds
    first, second = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return torch.cat([first, second], dim=-1).float()


def tower_of(config: MiniCPMVConfig) -> nn.Module:
    """The vision tower under its published names.

    Raises:
        UsageError: transformers is not installed.
    """
    vision = config.vision_config
    if version_of(config).timm:
        return TimmTower(vision, config.vision_layers)
    imported_transformers()
    from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
    from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

    settings = {
        "hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size", "num_channels",
        "hidden_act", "layer_norm_eps",
    }  # fmt: skip
    published = Idefics2VisionConfig(**vision.model_dump(include=settings), num_hidden_layers=config.vision_layers)
    tower: nn.Module = Idefics2VisionTransformer._from_config(published, attn_implementation="eager")
    return tower


@dataclass(frozen=True)
class OriginalVision:
    """The published way of a view to vision tokens, float32.

    Attributes:
        config: the checkpoint's.
        tower: of `tower_of`.
        resampler: the published one.
    """

    config: MiniCPMVConfig
    tower: nn.Module
    resampler: Resampler

    @classmethod
    def of(cls, source: Source) -> "OriginalVision":
        """Over a checkpoint's tensors, read as float32.

        Raises:
            InputError: a tensor is missing, or has another shape.
            UsageError: transformers is needed and not installed.
        """
        config = MiniCPMVConfig.of(source)
        with torch.device("meta"):
            tower, resampler = tower_of(config), Resampler(config)
        _fill(tower, source, TOWER)
        _fill(resampler, source, RESAMPLER)
        return cls(config, tower.eval(), resampler.eval())

    @torch.inference_mode()
    def encode(self, view: Image.Image) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The tower's features [L,D] and the vision tokens [Q,H] of one view in whole patches."""
        pixels = torch.from_numpy(np.array(view.convert("RGB"), np.float32)).permute(2, 0, 1)[None] / 255
        pixels = (pixels - 0.5) / 0.5
        patch = self.config.vision_config.patch_size
        target = (view.height // patch, view.width // patch)
        features = self.tower(pixels) if isinstance(self.tower, TimmTower) else self._siglip(pixels, target)
        return features[0].numpy(), self.resampler(features, target)[0].numpy()

    def _siglip(self, pixels: Tensor, target: tuple[int, int]) -> Tensor:
        """Idefics2's tower; patches get the published positions, bucketized in float64 (see `slicing.position_ids`)."""
        tower: Any = self.tower
        buckets = self.config.vision_config.buckets_per_side
        borders = torch.arange(1, buckets, dtype=torch.float64) / buckets
        rows, columns = (
            torch.bucketize(torch.arange(count, dtype=torch.float64) / count, borders, right=True) for count in target
        )
        ids = (rows[:, None] * buckets + columns).flatten()
        patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        embedded = patches + tower.embeddings.position_embedding(ids)
        encoded = tower.encoder(inputs_embeds=embedded, attention_mask=None)
        out: Tensor = tower.post_layernorm(encoded.last_hidden_state)
        return out


def _fill(module: nn.Module, source: Source, prefix: str) -> None:
    """Load every parameter of a module from the checkpoint."""
    state: Mapping[str, Tensor] = {
        name: torch.from_numpy(np.asarray(source.tensors[f"{prefix}.{name}"].numpy(), np.float32))
        for name in module.state_dict()
        if f"{prefix}.{name}" in source.tensors
    }
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise InputError(
            f"its {prefix} is not the published one: {error}",
            where=str(source.path),
            fix="give the whole checkpoint with its own config.json",
        ) from error
