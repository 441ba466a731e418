"""Slicing, pixels and placeholders of every version against transformers, over the table of sizes."""

import pytest
from minicpmv_series import SERIES

from pocketport.compress.families.minicpmv import preprocessing_reference
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.preprocessing_reference import SIZES, PreprocessingReference
from pocketport.compress.families.minicpmv.prompt import encode_prompt
from pocketport.compress.families.minicpmv.slicing import plan_slices, position_ids
from pocketport.compress.families.minicpmv.versions import version_of
from pocketport.compress.synthesis.preset import load_preset, scaled
from pocketport.compress.synthesis.tokenizer import synthetic_tokenizer

SEEN = ((32, 32), (64, 32), (133, 93), (449, 448), (640, 480), (300, 1300), (2000, 150))  # compared to the pixel


def reference(version: str) -> PreprocessingReference:
    preset = load_preset(SERIES[version])
    special = scaled(preset, 0.01, 1).special_tokens
    return PreprocessingReference(MiniCPMVConfig.model_validate(preset.config), synthetic_tokenizer(512, special))


@pytest.mark.parametrize("version", SERIES)
def test_the_table_is_the_reference_s(version: str) -> None:
    table = list(reference(version).compare(SIZES, pixels=False))
    assert len({row.size for row in table}) >= 40
    assert {row.size: row.differing for row in table if row.differing} == {}
    assert {row.views for row in table} == ({1} if version == "1.0" else {1, 3, 4, 5, 6, 7, 8, 9, 10})


@pytest.mark.parametrize("version", ["1.0", "2.6"])
def test_pixels_are_equal_to_the_bit(version: str) -> None:
    assert [row.differing for row in reference(version).compare(SEEN, pixels=True)] == [()] * len(SEEN)


@pytest.mark.parametrize(
    ("name", "wrong", "seen"),
    [
        ("plan_slices", lambda size, config: plan_slices(size, config.model_copy(update={"patch_size": 16})), "sizes"),
        ("position_ids", lambda target, buckets: position_ids(target, buckets) + 1, "positions"),
        ("views_of", lambda image, config: ([image.resize((448, 448))], None), "pixels"),
    ],
)
def test_a_wrong_one_is_seen(monkeypatch: pytest.MonkeyPatch, name: str, wrong: object, seen: str) -> None:
    monkeypatch.setattr(preprocessing_reference, name, wrong)
    (row,) = reference("2.6").compare([(640, 480)], pixels=seen == "pixels")
    assert row.differing == (seen,)


VIEW, SLICE = "<image><unk><unk></image>", "<slice><unk><unk></slice>"
ENCLOSED = f"{VIEW}<slice>{VIEW}{VIEW}\n{VIEW}{VIEW}</slice>\nWhat?"
MARKED = f"<image_id>0</image_id>{VIEW}{SLICE}{SLICE}\n{SLICE}{SLICE}\nWhat?"
PROMPTS = {  # written out from the published chat templates (tokenizer_config.json; up to 2.0 the model's chat function)
    "1.0": f"<s><用户>{ENCLOSED}<AI>",
    "2.0": f"<s><用户>{ENCLOSED}<AI>",
    "2.5": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n" + ENCLOSED
    + "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "2.6": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + MARKED
    + "<|im_end|>\n<|im_start|>assistant\n",
    "4.0": f"<s><|im_start|>user\n{MARKED}<|im_end|>\n<|im_start|>assistant\n",
    "4.5": f"<|im_start|>user\n{MARKED}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
}  # fmt: skip


@pytest.mark.parametrize("version", SERIES)
def test_the_whole_prompt(version: str) -> None:
    preset = load_preset(SERIES[version])
    config = MiniCPMVConfig.model_validate(preset.config)
    tokenizer = synthetic_tokenizer(512, scaled(preset, 0.01, 1).special_tokens)
    prompt = encode_prompt(
        tokenizer, "What?", query_num=2, grid=(2, 2), template=version_of(config).template,
        image_id=0 if config.use_image_id else None,
    )  # fmt: skip
    assert tokenizer.decode(prompt.input_ids, skip_special_tokens=False) == PROMPTS[version]
    assert [[tokenizer.id_to_token(i) for i in prompt.input_ids[first:last]] for first, last in prompt.spans] == (
        [["<unk>", "<unk>"]] * 5
    )
