"""Which tensor of a GGUF file is which of the published (Hugging Face) checkpoint, in both directions.

The names and the changes of the numbers are those of llama.cpp's ``convert_hf_to_gguf.py`` and, for the projector file
of MiniCPM-V, of its ``legacy-models/minicpmv-convert-image-encoder-to-gguf.py``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from pocketport.errors import InputError


class Form(StrEnum):
    """How a GGUF tensor's numbers differ from the published ones."""

    SAME = "same"
    QUERY_ROWS = "query rows"
    """Rows of the query projection in the order of `rotary_rows`."""
    KEY_ROWS = "key rows"
    """The same of the key projection."""
    PLUS_ONE = "plus one"
    """One is added: the norm multiplies by the weight, not by 1 + weight."""
    TRANSPOSED = "transposed"
    THIRD = "third"
    """One of three equal runs of the published rows; `Place.part` says which."""


@dataclass(frozen=True)
class Place:
    """One tensor's two names; ``{}`` stands for the number of a layer.

    Attributes:
        gguf: its name in the GGUF file.
        published: its name in the checkpoint.
        form: how the numbers differ.
        part: 0 … 2 where `form` is `Form.THIRD`.
    """

    gguf: str
    published: str
    form: Form = Form.SAME
    part: int = 0


ARCHITECTURES: Mapping[str, str] = {
    "llama": "llama", "mistral": "llama", "minicpm": "minicpm", "qwen2": "qwen2", "qwen3": "qwen3",
    "gemma3_text": "gemma3", "gemma3": "gemma3", "smollm3": "smollm3", "bert": "bert",
}  # fmt: skip
"""``model_type`` → ``general.architecture``."""

ROTARY_IN_PAIRS = ("llama", "minicpm", "smollm3")
"""Architectures whose queries and keys llama.cpp rotates in neighbouring pairs, so that their rows are reordered."""


class NameTable:
    """Places by either name.

    Args:
        places: every tensor of one kind of file; no name may occur twice but published ones that are split.
    """

    def __init__(self, places: Iterable[Place]) -> None:
        self._by_gguf: dict[str, Place] = {}
        self._by_published: dict[str, list[Place]] = {}
        for place in places:
            self._by_gguf[place.gguf] = place
            self._by_published.setdefault(place.published, []).append(place)

    def of_gguf(self, name: str) -> Place | None:
        """The place of a GGUF tensor, layer numbers filled in; None for a name that is not known."""
        pattern, layer = _without_layer(name)
        place = self._by_gguf.get(pattern)
        return None if place is None else _filled(place, layer)

    def of_published(self, name: str) -> tuple[Place, ...]:
        """The places of a checkpoint's tensor, in order where it is split; empty for a name that is not known."""
        pattern, layer = _without_layer(name)
        return tuple(_filled(place, layer) for place in self._by_published.get(pattern, ()))


def text_names(architecture: str, prefix: str = "") -> NameTable:
    """The language model's (or BERT's) file.

    Args:
        architecture: ``general.architecture``.
        prefix: what goes before the published names: ``llm.`` in MiniCPM-V.

    Raises:
        InputError: the architecture is not known.
    """
    if architecture not in TEXT_PLACES:
        raise InputError(
            f"the architecture {architecture!r} is not known",
            where="general.architecture",
            fix=f"known: {', '.join(TEXT_PLACES)}; or give the original checkpoint",
        )
    return NameTable(replace(place, published=prefix + place.published) for place in TEXT_PLACES[architecture])


def projector_names() -> NameTable:
    """The ``mmproj`` file of MiniCPM-V 2.5 to 4.5 (``clip.projector_type`` = ``resampler``).

    Older files call the MLP's first layer ``ffn_down`` and its second ``ffn_up``, and so does this table; llama.cpp
    recognizes it by the shape (`ffn_down` takes the tower's width as input) and so must whoever reads a file.
    """
    return NameTable(PROJECTOR_PLACES)


def rotary_rows(rows: int, heads: int) -> NDArray[np.intp]:
    """The order in which llama.cpp keeps a projection's rows: ``gguf = published[order]``.

    Published heads hold the first elements of all rotated pairs, then the second ones; GGUF holds pair after pair. The
    inverse, for reading, is ``argsort`` of the order.

    Args:
        rows: of the projection, `heads` times an even width.
        heads: of queries, or of keys for the key projection.

    Returns:
        A permutation of 0 … rows − 1.
    """
    return np.arange(rows, dtype=np.intp).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _without_layer(name: str) -> tuple[str, str]:
    """(pattern, layer number): the first number between dots is a layer's, as no name has more."""
    found = re.search(r"(?<=\.)\d+(?=\.)", name)
    return (name, "") if found is None else (f"{name[: found.start()]}{{}}{name[found.end() :]}", found[0])


def _filled(place: Place, layer: str) -> Place:
    return replace(place, gguf=place.gguf.replace("{}", layer), published=place.published.replace("{}", layer))


def _module(gguf: str, published: str, form: Form = Form.SAME) -> tuple[Place, Place]:
    """A module's weight and its bias, if it has one."""
    return (
        Place(f"{gguf}.weight", f"{published}.weight", form),
        Place(f"{gguf}.bias", f"{published}.bias", form),
    )


