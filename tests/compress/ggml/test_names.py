"""Names against the format owner's own table of them, for every tensor of small models."""

import gguf
import numpy as np
import pytest
import torch
from decoder_models import SIZES

from pocketport.compress.ggml.names import ARCHITECTURES, Form, projector_names, rotary_rows, text_names
from pocketport.errors import InputError

KINDS = [kind for kind in ARCHITECTURES if kind not in ("gemma3", "minicpm")]  # a composite; not in transformers
SUFFIXES = (".weight", ".bias")


def tensor_names(kind: str) -> list[str]:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    biases = {"attention_bias": True, "mlp_bias": True} if kind in ("llama", "smollm3") else {}
    config = AutoConfig.for_model(kind, **{**SIZES, "tie_word_embeddings": False, **biases})
    with torch.device("meta"):
        model = (AutoModel if kind == "bert" else AutoModelForCausalLM).from_config(config)
    return [name for name in model.state_dict() if not name.startswith("pooler.")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_has_the_name_that_llama_cpp_gives_it(kind: str) -> None:
    architecture, names = ARCHITECTURES[kind], tensor_names(kind)
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    expected, table = gguf.get_tensor_name_map(arch, SIZES["num_hidden_layers"]), text_names(architecture)
    assert len(names) > 10
    for name in names:
        (place,) = table.of_published(name)
        assert place.gguf == expected.get_name(name, try_suffixes=SUFFIXES), name
        assert table.of_gguf(place.gguf) == place and place.published == name


def test_the_projector() -> None:
    expected, table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 2), projector_names()
    modules = ["vpm.embeddings.patch_embedding", "resampler.kv_proj", "resampler.attn.out_proj"]
    modules += [f"resampler.ln_{part}" for part in ("q", "kv", "post")]
    modules += [f"vpm.encoder.layers.1.self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
    modules += [f"vpm.encoder.layers.1.layer_norm{number}" for number in (1, 2)]
    for name in [f"{module}.weight" for module in modules] + ["resampler.query"]:
        (place,) = table.of_published(name)
        assert place.gguf == expected.get_name(name, try_suffixes=SUFFIXES), name
        assert table.of_gguf(place.gguf) == place
    thirds = table.of_published("resampler.attn.in_proj_bias")
    assert [(p.gguf, p.form, p.part) for p in thirds] == [
        (f"resampler.attn.{letter}.bias", Form.THIRD, part) for part, letter in enumerate("qkv")
    ]


def test_names_that_are_not_known() -> None:
    table = text_names("llama", "llm.")
    assert table.of_gguf("blk.0.attn_qkv.weight") is None and table.of_published("model.norm.weight") == ()
    assert table.of_published("llm.model.norm.weight")[0].gguf == "output_norm.weight"
    with pytest.raises(InputError, match="'mamba' is not known"):
        text_names("mamba")


@pytest.mark.parametrize(("heads", "width"), [(1, 2), (3, 8), (4, 64)])
def test_rows_of_rotated_projections(heads: int, width: int) -> None:
    """Written down as llama.cpp's converter has it: ``LlamaModel.permute``."""
    rows = np.arange(heads * width * 5).reshape(heads * width, 5)
    expected = rows.reshape(heads, 2, width // 2, 5).swapaxes(1, 2).reshape(rows.shape)
    np.testing.assert_array_equal(rows[rotary_rows(len(rows), heads)], expected)
