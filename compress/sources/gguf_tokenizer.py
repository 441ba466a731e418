"""The tokenizer of a GGUF file as a ``tokenizer.json``, rebuilt from its ``tokenizer.*`` metadata.

The three kinds are those of llama.cpp: ``gpt2`` (byte-level BPE, whose pre-tokenizer has a name of llama.cpp's own),
``llama`` (SentencePiece's BPE, whose merges follow from the scores) and ``bert`` (WordPiece). What would be a guess is
refused: other tokens than a model was trained on are an error that nobody sees.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pocketport.compress.ggml.reader import Value
from pocketport.compress.ggml.tokenizer_metadata import (
    BYTE,
    CONTROL,
    NORMAL,
    PRE_TOKENIZERS,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
)
from pocketport.compress.sources.gguf_config import Metadata
from pocketport.errors import InputError

STEPS: Mapping[str, tuple[str, ...]] = {name: steps for steps, name in PRE_TOKENIZERS.items()}
ALIASES: Mapping[str, str] = {"llama3": "llama-bpe", "llama-v3": "llama-bpe"}
WHOLE_WORDS = ("llama-bpe", "minicpm5")  # a word that is a token stays whole, whatever the merges say
COMPOSED = ("qwen2", "qwen35")  # text is brought into Unicode's composed form; no metadata says so
BYTES = 256
LONGEST_PIECE = 512  # characters; all ways to cut a token in two are looked at


class _Builder(Protocol):
    def __call__(self, metadata: Metadata, tokens: Sequence[str], types: Sequence[int]) -> Tokenizer: ...


def rebuilt_tokenizer(metadata: Metadata, rows: int) -> Tokenizer:
    """The tokenizer.

    Args:
        metadata: of the language model's file.
        rows: of the embedding table.

    Raises:
        InputError: the file has none, it is damaged, or of a kind that can't be rebuilt faithfully.
    """
    kind = metadata.require("tokenizer.ggml.model", str)
    if kind not in BUILDERS:
        raise unknown(metadata, "tokenizer.ggml.model", kind, BUILDERS)
    tokens, types = _vocabulary(metadata, rows)
    try:
        tokenizer = BUILDERS[kind](metadata, tokens, types)
    except InputError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise metadata.refused("tokenizer.ggml", f"not a tokenizer: {error}") from error
    for special, chosen in ((True, CONTROL), (False, USER_DEFINED)):
        added = [t for t, kind in zip(tokens, types, strict=True) if kind == chosen]
        tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in added])
    if tokenizer.get_vocab_size() != len(tokens):
        raise metadata.refused("tokenizer.ggml.tokens", "a special token of it is not among the tokens")
    return tokenizer


def checked_tokenizer(metadata: Metadata, rows: int, path: Path) -> Tokenizer:
    """A ``tokenizer.json`` that lies beside the file, if it has the file's tokens.

    Raises:
        InputError: it has others, or is none.
    """
    tokens, types = _vocabulary(metadata, rows)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"not a tokenizer: {error}", where=str(path), fix="give the model's own") from error
    found = tokenizer.get_vocab(with_added_tokens=True)
    other = [t for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind == NORMAL and found.get(t) != i]
    if other:
        raise InputError(
            f"its token {other[0][:100]!r} (and {len(other) - 1} others) is not where {metadata.file.path.name} has it",
            where=str(path),
            fix="put the model's own tokenizer.json there",
        )
    return tokenizer


def unknown(metadata: Metadata, key: str, value: str, known: Mapping[str, Any]) -> InputError:
    """The error for a kind of tokenizer that can't be rebuilt."""
    return InputError(
        f"the tokenizer {value!r} can't be rebuilt (known: {', '.join(known)})",
        where=f"{metadata.file.path}, metadata {key}",
        fix="put the model's own tokenizer.json beside the file",
    )


def _vocabulary(metadata: Metadata, rows: int) -> tuple[list[str], list[int]]:
    """Text and type of every token."""
    tokens: Any = metadata.file.metadata.get("tokenizer.ggml.tokens")
    types: Any = metadata.file.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not tokens:
        raise metadata.refused("tokenizer.ggml.tokens", "it is no list of texts")
    if len(tokens) > rows:
        raise metadata.refused("tokenizer.ggml.tokens", f"it has {len(tokens)} tokens, the embedding table {rows} rows")
    if len(set(tokens)) != len(tokens) or "" in tokens:
        raise metadata.refused("tokenizer.ggml.tokens", "a token is empty, or there twice")
    if types is None:
        return tokens, [NORMAL] * len(tokens)
    if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or len(types) != len(tokens):
        raise metadata.refused("tokenizer.ggml.token_type", f"it is not {len(tokens)} integers")
    return tokens, types.tolist()


def _texts(metadata: Metadata, key: str) -> list[str]:
    value: Value | None = metadata.file.metadata.get(key)
    if not isinstance(value, list):
        raise metadata.refused(key, "it is no list of texts")
    return value


def _merges(metadata: Metadata) -> list[tuple[str, str]]:
    pairs = []
    for merge in _texts(metadata, "tokenizer.ggml.merges"):
        first, space, second = merge.partition(" ")
        if not space or " " in second:
            raise metadata.refused("tokenizer.ggml.merges", f"{merge[:100]!r} is not two parts")
        pairs.append((first, second))
    return pairs