def _decoder(architecture: str) -> tuple[Place, ...]:
    norm = Form.PLUS_ONE if architecture == "gemma3" else Form.SAME
    paired = architecture in ROTARY_IN_PAIRS
    layer, attention = "model.layers.{}", "model.layers.{}.self_attn"
    places = [
        *_module("token_embd", "model.embed_tokens"),
        *_module("output_norm", "model.norm", norm),
        *_module("output", "lm_head"),
        *_module("blk.{}.attn_norm", f"{layer}.input_layernorm", norm),
        *_module("blk.{}.attn_q", f"{attention}.q_proj", Form.QUERY_ROWS if paired else Form.SAME),
        *_module("blk.{}.attn_k", f"{attention}.k_proj", Form.KEY_ROWS if paired else Form.SAME),
        *_module("blk.{}.attn_v", f"{attention}.v_proj"),
        *_module("blk.{}.attn_output", f"{attention}.o_proj"),
        *_module("blk.{}.ffn_gate", f"{layer}.mlp.gate_proj"),
        *_module("blk.{}.ffn_up", f"{layer}.mlp.up_proj"),
        *_module("blk.{}.ffn_down", f"{layer}.mlp.down_proj"),
    ]
    if architecture in ("qwen3", "gemma3"):
        places += _module("blk.{}.attn_q_norm", f"{attention}.q_norm", norm)
        places += _module("blk.{}.attn_k_norm", f"{attention}.k_norm", norm)
    if architecture == "gemma3":
        places += _module("blk.{}.post_attention_norm", f"{layer}.post_attention_layernorm", norm)
        places += _module("blk.{}.ffn_norm", f"{layer}.pre_feedforward_layernorm", norm)
        places += _module("blk.{}.post_ffw_norm", f"{layer}.post_feedforward_layernorm", norm)
    else:
        places += _module("blk.{}.ffn_norm", f"{layer}.post_attention_layernorm")
    return tuple(places)


def _bert() -> tuple[Place, ...]:
    layer = "encoder.layer.{}"
    pairs = {
        "token_embd": "embeddings.word_embeddings", "token_types": "embeddings.token_type_embeddings",
        "position_embd": "embeddings.position_embeddings", "token_embd_norm": "embeddings.LayerNorm",
        "blk.{}.attn_q": f"{layer}.attention.self.query", "blk.{}.attn_k": f"{layer}.attention.self.key",
        "blk.{}.attn_v": f"{layer}.attention.self.value", "blk.{}.attn_output": f"{layer}.attention.output.dense",
        "blk.{}.attn_output_norm": f"{layer}.attention.output.LayerNorm",
        "blk.{}.ffn_up": f"{layer}.intermediate.dense", "blk.{}.ffn_down": f"{layer}.output.dense",
        "blk.{}.layer_output_norm": f"{layer}.output.LayerNorm",
    }  # fmt: skip
    return tuple(place for gguf, published in pairs.items() for place in _module(gguf, published))


def _projector() -> tuple[Place, ...]:
    layer = "vpm.encoder.layers.{}"
    places = [
        *_module("v.patch_embd", "vpm.embeddings.patch_embedding"),
        *_module("v.position_embd", "vpm.embeddings.position_embedding"),
        *_module("v.post_ln", "vpm.post_layernorm"),
        *_module("v.blk.{}.ln1", f"{layer}.layer_norm1"),
        *_module("v.blk.{}.ln2", f"{layer}.layer_norm2"),
        *_module("v.blk.{}.attn_q", f"{layer}.self_attn.q_proj"),
        *_module("v.blk.{}.attn_k", f"{layer}.self_attn.k_proj"),
        *_module("v.blk.{}.attn_v", f"{layer}.self_attn.v_proj"),
        *_module("v.blk.{}.attn_out", f"{layer}.self_attn.out_proj"),
        *_module("v.blk.{}.ffn_down", f"{layer}.mlp.fc1"),
        *_module("v.blk.{}.ffn_up", f"{layer}.mlp.fc2"),
        Place("resampler.query", "resampler.query"),
        Place("resampler.pos_embed", "resampler.pos_embed"),
        Place("resampler.kv.weight", "resampler.kv_proj.weight"),
        Place("resampler.proj.weight", "resampler.proj", Form.TRANSPOSED),
        *_module("resampler.attn.out", "resampler.attn.out_proj"),
    ]
    for part, letter in enumerate("qkv"):
        for kind in ("weight", "bias"):
            name = f"resampler.attn.{letter}.{kind}"
            places.append(Place(name, f"resampler.attn.in_proj_{kind}", Form.THIRD, part))
    for norm in ("ln_q", "ln_kv", "ln_post"):
        places += _module(f"resampler.{norm}", f"resampler.{norm}")
    return tuple(places)


TEXT_PLACES: Mapping[str, tuple[Place, ...]] = {
    **{name: _decoder(name) for name in ("llama", "minicpm", "qwen2", "qwen3", "gemma3", "smollm3")},
    "bert": _bert(),
}
"""``general.architecture`` → every tensor that its files may hold, but those that only say how to rotate."""

PROJECTOR_PLACES: tuple[Place, ...] = _projector()

COMPUTED_TENSORS = (
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
    "resampler.pos_embed_k",
)
"""GGUF tensors that no checkpoint holds: they follow from its ``config.json``."""
