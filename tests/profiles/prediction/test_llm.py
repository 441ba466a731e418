"""Speed of language models: counts by hand, and speeds that were measured."""

import pytest

from pocketport.profiles.device import load_device
from pocketport.profiles.prediction.llm import (
    ENCODINGS,
    LanguageShape,
    decode_terms,
    language_parameters,
    predict_llm,
    prefill_terms,
)

LLAMA3_8B = LanguageShape(32, 4096, 14336, 32, 8, 128, 128256)


def test_llama_3_8b_by_hand() -> None:
    """8.03 billion parameters in all (Meta's model card): the layers, the head, and an embedding of the head's size."""
    assert LLAMA3_8B.linear_parameters + 2 * LLAMA3_8B.head_parameters == pytest.approx(8.03e9, rel=1e-3)
    assert LLAMA3_8B.cache_bytes(4096, 8) == 2 * 32 * 8 * 128 * 4096
    weights, cache, attention, layers, one = decode_terms(LLAMA3_8B, ENCODINGS["w4a16"], 2048)
    assert weights == pytest.approx((6.979e9 / 2 + 0.5253e9) / 1e9, rel=1e-3)
    assert (cache, layers, one) == (pytest.approx(2 * 32 * 8 * 128 * 2048 / 1e9), 32, 1)
    assert attention == pytest.approx(2 * 32 * 4096 * 2048 / 1e9)  # every query head reads the cache
    assert prefill_terms(LLAMA3_8B, 1024)[1] == pytest.approx(2 * 32 * 4096 * 1024 / 2e9)


def test_a_measured_phone_and_model() -> None:
    """Qwen3 1.7B, 4-bit, context 2048, on a Galaxy S26 with geniex_qairt: 41.0 tokens/s decoding, 2941 reading (AI Hub Models 0.65.0)."""
    device = load_device("qualcomm/sm8850")
    assert device is not None
    shape = LanguageShape(28, 2048, 6144, 16, 8, 128, 151936)
    found = predict_llm(shape, ENCODINGS["w4a16"], device, runtime="geniex_qairt", context=2048)
    for name, measured in (("tokens_per_second", 41.0), ("prefill_tokens_per_second", 2941.0)):
        figure = found[name]
        assert figure.low is not None and figure.high is not None
        assert figure.low < measured < figure.high


def test_longer_contexts_and_larger_models_are_slower() -> None:
    device = load_device("qualcomm/sm8850")
    assert device is not None
    small = LanguageShape(28, 1024, 3072, 16, 8, 128, 151936)

    def speed(shape: LanguageShape, context: int) -> float:
        return predict_llm(shape, ENCODINGS["w4a16"], device, runtime="geniex_qairt", context=context)[
            "tokens_per_second"
        ].value

    assert speed(small, 512) > speed(small, 4096)
    assert speed(small, 512) > speed(LLAMA3_8B, 512)


def test_a_phone_that_was_not_measured_follows_its_bandwidth() -> None:
    device = load_device("qualcomm/sm8650")
    assert device is not None
    found = predict_llm(LLAMA3_8B, ENCODINGS["w4a16"], device, runtime="genie", context=1024)
    assert set(found) == {"tokens_per_second"}
    assert 4 < found["tokens_per_second"].value < 20
    assert "bandwidth" in found["tokens_per_second"].provenance.detail


def test_nothing_is_said_across_vendors() -> None:
    device = load_device("apple/a16")
    assert device is not None
    assert predict_llm(LLAMA3_8B, ENCODINGS["w4a16"], device, runtime="genie", context=1024) == {}


def test_every_measured_chip_has_a_profile() -> None:
    assert all(load_device(s.target) is not None for s in language_parameters().speeds)
