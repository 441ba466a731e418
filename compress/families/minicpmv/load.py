"""A MiniCPM-V folder (published layout, versions 1.0 to 4.5) → ModelBundle of five components."""

from typing import Any

from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.checkpoint import TrackedTensors
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.compress.families.decoder.published import shared_caches
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.graphs import build_graphs
from pocketport.compress.families.minicpmv.parts import StaticShape
from pocketport.compress.families.minicpmv.versions import decoder_of, version_of
from pocketport.compress.families.registry import Lengths
from pocketport.compress.sources.folder import read_json_object
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

BUNDLED_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip
PROMPT_STEP = 32  # prompt lengths are rounded up to this many tokens
QUESTION_TOKENS = 64  # room for the question and the chat template
NEW_TOKENS = 256  # when the checkpoint does not say
WIDEST_ASPECT = 4.0
IGNORED_TENSORS = (  # the host computes them
    "*.rotary_emb.inv_freq", "*.position_ids", "resampler.pos_embed", "resampler.temporal_pos_embed",
)  # fmt: skip
IMAGE_ID_TOKENS = 3


def load_minicpmv(source: Source, name: str, lengths: Lengths) -> ModelBundle:
    """Build the bundle; no weight is read.

    Raises:
        InputError: the version is not known, the tokenizer is missing, or tensors and configuration disagree.
    """
    config = MiniCPMVConfig.of(source)
    decoder = decoder_of(config)
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
        shared=[["vision/vision_features", "connector/vision_features"], *shared_caches(decoder)],
    )  # fmt: skip


def static_shape_of(source: Source, config: MiniCPMVConfig, lengths: Lengths) -> tuple[StaticShape, int]:
    """The static lengths, and how many tokens may be generated: what the checkpoint's files say, else upper bounds.

    The bound on patches: a view has about R² pixels (R = ``scale_resolution``), and rounding its sides to whole
    patches of P pixels adds at most P/2 to each, for aspect ratios up to `WIDEST_ASPECT`.
    """
    processor, generation = (_optional_json(source, f"{n}_config.json") for n in ("preprocessor", "generation"))
    slicing = config.slice_config
    sliced, template = config.slice_mode, version_of(config).template
    side, patch = (slicing.scale_resolution if sliced else config.image_size), slicing.patch_size
    rounding = patch / 2 * side * (WIDEST_ASPECT**0.5 + WIDEST_ASPECT**-0.5) + patch**2 / 4
    patches = lengths.patches or int(processor.get("max_patches", (side**2 + rounding) // patch**2))
    slices = slicing.max_slice_nums if sliced else 0
    image_tokens = (config.query_num + 2) * (slices + 1) + slices + 2  # markers, and newlines between rows
    image_tokens += IMAGE_ID_TOKENS if config.use_image_id else 0
    system = len(template.before.encode()) if template.marked_slices else 0  # at most a token a byte
    prompt = lengths.prompt or int(processor.get("max_prompt_tokens", image_tokens + system + QUESTION_TOKENS))
    prompt = -(-prompt // PROMPT_STEP) * PROMPT_STEP
    new_tokens = lengths.cache - prompt if lengths.cache else int(generation.get("max_new_tokens", NEW_TOKENS))
    longest = config.max_position_embeddings
    if prompt + new_tokens > longest:
        raise InputError(
            f"prompt ({prompt}) and answer ({new_tokens}) exceed max_position_embeddings {longest}",
            where=f"{source.path}, config.json", fix="lower max_prompt_tokens or max_new_tokens",
        )  # fmt: skip
    return StaticShape(patches, prompt, prompt + new_tokens), new_tokens


def host_of(bundle: ModelBundle) -> DecoderHost:
    """What the host computes for the bundle's language model."""
    config = MiniCPMVConfig.model_validate(bundle.config["model"])
    return DecoderHost(decoder_of(config), int(bundle.config["prompt"]), int(bundle.config["cache"]))


def _optional_json(source: Source, name: str) -> dict[str, Any]:
    return read_json_object(source.files[name]) if name in source.files else {}
