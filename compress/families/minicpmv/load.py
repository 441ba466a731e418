"""A MiniCPM-V 2.5 folder (published layout) → ModelBundle of five components."""

import json
from pathlib import Path
from typing import Any

from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.checkpoint import Checkpoint, TrackedTensors
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.graphs import build_graphs
from pocketport.compress.families.minicpmv.parts import StaticShape
from pocketport.errors import InputError
from pocketport.files import sha256_files

SUPPORTED_VERSION = "2.5"
BUNDLED_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip
PROMPT_STEP = 32  # prompt lengths are rounded up to this many tokens
QUESTION_TOKENS = 64  # room for the question and the chat template
NEW_TOKENS = 256  # when the checkpoint does not say
WIDEST_ASPECT = 4.0
IGNORED_TENSORS = ("*.rotary_emb.inv_freq", "*.position_ids", "resampler.pos_embed")  # the host computes them


def load_minicpmv(folder: Path, name: str) -> ModelBundle:
    """Build the bundle; weights stay memory-mapped in the checkpoint's files.

    Raises:
        InputError: a file is missing or damaged, the version is not 2.5, or tensors and configuration disagree.
    """
    config = MiniCPMVConfig.load(folder)
    if str(config.version) != SUPPORTED_VERSION or config.drop_vision_last_layer:
        kind = f"version {config.version}" + (", drop_vision_last_layer" if config.drop_vision_last_layer else "")
        raise InputError(
            f"this MiniCPM-V ({kind}) has another architecture",
            where=str(folder / "config.json"),
            fix=f"give version {SUPPORTED_VERSION}",
        )
    if not (folder / "tokenizer.json").is_file():
        raise InputError(
            "it has no tokenizer.json",
            where=str(folder),
            fix="copy the checkpoint's tokenizer beside its weights",
        )
    checkpoint = Checkpoint(folder)
    checkpoint.check_finite()
    files = {file: folder / file for file in BUNDLED_FILES if (folder / file).is_file()}
    shape, new_tokens = static_shape_of(folder, config)
    tensors = TrackedTensors(checkpoint)
    graphs = build_graphs(tensors, config, shape)
    tensors.check_all_taken(IGNORED_TENSORS)
    return ModelBundle(
        name=name,
        family="minicpmv",
        sha256=sha256_files([*files.values(), *checkpoint.files]),
        components={n: Component(n, graph) for n, graph in graphs.items()},
        files=files,
        config={
            "model": config.model_dump(), "patches": shape.patches, "prompt": shape.prompt, "cache": shape.cache,
            "max_new_tokens": new_tokens,
        },
        shared=_shared(config.num_hidden_layers),
    )  # fmt: skip


def static_shape_of(folder: Path, config: MiniCPMVConfig) -> tuple[StaticShape, int]:
    """The static lengths, and how many tokens may be generated: what the checkpoint's files say, else upper bounds.

    The bound on patches: a view has about R² pixels (R = ``scale_resolution``), and rounding its sides to whole
    patches of P pixels adds at most P/2 to each, for aspect ratios up to `WIDEST_ASPECT`.
    """
    processor, generation = (_optional_json(folder / f"{n}_config.json") for n in ("preprocessor", "generation"))
    slicing = config.slice_config
    side, patch = slicing.scale_resolution, slicing.patch_size
    rounding = patch / 2 * side * (WIDEST_ASPECT**0.5 + WIDEST_ASPECT**-0.5) + patch**2 / 4
    patches = int(processor.get("max_patches", (side**2 + rounding) // patch**2))
    views = slicing.max_slice_nums + 1
    image_tokens = (config.query_num + 2) * views + slicing.max_slice_nums + 2  # markers, and newlines between rows
    prompt = int(processor.get("max_prompt_tokens", image_tokens + QUESTION_TOKENS))
    prompt = -(-prompt // PROMPT_STEP) * PROMPT_STEP
    new_tokens = int(generation.get("max_new_tokens", NEW_TOKENS))
    if prompt + new_tokens > config.max_position_embeddings:
        raise InputError(
            f"prompt ({prompt}) and answer ({new_tokens}) exceed max_position_embeddings {config.max_position_embeddings}",
            where=str(folder / "config.json"), fix="lower max_prompt_tokens or max_new_tokens",
        )  # fmt: skip
    return StaticShape(patches, prompt, prompt + new_tokens), new_tokens


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"not JSON: {error}", where=str(path), fix="download the file again") from error
    return document if isinstance(document, dict) else {}


def _shared(layers: int) -> list[list[str]]:
    """The vision features cross from vision to connector; keys and values from prefill into the cache of decode."""
    caches = [
        [f"prefill/present_{kind}_{i}", f"decode/past_{kind}_{i}", f"decode/present_{kind}_{i}"]
        for i in range(layers)
        for kind in ("key", "value")
    ]
    return [["vision/vision_features", "connector/vision_features"], *caches]
