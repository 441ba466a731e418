"""A language model's checkpoint → ModelBundle of embed, prefill and decode."""

from typing import Any

from pocketport.compress.builder import GraphBuilder
from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.checkpoint import TrackedTensors
from pocketport.compress.families.decoder.config import DecoderConfig
from pocketport.compress.families.decoder.delta import shared_chunks
from pocketport.compress.families.decoder.graphs import DecoderParts, decoder_components
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.compress.families.decoder.published import decoder_paths, shared_caches
from pocketport.compress.families.registry import Lengths
from pocketport.compress.sources.folder import read_json_object
from pocketport.compress.sources.source import Source
from pocketport.errors import UsageError

MODEL_TYPES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_5_text",
    "qwen3_5",
    "minicpm",
    "gemma3_text",
    "gemma3",
    "smollm3",
)
PROMPT, CACHE = 512, 1024  # tokens, where neither the user nor the model's own limit says otherwise
BUNDLED_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
IGNORED_TENSORS = ("*.rotary_emb.inv_freq", "mtp.*")  # the host computes them; drafts of further tokens
VISION_TENSORS = (  # of a model that sees: this family is its language model alone
    "vision_tower.*", "multi_modal_projector.*", "model.vision_tower.*", "model.multi_modal_projector.*", "model.visual.*",
)  # fmt: skip


def load_language(source: Source, name: str, lengths: Lengths) -> ModelBundle:
    """Build the bundle; no weight is read. Of a model with a vision tower only the language model is taken.

    Raises:
        InputError: the decoder is not supported, or tensors and configuration disagree.
        UsageError: `lengths` exceed the model's context.
    """
    config = DecoderConfig.from_hf(source.config)
    prompt, cache = static_lengths(config, lengths)
    prefix, head = decoder_paths(source.tensors)
    tensors = TrackedTensors(source.tensors)
    graphs = decoder_components(
        lambda component: DecoderParts(GraphBuilder(component), tensors, config, prefix, head, prompt, cache)
    )
    sees = "vision_config" in source.config
    tensors.check_all_taken((*IGNORED_TENSORS, *(VISION_TENSORS if sees else ())))
    return ModelBundle(
        name=name,
        family="language",
        sha256=source.sha256(),
        components={component: Component(component, graph) for component, graph in graphs.items()},
        files={file: source.files[file] for file in BUNDLED_FILES if file in source.files},
        config={
            "model": dict(source.config), "prompt": prompt, "cache": cache, "max_new_tokens": cache - prompt + 1,
            "stop_tokens": stop_tokens(source), "left_out": ["vision"] if sees else [],
        },
        shared=[*shared_caches(config), *shared_chunks(config, prefix, prompt)],
    )  # fmt: skip


def language_host(bundle: ModelBundle) -> DecoderHost:
    """What the host computes for a bundle of this family."""
    settings = bundle.config
    return DecoderHost(DecoderConfig.from_hf(settings["model"]), int(settings["prompt"]), int(settings["cache"]))


def static_lengths(config: DecoderConfig, lengths: Lengths) -> tuple[int, int]:
    """Prompt tokens and cache columns.

    Raises:
        UsageError: they do not fit into each other, or into the model's context.
    """
    longest = config.max_position_embeddings
    cache = lengths.cache or min(longest, lengths.prompt + CACHE - PROMPT if lengths.prompt else CACHE)
    prompt = lengths.prompt or min(PROMPT, max(1, cache // 2))
    if not 1 <= prompt < cache <= longest:
        raise UsageError(
            f"a prompt of {prompt} tokens in a cache of {cache} does not fit a context of {longest}",
            where="lengths",
            fix=f"keep prompt < cache ≤ {longest}",
        )
    return prompt, cache


def stop_tokens(source: Source) -> list[int]:
    """The tokens that end an answer: those of generation_config.json, else of config.json."""
    name = "generation_config.json"
    generation = read_json_object(source.files[name]) if name in source.files else {}
    text: Any = source.config.get("text_config") or {}
    found = generation.get("eos_token_id", source.config.get("eos_token_id", text.get("eos_token_id")))
    values = found if isinstance(found, list) else [found]
    return [value for value in values if type(value) is int]
