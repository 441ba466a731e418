"""A Whisper checkpoint → ModelBundle of encoder, embed, prefill and decode."""

from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.checkpoint import TrackedTensors
from pocketport.compress.families.language.load import stop_tokens
from pocketport.compress.families.registry import Lengths
from pocketport.compress.families.whisper.config import Generation, WhisperConfig
from pocketport.compress.families.whisper.features import LogMel
from pocketport.compress.families.whisper.graphs import build_graphs, cross_shapes
from pocketport.compress.sources.folder import read_json_object
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError, UsageError

PROMPT = 4  # start, language, task, no timestamps
BUNDLED_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "normalizer.json",
)  # fmt: skip


def load_whisper(source: Source, name: str, lengths: Lengths) -> ModelBundle:
    """Build the bundle; no weight is read.

    Raises:
        InputError: tensors and configuration files disagree.
        UsageError: `lengths` exceed the model's context.
    """
    config = WhisperConfig.from_hf(source.config)
    audio, generation = log_mel_of(source, config), generation_of(source, config)
    prompt, cache = _static_lengths(config, lengths)
    tensors = TrackedTensors(source.tensors)
    graphs = build_graphs(tensors, config, prompt, cache)
    tensors.check_all_taken(())
    return ModelBundle(
        name=name,
        family="whisper",
        sha256=source.sha256(),
        components={component: Component(component, graph) for component, graph in graphs.items()},
        files={file: source.files[file] for file in BUNDLED_FILES if file in source.files},
        config={
            "model": config.model_dump(), "audio": audio.model_dump(), "generation": generation.model_dump(),
            "prompt": prompt, "cache": cache, "max_new_tokens": cache - prompt + 1, "stop_tokens": stop_tokens(source),
        },
        shared=_shared(config),
    )  # fmt: skip


def log_mel_of(source: Source, config: WhisperConfig) -> LogMel:
    """What makes sound into the encoder's input; InputError when it does not fit the encoder."""
    name = "preprocessor_config.json"
    defaults = {"feature_size": config.num_mel_bins}
    audio = LogMel.from_hf(read_json_object(source.files[name]) if name in source.files else defaults)
    if (audio.feature_size, audio.frames) != (config.num_mel_bins, config.frames):
        raise InputError(
            f"feature_size and chunk_length make {audio.feature_size} × {audio.frames} features, "
            f"num_mel_bins and max_source_positions ask for {config.num_mel_bins} × {config.frames}",
            where=f"{source.path}, {name}",
            fix="give the file that belongs to this checkpoint",
        )
    return audio


def generation_of(source: Source, config: WhisperConfig) -> Generation:
    """Which tokens answers begin with; `Generation.from_hf` says what is refused."""
    name = "generation_config.json"
    keys = read_json_object(source.files[name]) if name in source.files else {}
    return Generation.from_hf({**source.config, **keys}, config.vocab_size)


def _static_lengths(config: WhisperConfig, lengths: Lengths) -> tuple[int, int]:
    """Prompt tokens and cache columns."""
    longest = config.max_target_positions
    cache = lengths.cache or longest
    prompt = lengths.prompt or min(PROMPT, cache - 1)
    if lengths.patches is not None or not 1 <= prompt < cache <= longest:
        raise UsageError(
            f"a prompt of {prompt} tokens in a cache of {cache} does not fit a context of {longest}"
            if lengths.patches is None
            else "a model that hears has no patches",
            where="lengths",
            fix=f"keep prompt < cache ≤ {longest}, and give no number of patches",
        )
    return prompt, cache


def _shared(config: WhisperConfig) -> list[list[str]]:
    """Cross-attention's keys and values go from the encoder to both others, the decoder's own from prefill to decode."""
    states = [f"{kind}_{i}" for i in range(config.decoder_layers) for kind in ("key", "value")]
    return [
        *([f"{component}/{name}" for component in ("encoder", "prefill", "decode")] for name in cross_shapes(config)),
        *([f"prefill/present_{name}", f"decode/past_{name}", f"decode/present_{name}"] for name in states),
    ]
