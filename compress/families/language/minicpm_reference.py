"""MiniCPM in plain torch, from its published equations: transformers has no such model, so this is the reference.

MiniCPM (Hu et al. 2024, arXiv 2404.06395, section 4) is a Llama whose embeddings are multiplied by ``scale_emb``,
whose residual branches are multiplied by ``scale_depth``/√layers, and whose last hidden state is divided by
``hidden_size``/``dim_model_base``. MiniCPM4 (arXiv 2506.07900) adds LongRoPE (arXiv 2402.13753). Nothing is shared
with the graphs: keys are repeated for every query head, rotations are complex products, scores are masked by −∞.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pocketport.compress.families.decoder.parity import Computed
from pocketport.compress.sources.source import Source


@dataclass(frozen=True)
class MiniCPMReference:
    """A `Reference`; also over embeddings, among which there may be vision tokens.

    Attributes:
        config: ``config.json``.
        state: tensors by published name, float32.
    """

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]

    def __call__(self, tokens: Sequence[int]) -> Computed:
        """A whole sequence of tokens."""
        return self.compute(self.embed(tokens))

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Scaled embeddings [T,H]."""
        embeds: Tensor = self.state["model.embed_tokens.weight"][list(tokens)] * self.config.get("scale_emb", 1.0)
        return embeds

    @torch.inference_mode()
    def compute(self, embeds: Tensor) -> Computed:
        """A whole sequence of embeddings [T,H]."""
        return _forward(self.state, self.config, embeds)


def minicpm_reference(source: Source) -> MiniCPMReference:
    """The reference over the tensors of a MiniCPM checkpoint, read as float32."""
    return MiniCPMReference(
        source.config, {name: torch.from_numpy(tensor.numpy()) for name, tensor in source.tensors.items()}
    )


def _forward(state: Mapping[str, Tensor], config: Mapping[str, Any], x: Tensor) -> Computed:
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    depth = config.get("scale_depth", 1.0) / math.sqrt(layers)
    eps = config.get("rms_norm_eps", 1e-6)
    turns = _turns(config, len(x))
    keys, values = [], []

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * state[f"{name}.weight"]

    for i in range(layers):
        path = f"model.layers.{i}"
        context, key, value = _attention(state, config, norm(x, f"{path}.input_layernorm"), f"{path}.self_attn", turns)
        keys.append(key.numpy())
        values.append(value.numpy())
        x = x + context * depth
        h = norm(x, f"{path}.post_attention_layernorm")
        gate, up, down = (state[f"{path}.mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
        x = x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down) * depth
    head = state.get("lm_head.weight", state["model.embed_tokens.weight"])
    logits = F.linear(norm(x[-1], "model.norm") / (width / config.get("dim_model_base", 1)), head)
    return Computed(logits.numpy(), keys, values)


def _attention(
    state: Mapping[str, Tensor], config: Mapping[str, Any], h: Tensor, path: str, turns: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What attention adds [T,H], and its keys and values [kv,T,d]."""
    heads = config["num_attention_heads"]
    kv = config.get("num_key_value_heads") or heads

    def split(name: str, count: int) -> Tensor:
        x = F.linear(h, state[f"{path}.{name}_proj.weight"], state.get(f"{path}.{name}_proj.bias"))
        return x.reshape(len(h), count, -1).transpose(0, 1)

    q, k, v = _turned(split("q", heads), turns), _turned(split("k", kv), turns), split("v", kv)
    ahead = torch.ones(len(h), len(h), dtype=torch.bool).triu(1)
    scores = q @ k.repeat_interleave(heads // kv, 0).transpose(1, 2) / math.sqrt(q.shape[-1])
    weights = torch.softmax(scores.masked_fill(ahead, -math.inf), -1)
    context = (weights @ v.repeat_interleave(heads // kv, 0)).transpose(0, 1).flatten(1)
    added = F.linear(context, state[f"{path}.o_proj.weight"], state.get(f"{path}.o_proj.bias"))
    return added, k, v


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Channel i and channel i + d/2 as the real and imaginary part of a number that is turned."""
    first, second = x.chunk(2, -1)
    product = torch.complex(first.contiguous(), second.contiguous()) * turns
    return torch.cat([product.real, product.imag], -1)


def _turns(config: Mapping[str, Any], count: int) -> Tensor:
    """The complex number that turns each pair of channels at each position, [T, d/2]."""
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    speeds = config.get("rope_theta", 10000.0) ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    scaling, amplitude = config.get("rope_scaling"), 1.0
    if scaling:
        longest = config["max_position_embeddings"]
        original = scaling.get("original_max_position_embeddings") or longest
        divisors = scaling["long_factor"] if longest > original else scaling["short_factor"]
        speeds = speeds / torch.tensor(divisors, dtype=torch.float64)
        amplitude = math.sqrt(1 + math.log(longest / original) / math.log(original))
    angles = torch.arange(count, dtype=torch.float64)[:, None] * speeds
    return torch.polar(torch.full_like(angles, amplitude), angles).to(torch.complex64)
