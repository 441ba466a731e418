"""A decoder within a published checkpoint: where its tensors lie, and small models cut out of large ones."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from pocketport.compress.families.decoder.config import DecoderConfig
from pocketport.compress.graph import dimensions
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

# (decoder, vocabulary projection), as plain checkpoints, older and newer composites have them
PATHS = (
    ("model", "lm_head"), ("language_model.model", "language_model.lm_head"), ("model.language_model", "lm_head"),
    ("model.text_model", "lm_head"),
)  # fmt: skip
PER_LAYER = ("layer_types", "no_rope_layers")
PERIODS = ("full_attention_interval",)  # what may stand for them, and means nothing among layers counted anew


def decoder_paths(names: Iterable[str]) -> tuple[str, str]:
    """The paths of decoder and vocabulary projection among a checkpoint's tensor names.

    Raises:
        InputError: there is no embedding table at any known place.
    """
    known = set(names)
    for prefix, head in PATHS:
        if f"{prefix}.embed_tokens.weight" in known:
            return prefix, head
    places = ", ".join(f"{prefix}.embed_tokens.weight" for prefix, _ in PATHS)
    raise InputError(
        f"the checkpoint has no embedding table; looked for {places}",
        where="tensors",
        fix="give a checkpoint with its language model's head",
    )


def shared_caches(config: DecoderConfig) -> list[list[str]]:
    """For a bundle's `shared`: states go from prefill into decode, which reads them and adds to them."""
    return [
        [f"prefill/present_{name}", f"decode/past_{name}", f"decode/present_{name}"] for name in config.state_names()
    ]


def telling_layers(config: DecoderConfig) -> tuple[int, ...]:
    """The first layer of each kind, and the last one where there is one kind only: what a check must not leave out."""
    kinds = list(zip(config.layer_types, config.rotary, strict=True))
    first = {kinds.index(kind) for kind in kinds}
    return tuple(sorted(first if len(first) > 1 else first | {len(kinds) - 1}))


def cut_out(source: Source, prefix: str, head: str, layers: Sequence[int], vocabulary: int) -> Source:
    """A smaller model of the same kind: these layers, counted anew, and the first words of the vocabulary.

    Args:
        source: the published model.
        prefix, head: `decoder_paths` of it.
        layers: which layers stay, ascending.
        vocabulary: how many rows of embedding table and projection stay, at most.

    Returns:
        A source without files, whose tensors are those of `source` (tables cut when they are read).
    """
    config = dict(source.config)
    nested = isinstance(config.get("text_config"), Mapping)
    text = dict(config["text_config"]) if nested else config
    words = min(vocabulary, dimensions(source.tensors[f"{prefix}.embed_tokens.weight"])[0])
    if any(text.get(key) is not None for key in PERIODS):
        text["layer_types"] = DecoderConfig.from_hf(config).layer_types
    text |= {key: [text[key][i] for i in layers] for key in PER_LAYER if text.get(key) is not None}
    if text.get("scale_depth") is not None:  # MiniCPM divides it by the square root of the number of layers
        text["scale_depth"] *= math.sqrt(len(layers) / text["num_hidden_layers"])
    text |= {"num_hidden_layers": len(layers), "vocab_size": words, "pad_token_id": None}
    if nested:
        config["text_config"] = text
    places = {old: new for new, old in enumerate(layers)}
    pattern = re.compile(re.escape(f"{prefix}.layers.") + r"(\d+)(\..*)")
    tensors: dict[str, ir.TensorProtocol] = {}
    for name, tensor in source.tensors.items():
        found = pattern.fullmatch(name)
        if found is None:
            table = name in (f"{prefix}.embed_tokens.weight", f"{head}.weight")
            tensors[name] = first_rows(tensor, words) if table else tensor
        elif int(found[1]) in places:
            tensors[f"{prefix}.layers.{places[int(found[1])]}{found[2]}"] = tensor
    return Source(source.path, config, tensors)


def first_rows(tensor: ir.TensorProtocol, count: int) -> ir.TensorProtocol:
    """The first rows of a table, read when they are asked for."""
    shape = (count, *dimensions(tensor)[1:])

    def read() -> ir.TensorProtocol:
        return ir.Tensor(np.asarray(tensor.numpy()[:count], np.float32), name=tensor.name)

    return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=tensor.name)


def text_only(source: Source) -> Source:
    """The language model of a composite checkpoint as a plain one: its ``text_config``, names from ``model.`` on.

    A source that is plain already comes back as it is.
    """
    text: Any = source.config.get("text_config")
    if not isinstance(text, Mapping):
        return source
    prefix, head = decoder_paths(source.tensors)
    tied = source.config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    config = {**text, **({} if tied is None else {"tie_word_embeddings": tied})}
    tensors = {}
    for name, tensor in source.tensors.items():
        for old, new in ((prefix, "model"), (head, "lm_head")):
            if name.startswith(f"{old}."):
                tensors[new + name.removeprefix(old)] = tensor
    return Source(source.path, config, tensors, source.files, source.weight_files)
