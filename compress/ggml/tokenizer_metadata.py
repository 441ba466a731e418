"""A checkpoint's tokenizer as the ``tokenizer.*`` metadata of a GGUF file.

llama.cpp knows pre-tokenizers by name, each a regular expression of its own; here the name follows from what
``tokenizer.json`` says of its pre-tokenizer, word for word. One that is not known is refused: with the wrong name a
model would be fed other tokens than it was trained on, and nobody would see it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pocketport.compress.ggml.writer import Value
from pocketport.compress.sources.folder import read_json_object
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
ADDED_SCORE = -1000.0  # never the product of a merge
SPACE = "▁"
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # config.json's names and GGUF's


def _words(digits: str, letters: str = r"\p{L}") -> str:
    """The expression of Llama 3 and its descendants, which differ in how many digits stay together."""
    others = letters.strip("[]")
    return (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?[^\s{others}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


PRE_TOKENIZERS: Mapping[tuple[str, ...], str] = {
    (_words(r"\p{N}{1,3}"), "bytes"): "llama-bpe",
    (_words(r"\p{N}"), "bytes"): "qwen2",
    (_words(r"\p{N}", r"[\p{L}\p{M}]"), "bytes"): "qwen35",
    (r"\p{N}{1,3}", _words(r"\p{N}+"), "bytes"): "minicpm5",
    ("digits", "words in bytes"): "smollm",
    ("words in bytes",): "gpt-2",
}
"""Steps of a pre-tokenizer (expressions, or what the step does) → llama.cpp's name for it."""


@dataclass(frozen=True)
class _Tokens:
    texts: list[str]
    types: list[int]


def tokenizer_metadata(source: Source, size: int, template: str | None = None) -> dict[str, Value]:
    """Everything about the tokenizer.

    Args:
        source: the checkpoint; its ``tokenizer.json`` is read, and the configurations beside it.
        size: rows of the embedding table; ids that the tokenizer lacks are marked as unused.
        template: a chat template (Jinja) for checkpoints without one.

    Raises:
        InputError: there is no ``tokenizer.json``, or llama.cpp has no tokenizer that does the same.
    """
    if "tokenizer.json" not in source.files:
        raise InputError(
            "it has no tokenizer.json", where=str(source.path), fix="copy the tokenizer beside its weights"
        )
    where = str(source.files["tokenizer.json"])
    document = read_json_object(source.files["tokenizer.json"])
    settings = _optional(source, "tokenizer_config.json")
    model = document.get("model") or {}
    if model.get("type") != "BPE":
        raise InputError(
            f"a tokenizer of the kind {model.get('type')!r} can't be written to GGUF",
            where=where,
            fix="only BPE is, with bytes or as SentencePiece has it",
        )
    tokens = _tokens(document, size, where)
    pieces = bool(model.get("byte_fallback")) or _replaces_spaces(document)
    metadata: dict[str, Value] = {"tokenizer.ggml.model": "llama" if pieces else "gpt2"}
    metadata["tokenizer.ggml.pre"] = "default" if pieces else pre_tokenizer_name(document, where)
    metadata["tokenizer.ggml.tokens"] = tokens.texts
    metadata["tokenizer.ggml.token_type"] = np.array(tokens.types, np.int32)
    merges = [_pair(merge) for merge in model.get("merges") or []]
    if pieces:
        metadata["tokenizer.ggml.scores"] = _scores(tokens, merges)
        metadata["tokenizer.ggml.add_space_prefix"] = _prefixes_space(document)
    else:
        metadata["tokenizer.ggml.merges"] = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in merges]
    metadata |= _special_tokens(source, settings, tokens)
    first, last = _surroundings(document, settings)
    metadata["tokenizer.ggml.add_bos_token"], metadata["tokenizer.ggml.add_eos_token"] = first, last
    own = chat_template(source, settings) or template
    return metadata if own is None else metadata | {"tokenizer.chat_template": own}


def pre_tokenizer_name(document: Mapping[str, Any], where: str) -> str:
    """llama.cpp's name for the pre-tokenizer of a byte-level ``tokenizer.json``.

    Raises:
        InputError: it has none.
    """
    if not (document.get("model") or {}).get("merges"):
        return "gpt-2"  # bytes that are never merged: where words end does not matter
    steps = tuple(_steps(document.get("pre_tokenizer") or {}))
    normalizers = [n.get("type") for n in _flat(document.get("normalizer"), "normalizers")]
    if steps not in PRE_TOKENIZERS or set(normalizers) - {"NFC"}:
        raise InputError(
            f"llama.cpp has no pre-tokenizer that is known to do the same: {steps}, normalizers {normalizers}",
            where=where,
            fix=f"known are those of {', '.join(PRE_TOKENIZERS.values())}; port the model to another format",
        )
    return PRE_TOKENIZERS[steps]


