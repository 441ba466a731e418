"""An Idefics3 or SmolVLM checkpoint → ModelBundle of vision, connector, embed, prefill and decode."""

from dataclasses import replace

from tokenizers import Tokenizer

from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.checkpoint import TrackedTensors
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.compress.families.decoder.published import shared_caches
from pocketport.compress.families.idefics3.config import Idefics3Config
from pocketport.compress.families.idefics3.graphs import StaticShape, build_graphs
from pocketport.compress.families.idefics3.prompt import encode_prompt, load_tokenizer
from pocketport.compress.families.idefics3.tiles import TileSettings
from pocketport.compress.families.language.load import BUNDLED_FILES, IGNORED_TENSORS, static_lengths, stop_tokens
from pocketport.compress.families.registry import Lengths
from pocketport.compress.sources.folder import read_json_object
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError, UsageError

PREPROCESSOR, TOKENIZER = "preprocessor_config.json", "tokenizer.json"
QUESTION_TOKENS = 64  # room for the question
PROMPT_STEP = 32  # prompt lengths are rounded up to this many tokens
NEW_TOKENS = 256  # when the user does not say


def load_idefics3(source: Source, name: str, lengths: Lengths) -> ModelBundle:
    """Build the bundle; no weight is read.

    A prompt that the user wants shorter than the widest image needs makes images smaller: fewer tiles, at last one.

    Raises:
        InputError: tokenizer or processor are missing, the model is not supported, or tensors and configuration
            disagree.
        UsageError: `lengths` do not fit into each other, into the model's context, or one tile.
    """
    config = Idefics3Config.from_hf(source.config, f"{source.path}, config.json")
    for file in (PREPROCESSOR, TOKENIZER):
        if file not in source.files:
            raise InputError(f"it has no {file}", where=str(source.path), fix="copy it beside the weights")
    published = read_json_object(source.files[PREPROCESSOR])
    tiles = TileSettings.from_hf(published, str(source.files[PREPROCESSOR]))
    tokenizer = load_tokenizer(source.files[TOKENIZER], config)
    shape, tiles = static_shape(config, tiles, tokenizer, lengths)
    tensors = TrackedTensors(source.tensors)
    graphs = build_graphs(tensors, config, shape)
    tensors.check_all_taken((*IGNORED_TENSORS, "*.position_ids"))
    return ModelBundle(
        name=name,
        family="idefics3",
        sha256=source.sha256(),
        components={component: Component(component, graph) for component, graph in graphs.items()},
        files={file: source.files[file] for file in (*BUNDLED_FILES, PREPROCESSOR) if file in source.files},
        config={
            "model": dict(source.config),
            "image": {**published, "size": {"longest_edge": tiles.longest}, "do_image_splitting": tiles.split},
            "prompt": shape.prompt, "cache": shape.cache, "max_new_tokens": shape.cache - shape.prompt + 1,
            "stop_tokens": stop_tokens(source),
        },
        shared=[["vision/vision_features", "connector/vision_features"], *shared_caches(config.decoder)],
    )  # fmt: skip


def language_host(bundle: ModelBundle) -> DecoderHost:
    """What the host computes for the bundle's language model."""
    decoder = Idefics3Config.from_hf(bundle.config["model"]).decoder
    return DecoderHost(decoder, int(bundle.config["prompt"]), int(bundle.config["cache"]))


def static_shape(
    config: Idefics3Config, tiles: TileSettings, tokenizer: Tokenizer, lengths: Lengths
) -> tuple[StaticShape, TileSettings]:
    """The static lengths, and how images are cut so that the widest one fits the prompt with a question.

    Raises:
        UsageError: not even one tile fits, or the lengths don't fit into each other.
    """
    if lengths.patches is not None:
        raise UsageError("tiles have their own number of patches", where="lengths", fix="leave the patches out")
    tokens = config.tokens(tiles.tile)

    def needed(tiles: TileSettings) -> int:
        return len(encode_prompt(tokenizer, config, "", tiles.widest, tokens)[0]) + QUESTION_TOKENS

    while lengths.prompt is not None and needed(tiles) > lengths.prompt:
        if not tiles.split:
            raise UsageError(
                f"a prompt of {lengths.prompt} tokens has no room for one image of {tokens} tokens and a question",
                where="lengths",
                fix=f"give a prompt of at least {needed(tiles)} tokens",
            )
        tiles = tiles.smaller()
    prompt = lengths.prompt or -(-needed(tiles) // PROMPT_STEP) * PROMPT_STEP
    prompt, cache = static_lengths(
        config.decoder, replace(lengths, prompt=prompt, cache=lengths.cache or prompt + NEW_TOKENS)
    )
    return StaticShape(tiles.tile, prompt, cache), tiles
