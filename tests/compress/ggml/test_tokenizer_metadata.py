"""Tokenizers in GGUF's terms, read back as transformers reads them."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pocketport.compress.families.minicpmv.prompt import LLAMA3, QWEN3, chat_text, jinja_template
from pocketport.compress.ggml.tokenizer_metadata import pre_tokenizer_name, tokenizer_metadata
from pocketport.compress.reference import reference_dir
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

PROSE = "The quick brown fox jumps over the lazy dog; 1234 dogs don't jump. Ünïcode naïveté, and     spaces.\n\n" * 3
LLAMA3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def source_of(folder: Path, tokenizer: Tokenizer, **files: Any) -> Source:
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, document in files.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return Source(folder, {"bos_token_id": 0}, {}, {p.name: p for p in folder.iterdir()})


def byte_level(*steps: Any, merges: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    trainer = trainers.BpeTrainer(vocab_size=400 if merges else 0, show_progress=False)
    tokenizer.train_from_iterator([PROSE], trainer)
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """Pieces with byte fall-back and ▁ for spaces, as Llama 2 and MiniCPM have them."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.train_from_iterator([PROSE], trainers.BpeTrainer(vocab_size=120, show_progress=False))
    own = json.loads(trained.to_str())["model"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in sorted(own["vocab"], key=own["vocab"].__getitem__):
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [tuple(m) for m in own["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.add_tokens([AddedToken("<tab>", normalized=False)])
    return tokenizer


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"), BYTES], "llama-bpe"),
        ([pre_tokenizers.Split(Regex(LLAMA3_WORDS.replace("{1,3}", "")), "isolated"), BYTES], "qwen2"),
        ([pre_tokenizers.Digits(True), WORDS], "smollm"),
        ([WORDS], "gpt-2"),
    ],
)
def test_pre_tokenizers_by_what_they_do(steps: list[Any], name: str) -> None:
    assert pre_tokenizer_name(json.loads(byte_level(*steps).to_str()), "here") == name


@pytest.mark.parametrize(
    "steps",
    [
        [pre_tokenizers.Split(Regex(LLAMA3_WORDS.replace("{1,3}", "{1,4}")), "isolated"), BYTES],
        [pre_tokenizers.Split(Regex(LLAMA3_WORDS), "merged_with_previous"), BYTES],
        [pre_tokenizers.Whitespace(), WORDS],
        [pre_tokenizers.ByteLevel(add_prefix_space=True)],
    ],
)
def test_a_pre_tokenizer_that_llama_cpp_has_not_is_refused(steps: list[Any]) -> None:
    with pytest.raises(InputError, match="no pre-tokenizer"):
        pre_tokenizer_name(json.loads(byte_level(*steps).to_str()), "here")


def test_the_reference_models_marks_are_single_control_tokens() -> None:
    files = {name: reference_dir() / name for name in ("tokenizer.json", "tokenizer_config.json")}
    metadata = tokenizer_metadata(Source(reference_dir(), {}, {}, files), 288)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list) and isinstance(types, np.ndarray) and len(tokens) == len(types) == 288
    for mark in ("<image>", "</image>", "<slice>", "</slice>", "<|eot_id|>"):
        assert types[tokens.index(mark)] == CONTROL
    assert types[tokens.index("user")] == USER_DEFINED and types[tokens.index("Ġ")] == NORMAL and types[287] == UNUSED
    assert metadata["tokenizer.ggml.eos_token_id"] == tokens.index("<|eot_id|>")
    assert metadata["tokenizer.ggml.bos_token_id"] == 256 and metadata["tokenizer.ggml.add_bos_token"] is False
    assert metadata["tokenizer.ggml.merges"] == [] and metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert str(metadata["tokenizer.chat_template"]).startswith("{{ bos_token }}")


def test_special_tokens_templates_and_surroundings(tmp_path: Path) -> None:
    tokenizer = byte_level(WORDS)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "<|end|>", "<|eot|>")])
    begin, end, turn = (tokenizer.token_to_id(t) for t in ("<s>", "<|end|>", "<|eot|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    source = source_of(
        tmp_path, tokenizer, tokenizer_config={"eos_token": {"content": "<|end|>"}, "chat_template": "own"},
        generation_config={"eos_token_id": [end, turn]},
    )  # fmt: skip
    metadata = tokenizer_metadata(source, tokenizer.get_vocab_size() + 3, "other")
    assert metadata["tokenizer.ggml.eos_token_id"] == end and metadata["tokenizer.ggml.eot_token_id"] == turn
    assert metadata["tokenizer.ggml.bos_token_id"] == 0  # config.json's
    assert metadata["tokenizer.ggml.add_bos_token"] is True and metadata["tokenizer.ggml.add_eos_token"] is False
    assert metadata["tokenizer.chat_template"] == "own"
    with pytest.raises(InputError, match="ids go up to"):
        tokenizer_metadata(source, tokenizer.get_vocab_size() - 1)


def test_pieces_get_scores_that_merge_as_the_ranks_do(tmp_path: Path) -> None:
    """SentencePiece's algorithm over our scores gives the tokenizer's own tokens."""
    tokenizer = sentencepiece_like()
    metadata = tokenizer_metadata(source_of(tmp_path, tokenizer), tokenizer.get_vocab_size())
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    types = metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list) and isinstance(scores, np.ndarray) and isinstance(types, np.ndarray)
    assert [types[tokens.index(t)] for t in ("<unk>", "<s>", "<0x0A>", "<tab>")] == [
        UNKNOWN,
        CONTROL,
        BYTE,
        USER_DEFINED,
    ]
    assert metadata["tokenizer.ggml.model"] == "llama" and metadata["tokenizer.ggml.add_space_prefix"] is True
    for text in ("The quick dogs jump over lazy spaces", "naïve fox\n jumps", "zzz brown  brown"):
        assert merged_by_score(f" {text}", tokens, scores) == tokenizer.encode(text, add_special_tokens=False).ids


def merged_by_score(text: str, tokens: list[str], scores: np.ndarray) -> list[int]:
    """Kudo and Richardson 2018's BPE: of all neighbours whose join is a piece, the best score is joined first."""
    ids = {token: index for index, token in enumerate(tokens)}
    parts = list(text.replace(" ", "▁"))
    while True:
        joins = [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not joins:
            break
        _, first = min(joins)
        parts[first : first + 2] = ["".join(parts[first : first + 2])]
    found = []
    for part in parts:
        found += [ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode()]
    return found


@pytest.mark.parametrize("template", [LLAMA3, QWEN3])
def test_a_familys_template_renders_its_prompt(template: Any) -> None:
    import jinja2

    render = jinja2.Environment().from_string(jinja_template(template)).render
    first = chat_text("What is it?", template=template)
    assert render(messages=[{"role": "user", "content": "What is it?"}]) == first
    turns = [{"role": r, "content": c} for r, c in (("user", "What is it?"), ("assistant", "A."), ("user", "Sure?"))]
    longer = render(messages=turns)
    again = template.before.removeprefix("<|begin_of_text|>")
    assert longer == f"{first}A.{template.stops[0]}{again}Sure?{template.after}"
