"""A MiniCPM-V 4.6 or 4.7 folder (published layout) → ModelBundle of five components."""

from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.checkpoint import TrackedTensors
from pocketport.compress.families.decoder.delta import shared_chunks
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.compress.families.decoder.published import shared_caches
from pocketport.compress.families.language.load import BUNDLED_FILES, IGNORED_TENSORS, static_lengths, stop_tokens
from pocketport.compress.families.minicpmv4_6.config import PROCESSOR_FILE, MiniCPMV46Config, ProcessorConfig
from pocketport.compress.families.minicpmv4_6.graphs import LANGUAGE, build_graphs
from pocketport.compress.families.minicpmv4_6.parts import StaticShape
from pocketport.compress.families.minicpmv4_6.prompt import load_tokenizer
from pocketport.compress.families.minicpmv4_6.template import template_of
from pocketport.compress.families.registry import Lengths
from pocketport.compress.sources.folder import read_json_object
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

PROMPT_STEP = 64  # prompt lengths are rounded up to this many tokens: a chunk of linear attention
QUESTION_TOKENS = 64  # room for the question and the chat template
IMAGE_ID_TOKENS = 3
NEW_TOKENS = 256  # when the checkpoint does not say
WIDEST_ASPECT = 4.0


def load_minicpmv46(source: Source, name: str, lengths: Lengths) -> ModelBundle:
    """Build the bundle; no weight is read.

    Raises:
        InputError: tokenizer or chat template are missing, the model is not supported, or tensors and configuration
            disagree.
        UsageError: `lengths` do not fit into each other, or into the model's context.
    """
    config = MiniCPMV46Config.of(source)
    processor = ProcessorConfig.of(source, config)
    if "tokenizer.json" not in source.files:
        raise InputError(
            "it has no tokenizer.json",
            where=str(source.path),
            fix="copy the checkpoint's tokenizer beside its weights",
        )
    tokenizer = load_tokenizer(source.files["tokenizer.json"], config)
    template = template_of(source, str(tokenizer.id_to_token(config.image_token_id)))
    shape = static_shape(source, config, processor, lengths)
    decoder = config.decoder()
    tensors = TrackedTensors(source.tensors)
    graphs = build_graphs(tensors, config, shape)
    tensors.check_all_taken((*IGNORED_TENSORS, *(() if config.mergers == 2 else ("model.vision_tower.vit_merger.*",))))
    return ModelBundle(
        name=name,
        family="minicpmv4_6",
        sha256=source.sha256(),
        components={n: Component(n, graph) for n, graph in graphs.items()},
        files={file: source.files[file] for file in (*BUNDLED_FILES, PROCESSOR_FILE) if file in source.files},
        config={
            "model": config.model_dump(mode="json"), "processor": processor.model_dump(mode="json"),
            "template": template.to_json(), "patches": shape.patches, "prompt": shape.prompt, "cache": shape.cache,
            "max_new_tokens": shape.cache - shape.prompt, "stop_tokens": stop_tokens(source),
        },
        shared=[
            ["vision/vision_features", "connector/vision_features"], *shared_caches(decoder),
            *shared_chunks(decoder, LANGUAGE, shape.prompt),
        ],
    )  # fmt: skip


def static_shape(source: Source, config: MiniCPMV46Config, processor: ProcessorConfig, lengths: Lengths) -> StaticShape:
    """The static lengths: the user's, else what the checkpoint's files say, else upper bounds.

    The bound on patches: a view has about R² pixels (R = ``scale_resolution``), and rounding its sides to whole vision
    tokens of T pixels adds at most T/2 to each, for aspect ratios up to `WIDEST_ASPECT`.

    Raises:
        UsageError: they do not fit into each other, or into the model's context.
    """
    side, step, each = processor.scale_resolution, config.vision_config.patch_size * config.side, config.side**2
    rounding = step / 2 * side * (WIDEST_ASPECT**0.5 + WIDEST_ASPECT**-0.5) + step**2 / 4
    most = int((side**2 + rounding) // step**2) * each
    patches = lengths.patches or processor.max_patches or most
    patches = -(-patches // each) * each
    slices = processor.max_slice_nums if processor.slice_mode and processor.max_slice_nums > 1 else 0
    tokens = (most // each + 2) * (slices + 1) + slices + (IMAGE_ID_TOKENS if processor.use_image_id else 0)
    prompt = (
        lengths.prompt or processor.max_prompt_tokens or -(-(tokens + QUESTION_TOKENS) // PROMPT_STEP) * PROMPT_STEP
    )
    name = "generation_config.json"
    generation = read_json_object(source.files[name]) if name in source.files else {}
    cache = lengths.cache or prompt + int(generation.get("max_new_tokens", NEW_TOKENS))
    return StaticShape(patches, *static_lengths(config.decoder(), Lengths(prompt=prompt, cache=cache)))


def host_of(bundle: ModelBundle) -> DecoderHost:
    """What the host computes for the bundle's language model."""
    config = MiniCPMV46Config.model_validate(bundle.config["model"])
    return DecoderHost(config.decoder(), int(bundle.config["prompt"]), int(bundle.config["cache"]))
