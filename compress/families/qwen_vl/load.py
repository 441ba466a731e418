"""A Qwen-VL checkpoint → ModelBundle of vision, connector, embed, prefill and decode."""

from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.checkpoint import TrackedTensors
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.compress.families.decoder.published import shared_caches
from pocketport.compress.families.language.load import BUNDLED_FILES, IGNORED_TENSORS, static_lengths, stop_tokens
from pocketport.compress.families.qwen_vl.config import QwenVLConfig
from pocketport.compress.families.qwen_vl.graphs import build_graphs
from pocketport.compress.families.qwen_vl.images import ImageSettings
from pocketport.compress.families.qwen_vl.parts import StaticShape
from pocketport.compress.families.registry import Lengths
from pocketport.compress.sources.folder import read_json_object
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError, UsageError

PREPROCESSOR, TOKENIZER = "preprocessor_config.json", "tokenizer.json"
PATCHES = 1024  # of an image, where the user does not say otherwise: 448×448 or 512×512 pixels, 256 vision tokens
QUESTION_TOKENS = 64  # room for the question
TEMPLATE_TOKENS = 32  # and for the chat template
PROMPT_STEP = 32  # prompt lengths are rounded up to this many tokens
NEW_TOKENS = 256  # when the checkpoint does not say


def load_qwen_vl(source: Source, name: str, lengths: Lengths) -> ModelBundle:
    """Build the bundle; no weight is read.

    Raises:
        InputError: tokenizer or processor are missing, the model is not supported, or tensors and configuration
            disagree.
        UsageError: `lengths` do not fit into each other, or into the model's context.
    """
    config = QwenVLConfig.from_hf(source.config)
    settings = image_settings(source, config)
    shape = static_shape(config, settings, lengths)
    tensors = TrackedTensors(source.tensors)
    graphs = build_graphs(tensors, config, shape)
    tensors.check_all_taken(IGNORED_TENSORS)
    features = ["vision_features", *(f"deepstack_features_{i}" for i in range(len(config.vision.deepstack)))]
    return ModelBundle(
        name=name,
        family="qwen_vl",
        sha256=source.sha256(),
        components={component: Component(component, graph) for component, graph in graphs.items()},
        files={file: source.files[file] for file in (*BUNDLED_FILES, PREPROCESSOR) if file in source.files},
        config={
            "model": dict(source.config), "image": fitted(settings, shape.patches).model_dump(mode="json"),
            "patches": shape.patches, "prompt": shape.prompt, "cache": shape.cache,
            "max_new_tokens": shape.cache - shape.prompt + 1, "stop_tokens": stop_tokens(source),
        },
        shared=[*([f"vision/{n}", f"connector/{n}"] for n in features), *shared_caches(config.decoder)],
    )  # fmt: skip


def language_host(bundle: ModelBundle) -> DecoderHost:
    """What the host computes for the bundle's language model."""
    decoder = QwenVLConfig.from_hf(bundle.config["model"]).decoder
    return DecoderHost(decoder, int(bundle.config["prompt"]), int(bundle.config["cache"]))


def image_settings(source: Source, config: QwenVLConfig) -> ImageSettings:
    """What the checkpoint's processor does.

    Raises:
        InputError: processor or tokenizer are missing, or the processor is not that of this tower.
    """
    for name in (PREPROCESSOR, TOKENIZER):
        if name not in source.files:
            raise InputError(f"it has no {name}", where=str(source.path), fix="copy it beside the weights")
    path = source.files[PREPROCESSOR]
    settings = ImageSettings.from_hf(read_json_object(path), str(path))
    vision = config.vision
    found = {
        "patch_size": (settings.patch_size, vision.patch), "merge_size": (settings.merge_size, vision.merge),
        "temporal_patch_size": (settings.temporal_patch_size, vision.temporal), "image_mean": (3, vision.channels),
    }  # fmt: skip
    for key, (here, there) in found.items():
        if here != there:
            raise InputError(
                f"it is for {here}, config.json's vision_config for {there}",
                where=f"{path}, {key}", fix="give the files that belong to this checkpoint",
            )  # fmt: skip
    return settings


def static_shape(config: QwenVLConfig, settings: ImageSettings, lengths: Lengths) -> StaticShape:
    """The static lengths: the user's, else enough for one image, a question and an answer.

    Raises:
        UsageError: they do not fit into each other, into the model's context, or an image at the processor's least.
    """
    merged, area = config.vision.merged, settings.patch_size**2
    least = -(-settings.min_pixels // (area * merged)) * merged
    patches = lengths.patches or max(least, min(settings.max_pixels // area, PATCHES) // merged * merged)
    if patches % merged or patches < least:
        raise UsageError(
            f"{patches} patches: not a multiple of {merged}, or under the {least} of the smallest image",
            where="lengths", fix=f"give a multiple of {merged}, at least {least}",
        )  # fmt: skip
    needed = patches // merged + QUESTION_TOKENS + TEMPLATE_TOKENS
    prompt = lengths.prompt or -(-needed // PROMPT_STEP) * PROMPT_STEP
    cache = lengths.cache or min(prompt + NEW_TOKENS, config.decoder.max_position_embeddings)
    lengths = Lengths(prompt=prompt, cache=cache)
    prompt, cache = static_lengths(config.decoder, lengths)
    return StaticShape(patches, prompt, cache)


def fitted(settings: ImageSettings, patches: int) -> ImageSettings:
    """The same processor for images of at most so many patches."""
    return settings.model_copy(update={"max_pixels": min(settings.max_pixels, patches * settings.patch_size**2)})
