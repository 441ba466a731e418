"""A MiniCPM-V 2.5 folder (published layout) → ModelBundle of five components."""

from typing import Any

from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.checkpoint import TrackedTensors
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.graphs import build_graphs
from pocketport.compress.families.minicpmv.parts import StaticShape
from pocketport.compress.families.registry import Lengths
from pocketport.compress.sources.folder import read_json_object
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

SUPPORTED_VERSION = "2.5"
BUNDLED_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip
PROMPT_STEP = 32  # prompt lengths are rounded up to this many tokens
QUESTION_TOKENS = 64  # room for the question and the chat template
NEW_TOKENS = 256  # when the checkpoint does not say
WIDEST_ASPECT = 4.0
IGNORED_TENSORS = ("*.rotary_emb.inv_freq", "*.position_ids", "resampler.pos_embed")  # the host computes them


def load_minicpmv(source: Source, name: str, lengths: Lengths) -> ModelBundle:
    """Build the bundle; no weight is read.

    Raises:
        InputError: the version is not 2.5, the tokenizer is missing, or tensors and configuration disagree.
    """
    config = MiniCPMVConfig.of(source)
    if str(config.version) != SUPPORTED_VERSION or config.drop_vision_last_layer:
        kind = f"version {config.version}" + (", drop_vision_last_layer" if config.drop_vision_last_layer else "")
        raise InputError(
            f"this MiniCPM-V ({kind}) has another architecture",
            where=f"{source.path}, config.json",
            fix=f"give version {SUPPORTED_VERSION}",
        )
    if "tokenizer.json" not in source.files:
        raise InputError(
            "it has no tokenizer.json",
            where=str(source.path),
            fix="copy the checkpoint's tokenizer beside its weights",
        )
    shape, new_tokens = static_shape_of(source, config, lengths)
    tensors = TrackedTensors(source.tensors)
    graphs = build_graphs(tensors, config, shape)
    tensors.check_all_taken(IGNORED_TENSORS)
    return ModelBundle(
        name=name,
        family="minicpmv",
        sha256=source.sha256(),
        components={n: Component(n, graph) for n, graph in graphs.items()},
        files={file: source.files[file] for file in BUNDLED_FILES if file in source.files},
        config={
            "model": config.model_dump(), "patches": shape.patches, "prompt": shape.prompt, "cache": shape.cache,
            "max_new_tokens": new_tokens,
        },
        shared=_shared(config.num_hidden_layers),
    )  # fmt: skip


def static_shape_of(source: Source, config: MiniCPMVConfig, lengths: Lengths) -> tuple[StaticShape, int]:
    """The static lengths, and how many tokens may be generated: what the checkpoint's files say, else upper bounds.

    The bound on patches: a view has about R² pixels (R = ``scale_resolution``), and rounding its sides to whole
    patches of P pixels adds at most P/2 to each, for aspect ratios up to `WIDEST_ASPECT`.
    """
    processor, generation = (_optional_json(source, f"{n}_config.json") for n in ("preprocessor", "generation"))
    slicing = config.slice_config
    side, patch = slicing.scale_resolution, slicing.patch_size
    rounding = patch / 2 * side * (WIDEST_ASPECT**0.5 + WIDEST_ASPECT**-0.5) + patch**2 / 4
    patches = lengths.patches or int(processor.get("max_patches", (side**2 + rounding) // patch**2))
    views = slicing.max_slice_nums + 1
    image_tokens = (config.query_num + 2) * views + slicing.max_slice_nums + 2  # markers, and newlines between rows
    prompt = lengths.prompt or int(processor.get("max_prompt_tokens", image_tokens + QUESTION_TOKENS))
    prompt = -(-prompt // PROMPT_STEP) * PROMPT_STEP
    new_tokens = lengths.cache - prompt if lengths.cache else int(generation.get("max_new_tokens", NEW_TOKENS))
    if prompt + new_tokens > config.max_position_embeddings:
        raise InputError(
            f"prompt ({prompt}) and answer ({new_tokens}) exceed max_position_embeddings {config.max_position_embeddings}",
            where=f"{source.path}, config.json", fix="lower max_prompt_tokens or max_new_tokens",
        )  # fmt: skip
    return StaticShape(patches, prompt, prompt + new_tokens), new_tokens


def _optional_json(source: Source, name: str) -> dict[str, Any]:
    return read_json_object(source.files[name]) if name in source.files else {}


def _shared(layers: int) -> list[list[str]]:
    """The vision features cross from vision to connector; keys and values from prefill into the cache of decode."""
    caches = [
        [f"prefill/present_{kind}_{i}", f"decode/past_{kind}_{i}", f"decode/present_{kind}_{i}"]
        for i in range(layers)
        for kind in ("key", "value")
    ]
    return [["vision/vision_features", "connector/vision_features"], *caches]
