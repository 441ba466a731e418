"""Rotary tables against those that transformers computes."""

from typing import Any

import numpy as np
import pytest
import torch
from decoder_models import LLAMA3, LONGROPE, SIZES, YARN
from hypothesis import given
from hypothesis import strategies as st

from pocketport.compress.families.decoder.rope import RopeConfig
from pocketport.errors import InputError

LLAMA31 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}  # fmt: skip
LLAMA32 = {**LLAMA31, "factor": 32.0}
QWEN_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}
POSITIONS = np.concatenate([np.arange(40), [100, 500, 1023]])


def unsigned(rope: RopeConfig, positions: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines as transformers lays them out."""
    cos, sin = rope.tables(positions, context)
    return cos, np.concatenate([-sin[:, : rope.width // 2], sin[:, rope.width // 2 :]], -1)


@pytest.mark.parametrize(
    ("parameters", "longest", "context"),
    [({"rope_type": "default", "rope_theta": 1e4}, 512, 512), ({"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}, 512, 512),
     (LLAMA3, 512, 512), (LLAMA31, 131072, 1024), (LLAMA32, 131072, 1024), (YARN, 512, 512), (QWEN_YARN, 131072, 1024),
     ({**YARN, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False}, 512, 512), ({**YARN, "attention_factor": 1.5}, 512, 512),
     (LONGROPE, 512, 256), (LONGROPE, 512, 1024)],
    ids=["default", "linear", "llama3", "llama3.1", "llama3.2", "yarn", "qwen-yarn", "yarn-mscale", "yarn-factor",
         "longrope-short", "longrope-long"],
)  # fmt: skip
def test_tables(parameters: dict[str, Any], longest: int, context: int) -> None:
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = modeling.LlamaConfig(**{**SIZES, "max_position_embeddings": longest}, rope_parameters=dict(parameters))
    positions = POSITIONS[context > POSITIONS]
    if context > 256:  # transformers looks at the last position where we look at the context
        positions = np.append(positions, context - 1)
    expected = modeling.LlamaRotaryEmbedding(config)(torch.zeros(1), torch.from_numpy(positions)[None])
    rope = RopeConfig.from_hf(parameters, width=16, longest=longest)
    for found, table in zip(unsigned(rope, positions, context), expected, strict=True):
        np.testing.assert_allclose(found, table[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("interleaved", [False, True])
def test_multimodal_tables(interleaved: bool) -> None:
    positions = np.random.default_rng(0).integers(0, 300, (3, 50))
    sections = [4, 2, 2]
    parameters: dict[str, Any] = {"rope_theta": 1e6, "rope_type": "default", "mrope_section": sections}
    if interleaved:
        modeling = pytest.importorskip("transformers.models.qwen3_vl.modeling_qwen3_vl")
        parameters["mrope_interleaved"] = True
        config = modeling.Qwen3VLTextConfig(**SIZES, head_dim=16, rope_parameters=dict(parameters))
        rotary = modeling.Qwen3VLTextRotaryEmbedding(config)
    else:
        modeling = pytest.importorskip("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
        config = modeling.Qwen2_5_VLTextConfig(**SIZES, rope_parameters=dict(parameters))
        rotary = modeling.Qwen2_5_VLRotaryEmbedding(config)
    expected = [table[..., :] for table in rotary(torch.zeros(1), torch.from_numpy(positions)[:, None])]
    if expected[0].ndim == 4:  # the attention layer takes from each of the three what is its own
        expected = [
            torch.cat([part[i % 3] for i, part in enumerate(table.split(sections * 2, dim=-1))], -1)
            for table in expected
        ]
    rope = RopeConfig.from_hf(parameters, width=16, longest=512)
    for found, table in zip(unsigned(rope, positions, 512), expected, strict=True):
        np.testing.assert_allclose(found, table[0].numpy(), atol=2e-5)
    plain = rope.tables(np.arange(9), 512)
    for found, same in zip(plain, rope.tables(np.tile(np.arange(9), (3, 1)), 512), strict=True):
        np.testing.assert_array_equal(found, same, "text has the same position three times")


@pytest.mark.parametrize(
    ("parameters", "key"),
    [({"rope_type": "spiral"}, "rope_type"), ({"rope_type": "linear"}, "factor"), ({**LLAMA3, "low_freq_factor": None}, "low_freq_factor"),
     ({"partial_rotary_factor": 1.25}, "partial_rotary_factor"), ({"mrope_section": [4, 4]}, "mrope_section"),
     ({**LONGROPE, "short_factor": [1.0]}, "short_factor"), ({"rope_type": "linear", "factor": 0}, "finite"),
     ({**LLAMA3, "factor": "eight"}, "eight"), ({"rope_theta": -3.0}, "finite"), ({**LONGROPE, "long_factor": [0.0] * 8}, "finite")],
)  # fmt: skip
def test_parameters_that_are_refused(parameters: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=key):
        RopeConfig.from_hf({"rope_theta": 1e4, **parameters}, width=16, longest=512)


ODD = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10**6)
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.floats(), max_size=9)
)


@given(
    kind=st.sampled_from(["default", "linear", "llama3", "yarn", "longrope", "mrope"]),
    changes=st.dictionaries(st.sampled_from(sorted({*LLAMA3, *YARN, *LONGROPE, "mrope_section", "beta_fast", "attention_factor"})), ODD),
)  # fmt: skip
def test_any_parameters_give_finite_tables_or_a_typed_error(kind: str, changes: dict[str, Any]) -> None:
    parameters = {**LLAMA3, **YARN, **LONGROPE, "factor": 2.0, **changes, "rope_type": kind}
    try:
        rope = RopeConfig.from_hf(parameters, width=16, longest=512)
    except InputError:
        return
    for context in (256, 512):
        assert all(np.isfinite(table).all() for table in rope.tables(np.arange(4), context))
