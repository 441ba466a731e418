"""Text encoders of image generators and translators, as Qualcomm AI Hub Models deploy them."""

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction

ROWS = 64  # of embedding tables that are only looked up: a lookup costs what it reads
MASKED = -100.0


class ClipText(nn.Module):
    """The text tower of CLIP ViT-L/14 (Radford et al. 2021), every token's state."""

    def __init__(self) -> None:
        super().__init__()
        config = hf.CLIPTextConfig(
            vocab_size=ROWS,
            hidden_size=768,
            intermediate_size=3072,
            num_attention_heads=12,
            bos_token_id=0,
            eos_token_id=2,
        )
        self.model = hf.CLIPTextModel._from_config(config, attn_implementation="sdpa")
        self.mask = torch.full((1, 1, 77, 77), MASKED).triu(1)

    def forward(self, tokens: Tensor) -> Tensor:
        """[1, 77] → [1, 77, 768]."""
        x = self.model.embeddings(input_ids=tokens)
        x = self.model.encoder(inputs_embeds=x, attention_mask=self.mask, is_causal=False).last_hidden_state
        return self.model.final_layer_norm(x)


class MarianAttention(nn.Module):
    """Attention of eight heads, their dimension joined with the batch's, as the deployed translators have it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(512, 512) for _ in range(4))

    @staticmethod
    def heads(x: Tensor) -> Tensor:
        """[1, length, 512] → [1, 8, length, 64]."""
        return x.view(1, -1, 8, 64).transpose(1, 2).contiguous()

    def forward(self, x: Tensor, mask: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[1, length, 512] of `x` likewise and of all keys and values [1, 8, other length, 64]."""
        length, others = x.shape[1], k.shape[2]
        q, k, v = (y.reshape(8, -1, 64) for y in (self.heads(self.q(x)), k, v))
        scores = torch.bmm(q, k.transpose(1, 2)).view(1, 8, length, others) + mask
        weights = scores.view(8, length, others).softmax(-1)
        y = torch.bmm(weights, v).view(1, 8, length, 64).transpose(1, 2)
        return self.out(y.reshape(1, length, 512))


class MarianLayer(nn.Module):
    """A layer of an encoder, or one of a decoder, which also attends to `k` and `v` of the encoder."""

    def __init__(self, *, decoder: bool) -> None:
        super().__init__()
        self.own, self.norm, self.last = MarianAttention(), nn.LayerNorm(512), nn.LayerNorm(512)
        self.up, self.down = nn.Linear(512, 2048), nn.Linear(2048, 512)
        self.other, self.between = (MarianAttention(), nn.LayerNorm(512)) if decoder else (None, None)

    def forward(self, x: Tensor, mask: Tensor, k: Tensor, v: Tensor, *there: Tensor) -> Tensor:
        """[1, length, 512]; `there` are the encoder's mask, keys and values."""
        x = self.norm(x + self.own(x, mask, k, v))
        if self.other is not None:
            x = self.between(x + self.other(x, *there))
        return self.last(x + self.down(functional.silu(self.up(x))))


def _masked(mask: Tensor) -> Tensor:
    return MASKED * (1 - mask[:, None, None, :])


class MarianEncoder(nn.Module):
    """Marian's encoder with the keys and values that the decoder's six layers attend to."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(ROWS, 512), nn.Parameter(torch.zeros(1, length, 512))
        self.layers = nn.ModuleList(MarianLayer(decoder=False) for _ in range(6))
        self.given = nn.ModuleList(nn.Linear(512, 512) for _ in range(12))

    def forward(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Keys and values [1, 8, length, 64] of every layer."""
        x = self.table(ids) * 512**0.5 + self.places
        bias = _masked(mask).expand(1, 1, mask.shape[1], mask.shape[1])
        for layer in self.layers:
            own = layer.own
            x = layer(x, bias, own.heads(own.k(x)), own.heads(own.v(x)))
        return [MarianAttention.heads(linear(x)) for linear in self.given]


class MarianDecoder(nn.Module):
    """A step of Marian's decoder: a token, where it stands, and the caches of six layers → the next one's logits and what enters the caches."""

    def __init__(self, words: int, length: int) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, 512)
        self.places, self.masks = nn.Embedding(length, 512), nn.Embedding(length, length)
        self.layers = nn.ModuleList(MarianLayer(decoder=True) for _ in range(6))
        self.head, self.bias = nn.Linear(512, words, bias=False), nn.Parameter(torch.zeros(words))

    def forward(self, ids: Tensor, there: Tensor, position: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """Of each layer `caches` has keys and values, then those of the encoder."""
        x, mask, there = self.table(ids) * 512**0.5 + self.places(position), self.masks(position), _masked(there)
        new = []
        for i, layer in enumerate(self.layers):
            own, (k, v, *encoded) = layer.own, caches[4 * i : 4 * i + 4]
            one = [own.heads(own.k(x)), own.heads(own.v(x))]
            x = layer(x, mask, torch.cat([k, one[0]], 2), torch.cat([v, one[1]], 2), there, *encoded)
            new += one
        return self.head(x) + self.bias, *new


def _step(length: int) -> tuple[Tensor, ...]:
    own, encoded = torch.zeros(1, 8, length - 1, 64), torch.zeros(1, 8, length, 64)
    integers = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, length), torch.zeros(1, dtype=torch.int32)
    return *integers, *[cache for _ in range(6) for cache in (own, own, encoded, encoded)]


def _tokens(length: int) -> tuple[Tensor, ...]:
    return (torch.zeros(1, length, dtype=torch.int32),)


TEXT: dict[str, Construction] = {
    "opus_mt_en_es:encoder": Construction(lambda: MarianEncoder(256), (*_tokens(256), torch.ones(1, 256)), "bert"),
    "opus_mt_en_es:decoder": Construction(lambda: MarianDecoder(65001, 256), _step(256), "bert"),
    "stable_diffusion_v1_5:text_encoder": Construction(ClipText, _tokens(77), "vit"),
}  # fmt: skip
