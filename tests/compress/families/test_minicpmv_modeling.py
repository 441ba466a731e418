"""Our torch model against independent implementations: transformers and torch.nn."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.modeling import MiniCPMV
from pocketport.compress.families.minicpmv.slicing import position_ids, sincos_positions
from pocketport.compress.reference import reference_dir


@pytest.fixture(scope="module")
def model() -> MiniCPMV:
    torch.manual_seed(0)
    model = MiniCPMV(MiniCPMVConfig.load(reference_dir())).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def pixels(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(1, 3, rows * 14, columns * 14, generator=torch.Generator().manual_seed(rows))


def strip_of(image: torch.Tensor) -> torch.Tensor:
    patches = torch.nn.functional.unfold(image, (14, 14), stride=(14, 14))
    return patches.reshape(1, 3, 14, 14, -1).permute(0, 1, 2, 4, 3).reshape(1, 3, 14, -1)


@torch.inference_mode()
def test_llama_matches_transformers(model: MiniCPMV) -> None:
    c = model.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads,
            max_position_embeddings=c.max_position_embeddings,
            rms_norm_eps=c.rms_norm_eps,
            rope_theta=c.rope_theta,
            tie_word_embeddings=False,
        )
    ).eval()
    theirs.load_state_dict(model.llm.state_dict())
    ids = torch.randint(0, c.vocab_size, (2, 40), generator=torch.Generator().manual_seed(3))
    hidden, _ = model.llm(model.llm.model.embed_tokens(ids))
    torch.testing.assert_close(model.llm.lm_head(hidden), theirs(ids).logits, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_cache_continues_the_sequence(model: MiniCPMV) -> None:
    ids = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(4))
    embedded = model.llm.model.embed_tokens(ids)
    whole, _ = model.llm(embedded)
    _, cache = model.llm(embedded[:, :19])
    positions = torch.full((2, 1), 19)
    mask = torch.ones(2, 1, 1, 20, dtype=torch.bool)
    last, _ = model.llm(embedded[:, 19:], positions=positions, mask=mask, past=cache)
    torch.testing.assert_close(last[:, 0], whole[:, -1], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (4, 15), (16, 4)])
def test_vision_matches_idefics2(model: MiniCPMV, rows: int, columns: int) -> None:
    v = model.config.vision_config
    theirs = Idefics2VisionTransformer._from_config(
        Idefics2VisionConfig(
            hidden_size=v.hidden_size,
            intermediate_size=v.intermediate_size,
            num_hidden_layers=v.num_hidden_layers,
            num_attention_heads=v.num_attention_heads,
            image_size=v.image_size,
            patch_size=v.patch_size,
            hidden_act=v.hidden_act,
            layer_norm_eps=v.layer_norm_eps,
        ),
        attn_implementation="eager",
    ).eval()
    theirs.load_state_dict(model.vpm.state_dict())
    image = pixels(rows, columns)
    expected = theirs(
        pixel_values=image, patch_attention_mask=torch.ones(1, rows, columns, dtype=torch.bool)
    ).last_hidden_state
    ids = torch.from_numpy(position_ids((rows, columns), v.buckets_per_side))[None]
    torch.testing.assert_close(model.vpm(strip_of(image), ids), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_resampler_matches_multihead_attention(model: MiniCPMV) -> None:
    r = model.resampler
    patches = torch.randn(2, 30, model.config.vision_config.hidden_size)
    positions = torch.from_numpy(sincos_positions(256, (5, 6))).expand(2, -1, -1)
    valid = torch.ones(2, 30, dtype=torch.bool)
    valid[1, 24:] = False
    kv = r.ln_kv(r.kv_proj(patches)).permute(1, 0, 2)
    query = r.ln_q(r.query)[:, None].repeat(1, 2, 1)
    out = r.attn(query, kv + positions.permute(1, 0, 2), kv, key_padding_mask=~valid)[0]
    expected = r.ln_post(out.permute(1, 0, 2)) @ r.proj
    torch.testing.assert_close(r(patches, positions, valid), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_padding_changes_nothing(model: MiniCPMV) -> None:
    v, length = model.config.vision_config, 72
    strip = strip_of(pixels(8, 7))
    ids = torch.from_numpy(position_ids((8, 7), v.buckets_per_side))[None]
    positions = torch.from_numpy(sincos_positions(256, (8, 7)))[None]
    plain, _ = model.encode_images(strip, ids, positions)
    pad = length - 56
    padded, _ = model.encode_images(
        torch.nn.functional.pad(strip, (0, pad * 14), value=0.7),
        torch.nn.functional.pad(ids, (0, pad)),
        torch.nn.functional.pad(positions, (0, 0, 0, pad)),
        (torch.arange(length) < 56)[None],
    )
    torch.testing.assert_close(padded, plain, rtol=1e-4, atol=1e-4)


def test_vision_tokens_land_in_their_spans(model: MiniCPMV) -> None:
    ids = torch.zeros(2, 6, dtype=torch.long)
    where = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]], dtype=torch.bool)
    vision = torch.randn(2, 2, model.config.hidden_size)
    embedded = model.embed(ids, vision, where)
    assert torch.equal(embedded[0, 1:3], vision[0])
    assert torch.equal(embedded[1, 2:4], vision[1])


def test_names_are_the_published_ones(model: MiniCPMV) -> None:
    names = set(model.state_dict())
    assert {
        "llm.model.embed_tokens.weight",
        "llm.model.layers.3.self_attn.q_proj.weight",
        "llm.model.layers.0.post_attention_layernorm.weight",
        "llm.model.norm.weight",
        "llm.lm_head.weight",
        "vpm.embeddings.patch_embedding.bias",
        "vpm.embeddings.position_embedding.weight",
        "vpm.encoder.layers.5.self_attn.out_proj.bias",
        "vpm.encoder.layers.0.mlp.fc1.weight",
        "vpm.post_layernorm.weight",
        "resampler.query",
        "resampler.proj",
        "resampler.kv_proj.weight",
        "resampler.attn.in_proj_weight",
        "resampler.attn.out_proj.bias",
        "resampler.ln_post.weight",
    } <= names
    assert not any("cos" in name or "pos_embed" in name for name in names)
