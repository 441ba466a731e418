"""GGUF files: a language model, alone or with the projector (``mmproj``) that makes it a MiniCPM-V."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from tokenizers import Tokenizer

from pocketport.compress.ggml.names import COMPUTED_TENSORS, Form, NameTable, projector_names, rotary_rows, text_names
from pocketport.compress.ggml.reader import GgufFile, GgufTensor
from pocketport.compress.graph import dimensions
from pocketport.compress.sources.folder import check_links
from pocketport.compress.sources.gguf_config import Metadata, text_config
from pocketport.compress.sources.gguf_projector import composite_config, with_published_layers
from pocketport.compress.sources.gguf_tensors import Order, Published, changed, published_tensor, stacked
from pocketport.compress.sources.gguf_tokenizer import checked_tokenizer, rebuilt_tokenizer
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError
from pocketport.files import atomic_directory, cache_root, write_json

PROJECTOR = "clip"
WITHOUT_TOKENIZER = (None, "none", "no_vocab")
ENDS = ("eos", "eot", "eom")
TOKEN_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def open_gguf(path: Path) -> Source:
    """Translate metadata and tensor names; no weight is read.

    The tokenizer and the configurations go into a folder of the cache that is named by the files' headers.

    Args:
        path: a language model's file, or a folder with one and at most one projector.

    Raises:
        InputError: a file is damaged, hostile or of a kind that is not known, or it is not clear which belong together.
    """
    text, projector = _files(path)
    metadata = Metadata(text)
    config = text_config(metadata)
    tensors = dict(_published(text, text_names(metadata.architecture, "llm." if projector else ""), config))
    rows = config["vocab_size"]
    if projector is not None:
        config = composite_config(config, projector, path)
        tensors |= _published(with_published_layers(projector), projector_names(), config)
    opened = [text] if projector is None else [text, projector]
    files = _written(metadata, config, rows, opened)
    return Source(path, config, tensors, files, tuple(file.path for file in opened))


def _files(path: Path) -> tuple[GgufFile, GgufFile | None]:
    """The language model and its projector."""
    if path.is_dir():
        check_links(path)
    found = [GgufFile(p) for p in (sorted(path.glob("*.gguf")) if path.is_dir() else [path])]
    for file in found:
        if Metadata(file).get("split.count", int) not in (None, 1):
            raise InputError(
                "it is one part of several", where=str(file.path), fix="join them: llama-gguf-split --merge"
            )  # fmt: skip
    projectors = [file for file in found if Metadata(file).architecture == PROJECTOR]
    texts = [file for file in found if file not in projectors]
    if len(texts) != 1 or len(projectors) > 1:
        raise InputError(
            f"it has {len(texts)} language models and {len(projectors)} projectors",
            where=str(path),
            fix="give one language model's file, or a folder with one language model and its projector",
        )
    return texts[0], projectors[0] if projectors else None


def _published(file: GgufFile, names: NameTable, config: Mapping[str, Any]) -> dict[str, ir.TensorProtocol]:
    """A file's tensors by their published names, in the published layout."""
    tensors: dict[str, ir.TensorProtocol] = {}
    split: dict[str, dict[int, Published]] = {}
    for name, tensor in file.tensors.items():
        if name in COMPUTED_TENSORS:
            continue
        place = names.of_gguf(name)
        if place is None:
            raise _wrong(file, name, "a model of this kind has no such tensor")
        if place.form is Form.THIRD:
            split.setdefault(place.published, {})[place.part] = published_tensor(file.path, tensor, name)
            continue
        order = _order(file, tensor, place.form, config)
        read = published_tensor(file.path, tensor, place.published, order)
        if place.form is Form.PLUS_ONE:
            read = changed(read, lambda array: array - np.float32(1), place.published, tensor.shape)
        elif place.form is Form.TRANSPOSED:
            read = changed(read, np.transpose, place.published, tensor.shape[::-1])
        tensors[place.published] = read
    return tensors | {name: _joined(file, name, parts) for name, parts in split.items()}