def _token(metadata: Metadata, tokens: Sequence[str], name: str) -> str:
    """The text of a special token.

    Raises:
        InputError: its id is missing or out of range.
    """
    key = f"tokenizer.ggml.{name}_token_id"
    index = metadata.require(key, int)
    if not 0 <= index < len(tokens):
        raise metadata.refused(key, f"{index} is not one of {len(tokens)} tokens")
    return tokens[index]


def _surround(tokenizer: Tokenizer, metadata: Metadata, tokens: Sequence[str], *, first: bool) -> None:
    """The special tokens before and behind a text.

    Args:
        first: whether there is one before it where the file does not say.
    """
    given = metadata.get("tokenizer.ggml.add_bos_token", bool)
    before = [_token(metadata, tokens, "bos")] if (first if given is None else given) else []
    behind = [_token(metadata, tokens, "eos")] if metadata.get("tokenizer.ggml.add_eos_token", bool) else []
    if before or behind:
        _template(tokenizer, tokens, before, behind, before)


def _template(
    tokenizer: Tokenizer, tokens: Sequence[str], before: list[str], behind: list[str], between: list[str]
) -> None:
    special = sorted({*before, *behind, *between})
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *behind],
        pair=[*before, "$A", *behind, *(f"{text}:1" for text in between), "$B:1", *(f"{text}:1" for text in behind)],
        special_tokens=[(text, tokens.index(text)) for text in special],
    )


def _byte_level(metadata: Metadata, tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    name = metadata.require("tokenizer.ggml.pre", str)
    name = ALIASES.get(name, name)
    if name not in STEPS:
        raise unknown(metadata, "tokenizer.ggml.pre", name, STEPS)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=_merges(metadata), ignore_merges=name in WHOLE_WORDS)
    )  # fmt: skip
    if name in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_step(step) for step in STEPS[name]])
    tokenizer.decoder = decoders.ByteLevel()
    _surround(tokenizer, metadata, tokens, first=name == "llama-bpe")
    return tokenizer


def _step(step: str) -> pre_tokenizers.PreTokenizer:
    if step == "digits":
        return pre_tokenizers.Digits(individual_digits=True)
    if step in ("bytes", "words in bytes"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step == "words in bytes")
    return pre_tokenizers.Split(Regex(step), "isolated")


def _pieces(metadata: Metadata, tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    for key in ("tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.precompiled_charsmap"):
        value = metadata.file.metadata.get(key)
        if value is not None and (isinstance(value, np.ndarray) or value):
            raise unknown(metadata, key, "llama with a normalizer", BUILDERS)
    scored = [token for token, kind in zip(tokens, types, strict=True) if kind in (NORMAL, UNKNOWN, BYTE)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    given = "tokenizer.ggml.merges" in metadata.file.metadata
    byte_fallback = sum(kind == BYTE for kind in types) == BYTES
    has_unknown = "tokenizer.ggml.unknown_token_id" in metadata.file.metadata
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=_merges(metadata) if given else _merges_of_scores(metadata, vocabulary, scored),
            byte_fallback=byte_fallback, fuse_unk=True,
            unk_token=_token(metadata, tokens, "unknown") if has_unknown else None,
        )
    )  # fmt: skip
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", bool) is not False
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    _surround(tokenizer, metadata, tokens, first=True)
    return tokenizer


def _merges_of_scores(
    metadata: Metadata, vocabulary: Mapping[str, int], scored: Sequence[str]
) -> list[tuple[str, str]]:  # fmt: skip
    """Every pair of tokens that makes another one, the best score first: what SentencePiece's BPE does with them."""
    scores: Any = metadata.file.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or scores.dtype.kind != "f" or len(scores) != len(vocabulary):
        raise metadata.refused("tokenizer.ggml.scores", f"it is not {len(vocabulary)} numbers")
    if not np.isfinite(scores).all() or max(map(len, scored), default=0) > LONGEST_PIECE:
        raise metadata.refused(
            "tokenizer.ggml.scores", f"one is not finite, or a token is over {LONGEST_PIECE} characters"
        )
    parts = frozenset(scored)
    ranked = [
        (-float(scores[vocabulary[token]]), -cut, token)
        for token in scored
        for cut in range(1, len(token))
        if token[:cut] in parts and token[cut:] in parts
    ]
    ranked.sort(key=lambda entry: entry[:2])
    return [(token[:-cut], token[-cut:]) for _, cut, token in ranked]


def _word_pieces(metadata: Metadata, tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    """llama.cpp marks the pieces that begin a word; WordPiece marks the others."""
    words = [_word_piece(token) for token in tokens]
    if len(set(words)) != len(words):
        raise metadata.refused("tokenizer.ggml.tokens", "two tokens are the same word piece")
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=_token(metadata, words, "unknown")))
    uncased = not any(word != word.lower() for word in words if not word.startswith("["))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=uncased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    first = _token(metadata, words, "cls" if "tokenizer.ggml.cls_token_id" in metadata.file.metadata else "bos")
    last = _token(metadata, words, "seperator")  # so spelled in the format
    _template(tokenizer, words, [first], [last], [])
    return tokenizer


def _word_piece(token: str) -> str:
    if token.startswith("[") and token.endswith("]"):
        return token
    return token.removeprefix(SPACE) if token.startswith(SPACE) else f"##{token}"


BUILDERS: Mapping[str, _Builder] = {"gpt2": _byte_level, "llama": _pieces, "bert": _word_pieces}
"""``tokenizer.ggml.model`` → what rebuilds it."""
