"""Attention bias, padding and cache, against plain definitions."""

import numpy as np
import pytest

from pocketport.compress.families.decoder.config import DecoderConfig
from pocketport.compress.families.decoder.host import MASKED, DecoderHost
from pocketport.errors import InputError

TINY = {
    "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 50, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1,
}  # fmt: skip
HOST = DecoderHost(DecoderConfig.from_hf(TINY), prompt=8, cache=12)


def seen(bias: np.ndarray) -> np.ndarray:
    assert set(np.unique(bias)) <= {0.0, MASKED} and bias.dtype == np.float32
    return bias[0] == 0


@pytest.mark.parametrize("length", [1, 5, 8])
def test_prefill_sees_what_lies_before(length: int) -> None:
    feeds = HOST.prefill_feeds(np.zeros((8, 32), np.float32), length)
    padding = 8 - length
    full, sliding = seen(feeds["attention_bias"]), seen(feeds["sliding_attention_bias"])
    for row in range(8):
        for column in range(8):
            before = padding <= column <= row
            assert full[row, column] == (before or row == column)
            assert sliding[row, column] == ((before and row - column < 3) or row == column)
    np.testing.assert_allclose(feeds["rope_cos"][padding:, 0], np.cos(np.arange(length)), atol=1e-6)
    assert "sliding_rope_cos" not in feeds, "the kinds share their positions"


def test_decode_fills_the_cache_column_by_column() -> None:
    length, padding = 5, 3
    rng = np.random.default_rng(0)
    results = {
        f"present_{k}_{i}": rng.normal(size=(1, 2, 8, 8)).astype(np.float32) for k in ("key", "value") for i in range(2)
    }
    state = HOST.started(results, length)
    for name, past in state.cache.items():
        present = results[name.replace("past", "present")]
        np.testing.assert_array_equal(past[:, :, padding:8], present[:, :, padding:])
        assert not past[:, :, :padding].any() and not past[:, :, 8:].any()
    for step in range(4):
        feeds = HOST.decode_feeds(np.zeros((1, 32), np.float32), state)
        full, sliding = seen(feeds["attention_bias"])[0], seen(feeds["sliding_attention_bias"])[0]
        assert np.flatnonzero(full).tolist() == [*range(padding, 8 + step), 12]
        assert np.flatnonzero(sliding).tolist() == [8 + step - 2, 8 + step - 1, 12]
        np.testing.assert_allclose(feeds["rope_cos"][0, 0], np.cos(length + step), atol=1e-6)
        new = {name: np.full((1, 2, 1, 8), step + 1, np.float32) for name in results}
        HOST.store(new, state)
        assert (state.cache["past_value_1"][:, :, 8 + step] == step + 1).all()
    with pytest.raises(InputError, match="full"):
        HOST.decode_feeds(np.zeros((1, 32), np.float32), state)


def test_positions_go_on_behind_the_largest() -> None:
    config = DecoderConfig.from_hf({**TINY, "model_type": "qwen2_vl_text", "use_sliding_window": False,
                                    "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}})  # fmt: skip
    host = DecoderHost(config, prompt=8, cache=12)
    positions = np.array([[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]])  # four vision tokens take two
    feeds = host.prefill_feeds(np.zeros((8, 32), np.float32), 6, positions)
    np.testing.assert_allclose(feeds["rope_cos"][2:, 0], np.cos(positions[0]), atol=1e-6)
    results = {f"present_{k}_{i}": np.zeros((1, 2, 8, 8), np.float32) for k in ("key", "value") for i in range(2)}
    state = host.started(results, 6, positions)
    np.testing.assert_allclose(
        host.decode_feeds(np.zeros((1, 32), np.float32), state)["rope_cos"][0, 0], np.cos(4), atol=1e-6
    )


@pytest.mark.parametrize(
    ("tokens", "message"), [([], "0 tokens"), ([1] * 9, "9 tokens"), ([50], "vocabulary"), ([-1], "vocabulary")]
)
def test_prompts_that_do_not_fit(tokens: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        HOST.prompt_ids(tokens)
