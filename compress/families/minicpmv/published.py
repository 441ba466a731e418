"""The parts of a published checkpoint: its language model as a plain one, and small models cut out of large ones."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from pocketport.compress.families.decoder.config import Published
from pocketport.compress.families.decoder.published import cut_out
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.versions import version_of
from pocketport.compress.sources.source import Source

DECODER, HEAD = "llm.model", "llm.lm_head"
PLAIN: Mapping[str, str] = {DECODER: "model", HEAD: "lm_head"}


def language_config(config: MiniCPMVConfig) -> dict[str, Any]:
    """The ``config.json`` that the language model would have on its own."""
    kept = {key: value for key, value in config.model_dump().items() if key in Published.model_fields}
    return {**kept, "model_type": version_of(config).decoder}


def language_part(source: Source) -> Source:
    """The language model alone, under the names that it would have on its own."""
    tensors = {}
    for name, tensor in source.tensors.items():
        for path, plain in PLAIN.items():
            if name.startswith(f"{path}."):
                tensors[plain + name.removeprefix(path)] = tensor
    return Source(source.path, language_config(MiniCPMVConfig.of(source)), tensors)


def part_of(source: Source, words: int) -> Source:
    """A smaller model of the same kind: one decoder layer, first and last of the tower, the first words of the vocabulary.

    Args:
        source: the published model.
        words: how many rows of embedding table and projection stay, at most.
    """
    config = MiniCPMVConfig.of(source)
    cut = cut_out(source, DECODER, HEAD, (0,), words)
    path = "vpm.blocks" if version_of(config).timm else "vpm.encoder.layers"
    kept = sorted({0, config.vision_layers - 1})
    vision = {**config.vision_config.model_dump(), "num_hidden_layers": len(kept) + config.drop_vision_last_layer}
    tensors = _renumbered(cut.tensors, path, {old: new for new, old in enumerate(kept)})
    return replace(cut, config={**cut.config, "vision_config": vision}, tensors=tensors, files=source.files)


def _renumbered(
    tensors: Mapping[str, ir.TensorProtocol], path: str, places: Mapping[int, int]
) -> dict[str, ir.TensorProtocol]:
    """Only these layers of the stack at `path`, under their new numbers; everything else as it is."""
    pattern = re.compile(re.escape(f"{path}.") + r"(\d+)(\..*)")
    kept = {}
    for name, tensor in tensors.items():
        found = pattern.fullmatch(name)
        if found is None:
            kept[name] = tensor
        elif int(found[1]) in places:
            kept[f"{path}.{places[int(found[1])]}{found[2]}"] = tensor
    return kept