def _order(file: GgufFile, tensor: GgufTensor, form: Form, config: Mapping[str, Any]) -> Order | None:
    """Published row → row in the file, None where they are the same."""
    if form not in (Form.QUERY_ROWS, Form.KEY_ROWS):
        return None
    heads = config["num_attention_heads" if form is Form.QUERY_ROWS else "num_key_value_heads"]
    rows = tensor.shape[0]
    if rows % (2 * heads):
        raise _wrong(file, tensor.name, f"its {rows} rows are not {heads} heads of an even width")
    return np.argsort(rotary_rows(rows, heads))


def _joined(file: GgufFile, name: str, parts: Mapping[int, Published]) -> ir.TensorProtocol:
    """Three tensors of one shape, one behind another."""
    shapes = {dimensions(part) for part in parts.values()}
    if sorted(parts) != [0, 1, 2] or len(shapes) != 1:
        raise _wrong(file, f"of {name}", f"its parts are {sorted(parts)} of the shapes {sorted(map(str, shapes))}")
    ordered = [parts[index] for index in range(3)]
    rows, *rest = next(iter(shapes))
    return stacked(ordered, np.concatenate, name, (3 * rows, *rest))


def _wrong(file: GgufFile, name: str, why: str) -> InputError:
    return InputError(why, where=f"{file.path}, tensor {name}", fix="convert the original checkpoint again")


def _written(
    metadata: Metadata, config: Mapping[str, Any], rows: int, opened: list[GgufFile]
) -> dict[str, Path]:  # fmt: skip
    """Tokenizer and configurations as files, by name."""
    digest = hashlib.sha256()
    for code in sorted(Path(__file__).parent.glob("gguf*.py")):
        digest.update(code.read_bytes())
    for file in opened:
        with file.path.open("rb") as stream:
            digest.update(stream.read(file.header_bytes))
    beside = metadata.file.path.parent / "tokenizer.json"
    if beside.is_file():
        digest.update(beside.read_bytes())
    directory = cache_root() / "gguf" / digest.hexdigest()
    if not directory.is_dir():
        tokenizer = _tokenizer(metadata, rows, beside)
        with atomic_directory(directory) as temporary:
            write_json(temporary / "config.json", dict(config))
            write_json(temporary / "generation_config.json", _generation_config(metadata))
            if tokenizer is not None:
                (temporary / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
                write_json(temporary / "tokenizer_config.json", _tokenizer_config(metadata, config))
    return {file.name: file for file in sorted(directory.iterdir())}


def _tokenizer(metadata: Metadata, rows: int, beside: Path) -> Tokenizer | None:
    """None for a file that has none."""
    if metadata.get("tokenizer.ggml.model", str) in WITHOUT_TOKENIZER:
        return None
    try:
        return rebuilt_tokenizer(metadata, rows)
    except InputError:
        if not beside.is_file():
            raise
        return checked_tokenizer(metadata, rows, beside)


def _generation_config(metadata: Metadata) -> dict[str, Any]:
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id", int) for name in ENDS]
    known = list(dict.fromkeys(end for end in ends if end is not None))
    first = metadata.get("tokenizer.ggml.bos_token_id", int)
    return {
        **({} if first is None else {"bos_token_id": first}),
        **({"eos_token_id": known[0] if len(known) == 1 else known} if known else {}),
    }


def _tokenizer_config(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    tokens: Any = metadata.file.metadata["tokenizer.ggml.tokens"]
    ids = {key: metadata.get(f"tokenizer.ggml.{name}_token_id", int) for name, key in TOKEN_NAMES.items()}
    template = metadata.get("tokenizer.chat_template", str)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        **{key: tokens[index] for key, index in ids.items() if index is not None and 0 <= index < len(tokens)},
        **({} if template is None else {"chat_template": template}),
    }
