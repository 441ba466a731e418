"""MiniCPM-V 2.5 in plain torch: the model that is trained (the parity gate compares with other people's code).

Parameter names are exactly those of ``openbmb/MiniCPM-Llama3-V-2_5``. Shapes: B views (or sequences),
L patches (padded), T tokens, Q queries, D channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketport.compress.families.minicpmv.config import MiniCPMVConfig, VisionConfig

KVCache = list[tuple[Tensor, Tensor]]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention, [B, H, T, d] × [B, H, S, d] → [B, T, H * d]; `mask` bool, True where a query may look.

    Written out because it is faster on the CPU than the fused kernel at these lengths.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    out: Tensor = torch.softmax(scores, dim=-1) @ v
    return out.transpose(1, 2).flatten(2)


class VisionAttention(nn.Module):
    """Bidirectional attention over patches."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        width = config.hidden_size
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` [B, L, D]; `mask` is True where a patch may be attended to, [B, 1, 1, L]."""
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out: Tensor = self.out_proj(attend(q, k, v, mask))
        return out


class VisionMLP(nn.Module):
    """Two layers with the tanh GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., D]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class VisionLayer(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.self_attn = VisionAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` [B, L, D]."""
        x = x + self.self_attn(self.layer_norm1(x), mask)
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class VisionEmbeddings(nn.Module):
    """Patch embedding plus the bucketized 2D position table."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Embedding(config.buckets_per_side**2, config.hidden_size)

    def forward(self, strip: Tensor, position_ids: Tensor) -> Tensor:
        """`strip` [B, 3, p, L*p], `position_ids` [B, L] → [B, L, D]."""
        weight = self.patch_embedding.weight
        width, channels, patch, _ = weight.shape
        batch, length = strip.shape[0], strip.shape[3] // patch
        tiles = strip.view(batch, channels, patch, length, patch).permute(0, 3, 1, 2, 4)
        patches = F.linear(tiles.reshape(batch, length, -1), weight.view(width, -1), self.patch_embedding.bias)
        out: Tensor = patches + self.position_embedding(position_ids)
        return out


class VisionEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))


class SiglipVision(nn.Module):
    """The vision tower; all layers are used, then ``post_layernorm``."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, strip: Tensor, position_ids: Tensor, valid: Tensor | None = None) -> Tensor:
        """`strip` [B, 3, p, L*p], `position_ids` [B, L], `valid` bool [B, L] → [B, L, D]."""
        x = self.embeddings(strip, position_ids)
        mask = None if valid is None else valid[:, None, None, :]
        for layer in self.encoder.layers:
            x = layer(x, mask)
        out: Tensor = self.post_layernorm(x)
        return out


class Resampler(nn.Module):
    """One layer of cross-attention from Q learned queries to the patches of a view."""

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__()
        width = config.hidden_size
        eps = config.vision_config.layer_norm_eps
        self.query = nn.Parameter(torch.randn(config.query_num, width) * 0.02)
        self.proj = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.kv_proj = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        self.attn = nn.MultiheadAttention(width, config.resampler_heads)
        self.ln_q = nn.LayerNorm(width, eps=eps)
        self.ln_kv = nn.LayerNorm(width, eps=eps)
        self.ln_post = nn.LayerNorm(width, eps=eps)

    def forward(self, patches: Tensor, positions: Tensor, valid: Tensor | None = None) -> Tensor:
        """`patches` [B, L, D_vision], `positions` [B, L, D] (sincos), `valid` bool [B, L] → [B, Q, D]."""
        kv = self.ln_kv(self.kv_proj(patches))
        weights, biases = self.attn.in_proj_weight.chunk(3), self.attn.in_proj_bias.chunk(3)
        q = F.linear(self.ln_q(self.query), weights[0], biases[0]).expand(kv.shape[0], -1, -1)
        k = F.linear(kv + positions, weights[1], biases[1])
        v = F.linear(kv, weights[2], biases[2])
        heads, batch = self.attn.num_heads, kv.shape[0]
        q, k, v = (t.view(batch, t.shape[1], heads, -1).transpose(1, 2) for t in (q, k, v))
        mask = None if valid is None else valid[:, None, None, :]
        out: Tensor = self.ln_post(self.attn.out_proj(attend(q, k, v, mask))) @ self.proj
        return out


class RMSNorm(nn.Module):
    """Llama's norm."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., D]."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rope_tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions 0 … length-1, each [length, head_dim], halves repeated."""
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions: `x` [B, H, T, d], `cos` and `sin` broadcastable to it."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class LlamaAttention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`x` [B, T, D]; `mask` bool [B, 1, T, S]; returns the output and the new K, V."""
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        groups = q.shape[1] // k.shape[1]
        out = attend(q, k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1), mask)
        return self.o_proj(out), (k, v)


class LlamaMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., D]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class LlamaLayer(nn.Module):
    """One pre-norm decoder block."""

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`x` [B, T, D]."""
        attended, cache = self.self_attn(self.input_layernorm(x), cos, sin, mask, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class LlamaModel(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        cos, sin = rope_tables(config.max_position_embeddings, config.head_dim, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.cos: Tensor
        self.sin: Tensor


class Llama(nn.Module):
    """The language model over input embeddings."""

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__()
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        past: KVCache | None = None,
    ) -> tuple[Tensor, KVCache]:
        """Run the decoder.

        Args:
            embeddings: [B, T, D].
            positions: int [B, T]; 0 … T-1 if None.
            mask: bool [B, 1, T, S], True where a query may look; causal over T if None (only without `past`).
            past: per layer K and V, each [B, kv_heads, S - T, head_dim].

        Returns:
            The final hidden states after the norm, [B, T, D] (apply `lm_head` for logits), and the cache.
        """
        length = embeddings.shape[1]
        if positions is None:
            cos, sin = self.model.cos[:length], self.model.sin[:length]
        else:
            cos, sin = self.model.cos[positions][:, None], self.model.sin[positions][:, None]
        if mask is None:
            mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=embeddings.device).tril()
        x, cache = embeddings, []
        for index, layer in enumerate(self.model.layers):
            x, kv = layer(x, cos, sin, mask, None if past is None else past[index])
            cache.append(kv)
        return self.model.norm(x), cache


class MiniCPMV(nn.Module):
    """The whole model: ``vpm`` → ``resampler`` → ``llm``."""

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__()
        self.config = config
        self.vpm = SiglipVision(config.vision_config)
        self.resampler = Resampler(config)
        self.llm = Llama(config)

    def encode_images(
        self, strip: Tensor, position_ids: Tensor, positions: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Vision tokens [B, Q, D] and the tower's patches [B, L, D_vision] for B views; see `slicing.pack_views`."""
        patches = self.vpm(strip, position_ids, valid)
        return self.resampler(patches, positions, valid), patches

    def embed(self, input_ids: Tensor, vision: Tensor, is_vision: Tensor) -> Tensor:
        """Token embeddings [B, T, D] with `vision` [N, Q, D] laid, in order, where `is_vision` [B, T] is True."""
        embeddings: Tensor = self.llm.model.embed_tokens(input_ids)
        return embeddings.masked_scatter(is_vision[..., None], vision.to(embeddings.dtype))