def chat_template(source: Source, settings: Mapping[str, Any]) -> str | None:
    """The checkpoint's chat template, of several the one named ``default``."""
    if "chat_template.jinja" in source.files:
        return source.files["chat_template.jinja"].read_text("utf-8")
    found = settings.get("chat_template") or _optional(source, "chat_template.json").get("chat_template")
    if isinstance(found, list):
        found = next((t.get("template") for t in found if t.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _optional(source: Source, name: str) -> dict[str, Any]:
    return read_json_object(source.files[name]) if name in source.files else {}


def _flat(part: Any, key: str) -> list[dict[str, Any]]:
    """The members of a ``Sequence``, or the part alone."""
    if not isinstance(part, dict):
        return []
    return [leaf for member in part[key] for leaf in _flat(member, key)] if key in part else [part]


def _steps(pre_tokenizer: Mapping[str, Any]) -> Iterator[str]:
    for step in _flat(dict(pre_tokenizer), "pretokenizers"):
        kind, pattern = step.get("type"), step.get("pattern") or {}
        if kind == "Split" and "Regex" in pattern and step.get("behavior") == "Isolated" and not step.get("invert"):
            yield str(pattern["Regex"])
        elif kind == "Digits" and step.get("individual_digits"):
            yield "digits"
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            yield "words in bytes" if step.get("use_regex", True) else "bytes"
        else:
            yield str(step)


def _tokens(document: Mapping[str, Any], size: int, where: str) -> _Tokens:
    """Text and type of every id below `size`."""
    model = document["model"]
    texts = [f"[PAD{index}]" for index in range(size)]
    types = [UNUSED] * size
    added = document.get("added_tokens") or []
    largest = max([*model["vocab"].values(), *(token["id"] for token in added)], default=0)
    if largest >= size:
        raise InputError(
            f"its ids go up to {largest}, the embedding table has {size} rows",
            where=where,
            fix="give the tokenizer that belongs to the checkpoint",
        )
    for text, index in model["vocab"].items():
        is_byte = bool(model.get("byte_fallback")) and BYTE_TOKEN.fullmatch(text) is not None
        texts[index], types[index] = text, BYTE if is_byte else UNKNOWN if text == model.get("unk_token") else NORMAL
    for token in added:
        index, text = token["id"], token["content"]
        if types[index] == UNKNOWN:
            continue
        # llama.cpp looks for tokens that are no control tokens in the text as it is, before spaces are replaced.
        texts[index], types[index] = (text, CONTROL) if token["special"] else (text.replace(SPACE, " "), USER_DEFINED)
    return _Tokens(texts, types)


def _pair(merge: Any) -> tuple[str, str]:
    """Older files join the two parts by a space."""
    first, _, second = merge.partition(" ") if isinstance(merge, str) else (merge[0], "", merge[1])
    return first, second


def _replaces_spaces(document: Mapping[str, Any]) -> bool:
    normalizers = _flat(document.get("normalizer"), "normalizers")
    steps = _flat(document.get("pre_tokenizer"), "pretokenizers")
    return any(n.get("content") == SPACE for n in normalizers) or any(s.get("type") == "Metaspace" for s in steps)


def _prefixes_space(document: Mapping[str, Any]) -> bool:
    """Whether a space is put before the text."""
    if any(n.get("prepend") == SPACE for n in _flat(document.get("normalizer"), "normalizers")):
        return True
    steps = _flat(document.get("pre_tokenizer"), "pretokenizers")
    return any(s.get("type") == "Metaspace" and s.get("prepend_scheme", "always") != "never" for s in steps)


def _scores(tokens: _Tokens, merges: Sequence[tuple[str, str]]) -> Value:
    """SentencePiece merges the pair with the best score, tokenizers the one that comes first: scores fall by rank."""
    ranks: dict[str, int] = {}
    for rank, (first, second) in enumerate(merges):
        ranks.setdefault(first + second, rank)
    scores = [-float(ranks.get(text, len(merges))) for text in tokens.texts]
    added = np.isin(np.array(tokens.types), (USER_DEFINED, CONTROL, UNUSED))
    return np.where(added, ADDED_SCORE, scores).astype(np.float32)


def _special_tokens(source: Source, settings: Mapping[str, Any], tokens: _Tokens) -> dict[str, Value]:
    """Ids by role; a second token that ends answers is ``eot``."""
    ids = {text: index for index, text in enumerate(tokens.texts)}
    text_config: Any = source.config.get("text_config") or {}
    metadata: dict[str, Value] = {}
    for role, name in SPECIAL.items():
        given = settings.get(f"{role}_token")
        content = given.get("content") if isinstance(given, dict) else given
        found = ids.get(content) if isinstance(content, str) else None
        fallback = source.config.get(f"{role}_token_id", text_config.get(f"{role}_token_id"))
        index = found if found is not None else fallback[0] if isinstance(fallback, list) else fallback
        if isinstance(index, int) and 0 <= index < len(tokens.texts):
            metadata[f"tokenizer.ggml.{name}_token_id"] = index
    ends = _optional(source, "generation_config.json").get("eos_token_id")
    others = (
        [end for end in ends if end != metadata.get("tokenizer.ggml.eos_token_id")] if isinstance(ends, list) else []
    )
    if others and 0 <= others[0] < len(tokens.texts):
        metadata["tokenizer.ggml.eot_token_id"] = others[0]
    return metadata


def _surroundings(document: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the tokenizer puts a special token before and behind a text."""
    for processor in _flat(document.get("post_processor"), "processors"):
        if processor.get("type") == "TemplateProcessing":
            single = processor.get("single") or [{}]
            return "SpecialToken" in single[0], "SpecialToken" in single[-1]
    return bool(settings.get("add_bos_token", False)), bool(settings.get("add_eos_token", False))
