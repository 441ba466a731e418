"""Transformers of text, images and both, from their public configurations."""

from collections.abc import Callable

import torch
import transformers as hf
from torch import Tensor, nn

from latency_models.base import Centered, Construction, First, image

ROWS = 64  # of embedding tables that are only looked up: a lookup costs what it reads


def _text(length: int, rows: int = 1) -> tuple[Tensor, ...]:
    return torch.zeros(rows, length, dtype=torch.int32), torch.ones(rows, length)


class _Masked(nn.Module):
    """Text in, the attention mask already additive, as the deployed models have it."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """The named outputs."""
        additive = (1 - mask)[:, None, None, :] * -100.0
        out = self.model(input_ids=input_ids, attention_mask=additive)
        return tuple(out[n] for n in self.names)


class _MaskedToken(_Masked):
    """A masked language model as deployed: which word a masked position's is."""

    def forward(self, input_ids: Tensor, mask: Tensor, position: Tensor) -> Tensor:  # type: ignore[override]
        """The word's number."""
        (logits,) = super().forward(input_ids, mask)
        return logits[0].index_select(0, position).softmax(-1).argmax(-1)


def _words(config: hf.PretrainedConfig, kind: type, attention: str = "sdpa") -> Callable[[], nn.Module]:
    return lambda: _MaskedToken(kind._from_config(config, attn_implementation=attention), ("logits",))


def _masked_text(length: int) -> tuple[Tensor, ...]:
    return *_text(length), torch.zeros(1, dtype=torch.int32)


def _bert(config: hf.PretrainedConfig, kind: type, *names: str, attention: str = "sdpa") -> Callable[[], nn.Module]:
    return lambda: _Masked(kind._from_config(config, attn_implementation=attention), names)


def _first(
    kind: type, config: Callable[[], hf.PretrainedConfig], *names: str, attention: str = "sdpa"
) -> Callable[[], nn.Module]:
    return lambda: First(kind._from_config(config(), attn_implementation=attention), *names)


class _ClipBlock(nn.Module):
    """OpenAI's block, which has the sequence's dimension first."""

    def __init__(self, width: int, mask: Tensor | None) -> None:
        super().__init__()
        self.attention, self.mask = nn.MultiheadAttention(width, width // 64), mask
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[length, batch, width]."""
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False, attn_mask=self.mask)[0]
        y = self.up(self.between(x))
        return x + self.down(y * torch.sigmoid(1.702 * y))


class _Clip(nn.Module):
    """OpenAI's CLIP (Radford et al. 2021), ViT-B/16: an image and texts → similarity."""

    def __init__(self, texts: int) -> None:
        super().__init__()
        mask = torch.full((77, 77), -100.0).triu(1)
        self.patches, self.table = nn.Conv2d(3, 768, 16, 16, bias=False), nn.Embedding(ROWS, 512)
        self.first, self.places = nn.Parameter(torch.zeros(1, 1, 768)), nn.Parameter(torch.zeros(1, 197, 768))
        self.positions, self.texts = nn.Parameter(torch.zeros(1, 77, 512)), texts
        self.image = nn.Sequential(*[_ClipBlock(768, None) for _ in range(12)])
        self.text = nn.Sequential(*[_ClipBlock(512, mask) for _ in range(12)])
        self.before, self.after, self.ended = nn.LayerNorm(768), nn.LayerNorm(768), nn.LayerNorm(512)
        self.mean, self.deviation = torch.full((1, 3, 1, 1), 0.45), torch.full((1, 3, 1, 1), 0.27)
        self.seen, self.read = nn.Linear(768, 512, bias=False), nn.Linear(512, 512, bias=False)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Logits per image, of 0 to 1: the deployed model normalizes it."""
        pixels = (pixels - self.mean) / self.deviation
        ids = ids.clip(0, ROWS - 1)
        y = (self.table(ids) + self.positions).permute(1, 0, 2)
        y = self.ended(self.text(y).permute(1, 0, 2))
        text = self.read(y[torch.arange(self.texts), ids.argmax(-1)])
        x = self.patches(pixels).flatten(2).permute(0, 2, 1)
        x = self.before(torch.cat([self.first, x], 1) + self.places).permute(1, 0, 2)
        image = self.seen(self.after(self.image(x).permute(1, 0, 2)[:, 0]))
        image, text = (v / v.norm(dim=1, keepdim=True) for v in (image, text))
        return 100.0 * image @ text.t()


class _OwlVit(nn.Module):
    """Image and a text → class logits and boxes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and boxes of every patch."""
        out = self.model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids))
        return out.logits, out.pred_boxes


def _minilm() -> hf.BertConfig:
    return hf.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=ROWS
    )


def _deit() -> hf.DeiTConfig:
    return hf.DeiTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, image_size=384)


class _TrOcr(nn.Module):
    """TrOCR's encoder as deployed, with the keys and values that its decoder's six layers attend to."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.layers = nn.ModuleList(nn.Linear(384, 256) for _ in range(12))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Keys and values [1, 8, length, 32] of every layer."""
        x = self.model(x)[0]
        return tuple(layer(x).view(1, -1, 8, 32).transpose(1, 2) for layer in self.layers)


def _trocr() -> nn.Module:
    return Centered(_TrOcr(hf.DeiTModel._from_config(_deit(), attn_implementation="sdpa")))


TRANSFORMER: dict[str, Construction] = {
    "bert_base_uncased_hf": Construction(_words(hf.BertConfig(), hf.BertForMaskedLM), _masked_text(384), "bert"),
    "distil_bert_base_uncased_hf": Construction(_words(hf.DistilBertConfig(), hf.DistilBertForMaskedLM), _masked_text(384), "bert"),
    "electra_bert_base_discrim_google": Construction(
        _bert(hf.ElectraConfig(hidden_size=768, embedding_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, vocab_size=ROWS), hf.ElectraForPreTraining, "logits", attention="eager"),
        _text(384), "bert",
    ),
    "minilm_v2": Construction(_bert(_minilm(), hf.BertModel, "last_hidden_state"), _text(128), "bert"),
    "mobile_bert_uncased_google": Construction(_words(hf.MobileBertConfig(), hf.MobileBertForMaskedLM, "eager"), _masked_text(384), "bert"),
    "mobile_vit": Construction(_first(hf.MobileViTForImageClassification, lambda: hf.MobileViTConfig(num_labels=1000), "logits", attention="eager"), image(256), "hybrid"),
    "openai_clip": Construction(lambda: _Clip(5), (*image(224), torch.zeros(5, 77, dtype=torch.int32)), "vit"),
    "owl_vit": Construction(
        lambda: _OwlVit(hf.OwlViTForObjectDetection._from_config(hf.OwlViTConfig(), attn_implementation="eager")),
        (*image(768), torch.zeros(1, 16, dtype=torch.int32)), "vit",
    ),
    "siglip2:image_encoder": Construction(_first(hf.SiglipVisionModel, hf.SiglipVisionConfig, "pooler_output"), image(224), "vit"),
    "siglip2:text_encoder": Construction(
        _first(hf.SiglipTextModel, lambda: hf.SiglipTextConfig(vocab_size=ROWS, pad_token_id=1, bos_token_id=2, eos_token_id=3), "pooler_output"),
        (torch.zeros(1, 64, dtype=torch.int32),), "vit",
    ),
    "trocr:encoder": Construction(_trocr, image(384), "vit"),
    "video_mae": Construction(_first(hf.VideoMAEForVideoClassification, lambda: hf.VideoMAEConfig(num_labels=400), "logits"), (torch.zeros(1, 16, 3, 224, 224),), "video"),
}  # fmt: skip
