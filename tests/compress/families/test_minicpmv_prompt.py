"""The prompt's tokens and placeholders."""

import json
from pathlib import Path

import pytest

from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.prompt import (
    chat_text,
    decode_answer,
    encode_prompt,
    image_placeholder,
    load_tokenizer,
)
from pocketport.compress.families.minicpmv.slicing import candidate_grids
from pocketport.compress.reference import reference_dir
from pocketport.errors import InputError


def test_placeholder_has_a_newline_between_rows() -> None:
    view = "<image><unk><unk></image>"
    assert image_placeholder(2, None) == view
    assert image_placeholder(2, (2, 2)) == f"{view}<slice>{view}{view}\n{view}{view}</slice>"


def test_chat_is_llama3() -> None:
    assert chat_text("Hi", "X") == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nX\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize("grid", [None, (2, 1), (1, 3), (2, 2), (4, 1)])
def test_spans_cover_the_unknown_tokens(grid: tuple[int, int] | None) -> None:
    tokenizer = load_tokenizer(reference_dir())
    prompt = encode_prompt(tokenizer, "Read the text.", query_num=32, grid=grid)
    unknown = tokenizer.token_to_id("<unk>")
    covered = [i for start, end in prompt.spans for i in range(start, end)]
    assert covered == [i for i, token in enumerate(prompt.input_ids) if token == unknown]
    assert len(prompt.spans) == 1 + (grid[0] * grid[1] if grid else 0)
    assert all(end - start == 32 for start, end in prompt.spans)


def test_longest_prompt_is_declared() -> None:
    tokenizer, config = load_tokenizer(reference_dir()), MiniCPMVConfig.load(reference_dir())
    declared = json.loads((reference_dir() / "preprocessor_config.json").read_text())["max_prompt_tokens"]
    limit = config.slice_config.max_slice_nums
    grids = {grid for n in range(2, limit + 1) for grid in candidate_grids(n, limit)}
    lengths = [
        len(encode_prompt(tokenizer, "Read the text.", query_num=config.query_num, grid=grid).input_ids)
        for grid in grids
    ]
    assert max(lengths) == declared


def test_bytes_are_tokens() -> None:
    tokenizer = load_tokenizer(reference_dir())
    text = "Net 12%, $3.40\nÅé €"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == list(text.encode())
    assert decode_answer(tokenizer, [*ids, tokenizer.token_to_id("<|eot_id|>"), 65]) == text


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_configuration_without_its_keys(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(InputError, match="vision_config"):
        MiniCPMVConfig.load(tmp_path)
