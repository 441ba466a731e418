"""Transformers of text, images and both, from their public configurations."""

from collections.abc import Callable

import torch
import transformers as hf
from torch import Tensor, nn

from latency_models.base import Construction, First, image

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


def _bert(config: hf.PretrainedConfig, kind: type, *names: str) -> Callable[[], nn.Module]:
    return lambda: _Masked(kind._from_config(config, attn_implementation="eager"), names)


def _eager(kind: type, config: Callable[[], hf.PretrainedConfig], *names: str) -> Callable[[], nn.Module]:
    return lambda: First(kind._from_config(config(), attn_implementation="eager"), *names)


class _Clip(nn.Module):
    """Image and texts → similarity."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Logits per image."""
        return self.model(input_ids=ids, pixel_values=pixels).logits_per_image


class _OwlVit(nn.Module):
    """Image and a text → class logits and boxes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and boxes of every patch."""
        out = self.model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids))
        return out.logits, out.pred_boxes


def _clip() -> nn.Module:
    text = {"vocab_size": ROWS, "eos_token_id": 2}
    vision = {"patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    return _Clip(
        hf.CLIPModel._from_config(hf.CLIPConfig(text_config=text, vision_config=vision), attn_implementation="eager")
    )


def _minilm() -> hf.BertConfig:
    return hf.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=ROWS
    )


def _deit() -> hf.DeiTConfig:
    return hf.DeiTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, image_size=384)


def _marian() -> nn.Module:
    config = hf.MarianConfig(
        vocab_size=ROWS, pad_token_id=0, d_model=512, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=2048,
        decoder_ffn_dim=2048, encoder_attention_heads=8, decoder_attention_heads=8, activation_function="swish",
        decoder_start_token_id=0, eos_token_id=1, max_position_embeddings=512,
    )  # fmt: skip
    return hf.MarianMTModel._from_config(config, attn_implementation="eager").get_encoder()


TRANSFORMER: dict[str, Construction] = {
    "bert_base_uncased_hf": Construction(_bert(hf.BertConfig(), hf.BertForMaskedLM, "logits"), _text(384), "bert"),
    "distil_bert_base_uncased_hf": Construction(_bert(hf.DistilBertConfig(), hf.DistilBertForMaskedLM, "logits"), _text(384), "bert"),
    "electra_bert_base_discrim_google": Construction(
        _bert(hf.ElectraConfig(hidden_size=768, embedding_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, vocab_size=ROWS), hf.ElectraForPreTraining, "logits"),
        _text(384), "bert",
    ),
    "minilm_v2": Construction(_bert(_minilm(), hf.BertModel, "last_hidden_state"), _text(128), "bert"),
    "mobile_bert_uncased_google": Construction(_bert(hf.MobileBertConfig(), hf.MobileBertForMaskedLM, "logits"), _text(384), "bert"),
    "opus_mt_de_en:encoder": Construction(lambda: _Masked(_marian(), ("last_hidden_state",)), _text(256), "bert"),
    "mobile_vit": Construction(_eager(hf.MobileViTForImageClassification, lambda: hf.MobileViTConfig(num_labels=1000), "logits"), image(256), "hybrid"),
    "openai_clip": Construction(_clip, (*image(224), torch.zeros(5, 77, dtype=torch.int32)), "vit"),
    "owl_vit": Construction(
        lambda: _OwlVit(hf.OwlViTForObjectDetection._from_config(hf.OwlViTConfig(), attn_implementation="eager")),
        (*image(768), torch.zeros(1, 16, dtype=torch.int32)), "vit",
    ),
    "siglip2:image_encoder": Construction(_eager(hf.SiglipVisionModel, hf.SiglipVisionConfig, "pooler_output"), image(224), "vit"),
    "siglip2:text_encoder": Construction(
        _eager(hf.SiglipTextModel, lambda: hf.SiglipTextConfig(vocab_size=ROWS, pad_token_id=1, bos_token_id=2, eos_token_id=3), "pooler_output"),
        (torch.zeros(1, 64, dtype=torch.int32),), "vit",
    ),
    "trocr:encoder": Construction(_eager(hf.DeiTModel, _deit, "last_hidden_state"), image(384), "vit"),
    "video_mae": Construction(_eager(hf.VideoMAEForVideoClassification, lambda: hf.VideoMAEConfig(num_labels=400), "logits"), (torch.zeros(1, 16, 3, 224, 224),), "video"),
}  # fmt: skip
