"""The projector file (``mmproj``) of MiniCPM-V: its metadata beside the language model's, as one ``config.json``."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pocketport.compress.ggml.reader import GgufFile
from pocketport.compress.sources.gguf_config import Metadata, shortest
from pocketport.errors import InputError

VERSIONS: Mapping[tuple[int, str], str] = {
    (2, "llama"): "2.5", (3, "qwen2"): "2.6", (4, "qwen2"): "2.6", (5, "llama"): "4.0", (6, "llama"): "4.0",
    (6, "qwen3"): "4.5", (100045, "qwen3"): "4.5",
}  # fmt: skip
"""``clip.minicpmv_version`` and the language model's ``model_type`` → ``version``; the o-models see as the V-models do."""

QUERIES = {2: 96}  # where the file does not say; 64 in all later versions
MEAN = STD = 0.5  # of the pixels, in every version
MOST_SLICES = 9  # in llama.cpp's code


def composite_config(text: Mapping[str, Any], projector: GgufFile, where: Path) -> dict[str, Any]:
    """The language model's ``config.json`` and what the projector adds, as MiniCPM-V has them: in one.

    Raises:
        InputError: the projector is of another kind, or does not belong to the language model.
    """
    metadata = Metadata(projector)
    kind = metadata.get("clip.projector_type", str)
    if kind != "resampler":
        raise metadata.refused("clip.projector_type", f"the projector {kind!r} is not known (known: resampler)")
    number = metadata.get("clip.minicpmv_version", int) or 2
    version = VERSIONS.get((number, text["model_type"]))
    if version is None:
        raise metadata.refused(
            "clip.minicpmv_version", f"there is no version {number} with a language model of the kind {text['model_type']!r}"
        )  # fmt: skip
    for key, expected in (("clip.vision.image_mean", MEAN), ("clip.vision.image_std", STD)):
        given = projector.metadata.get(key)
        if given is not None and not (isinstance(given, np.ndarray) and (given == expected).all()):
            raise metadata.refused(key, f"it is not {expected} in all channels")
    query, vision = _shape(projector, "resampler.query"), _vision_config(metadata)
    queries = metadata.get("clip.minicpmv_query_num", int) or QUERIES.get(number, 64)
    if query != (queries, text["hidden_size"]):
        raise InputError(
            f"its queries are {list(query)}, the language model needs {[queries, text['hidden_size']]}",
            where=str(projector.path),
            fix="put a language model and its own projector into one folder",
        )
    side = metadata.require("clip.vision.image_size", int)
    return {
        **text, "model_type": "minicpmv", "architectures": ["MiniCPMV"], "version": version, "query_num": queries, "image_size": side,
        "slice_mode": True, "use_image_id": version != "2.5", "drop_vision_last_layer": False,
        "slice_config": {"max_slice_nums": MOST_SLICES, "scale_resolution": side, "patch_size": vision["patch_size"]},
        "vision_config": vision,
    }  # fmt: skip


def _vision_config(metadata: Metadata) -> dict[str, Any]:
    own = {
        "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length", "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count", "patch_size": "patch_size",
    }  # fmt: skip
    config: dict[str, Any] = {key: metadata.size(f"vision.{name}") for key, name in own.items()}
    rows, _ = _shape(metadata.file, "v.position_embd.weight")
    buckets = math.isqrt(rows)
    if buckets**2 != rows:
        raise InputError(
            f"its {rows} positions are no square",
            where=f"{metadata.file.path}, tensor v.position_embd.weight",
            fix="convert the original checkpoint again",
        )
    epsilon = metadata.require("clip.vision.attention.layer_norm_epsilon", float)
    return config | {
        "image_size": buckets * config["patch_size"], "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": shortest(epsilon), "model_type": "siglip_vision_model",
    }  # fmt: skip


def with_published_layers(projector: GgufFile) -> GgufFile:
    """The file with ``ffn_down`` and ``ffn_up`` as `projector_names` has them, whichever way they are in it.

    llama.cpp tells by the shape: the first layer takes the tower's width.
    """
    first = projector.tensors.get("v.blk.0.ffn_up.weight")
    width = _shape(projector, "v.position_embd.weight")[1]
    if first is None or first.shape[-1] != width or first.shape[0] == width:
        return projector
    renamed = copy.copy(projector)
    renamed.tensors = {_swapped(name): tensor for name, tensor in projector.tensors.items()}
    return renamed


def _swapped(name: str) -> str:
    names = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
    return ".".join(names.get(part, part) for part in name.split("."))


def _shape(file: GgufFile, name: str) -> tuple[int, int]:
    """Of a matrix that must be there."""
    tensor = file.tensors.get(name)
    if tensor is None or len(tensor.shape) != 2:
        raise InputError("it has no such matrix", where=f"{file.path}, tensor {name}", fix="give a projector's file")
    return tensor.shape[0], tensor.shape[1]
