"""The float graphs of a Whisper against transformers: features, encoder, and a greedy answer token by token.

Large models are compared in part, as language models are: the first and the last layer of each stack, and the first
words of the vocabulary.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Arrays, OrtExecutor
from pocketport.compress.families.decoder.published import first_rows
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.compress.families.registry import Lengths, Pair
from pocketport.compress.families.transformers_reference import imported_transformers, transformers_model
from pocketport.compress.families.whisper.config import WhisperConfig
from pocketport.compress.families.whisper.graphs import DECODER, HEAD, STATES
from pocketport.compress.families.whisper.host import WhisperHost
from pocketport.compress.families.whisper.load import load_whisper
from pocketport.compress.graph import dimensions
from pocketport.compress.sources.source import Source

SMALL = 64 << 20  # parameters; a model of so many is compared whole
WORDS = 4096
SAMPLE_SEED = 7
STEPS = 5
SECONDS = 5


@dataclass(frozen=True)
class Computed:
    """What transformers gives for one sequence of T tokens: logits behind it [V], keys and values per layer [heads,T,d]."""

    logits: FloatArray
    keys: Sequence[FloatArray]
    values: Sequence[FloatArray]


def compare(bundle: ModelBundle, source: Source) -> Iterator[Pair]:
    """(component, tensor, transformers' numbers, the graphs' numbers) for a synthetic sound.

    Its features; the encoder's last hidden state and all keys and values of cross-attention; then behind a full and a short
    prompt of random tokens logits, keys and values of prefill, and those of decode along the tokens that transformers
    chooses; at last the tokens that each would have chosen.
    """
    if sum(prod(dimensions(tensor)) for tensor in source.tensors.values()) > SMALL:
        lengths = Lengths(prompt=int(bundle.config["prompt"]), cache=int(bundle.config["cache"]))
        source = cut_out(source)
        bundle = load_whisper(source, bundle.name, lengths)
    host = WhisperHost.of(bundle.config)
    audio = host.audio
    rng = np.random.default_rng(SAMPLE_SEED)
    sound = _sound(min(SECONDS * audio.sampling_rate, audio.samples), audio.sampling_rate, rng)
    features = audio.apply(sound)
    extractor = imported_transformers().WhisperFeatureExtractor(**audio.model_dump())
    theirs = extractor(sound, sampling_rate=audio.sampling_rate, return_tensors="np")["input_features"]
    yield "encoder", "input_features", theirs, features
    counts = sorted({host.prompt, min(2, host.prompt)}, reverse=True)
    prompts = [rng.integers(0, host.config.vocab_size, count).tolist() for count in counts]
    states, expected_cross, expected = _reference(source, features, prompts, min(STEPS, host.cache - host.prompt))
    cross = _run_once(bundle["encoder"].graph, {"input_features": features})
    yield "encoder", STATES, states, cross[STATES]
    for name, array in expected_cross.items():
        yield "encoder", name, array, cross[name]
    yield from _compare_decoder(bundle, host, cross, prompts, expected)


def _compare_decoder(
    bundle: ModelBundle,
    host: WhisperHost,
    cross: Arrays,
    prompts: Sequence[list[int]],
    expected: Sequence[Sequence[Computed]],
) -> Iterator[Pair]:
    embed, prefill = OrtExecutor(bundle["embed"].graph), OrtExecutor(bundle["prefill"].graph)
    running, chosen = [], []
    for tokens, computed in zip(prompts, expected, strict=True):
        embeds = np.asarray(embed.run(host.embed_feeds(tokens))["embeds"], np.float32)
        results = prefill.run(host.prefill_feeds(embeds, len(tokens), cross))
        yield from _pairs("prefill", computed[0], results, slice(None), slice(host.prompt - len(tokens), None))
        running.append(host.started(results, len(tokens), cross))
        chosen.append([int(results["logits"][0].argmax())])
    prefill.close()
    decode = OrtExecutor(bundle["decode"].graph)
    for state, computed, found in zip(running, expected, chosen, strict=True):
        for before, after in itertools.pairwise(computed):
            feeds = host.embed_feeds([int(before.logits.argmax())], state.column - state.padding)
            one = np.asarray(embed.run(feeds)["embeds"][-1:], np.float32)
            results = decode.run(host.decode_feeds(one, state))
            host.store(results, state)
            found.append(int(results["logits"][0].argmax()))
            yield from _pairs("decode", after, results, slice(-1, None), slice(None))
        yield "decode", "token_ids", np.array([int(c.logits.argmax()) for c in computed]), np.array(found)


def _pairs(component: str, computed: Computed, results: Arrays, expected: slice, found: slice) -> Iterator[Pair]:
    yield component, "logits", computed.logits, results["logits"][0]
    for kind, arrays in (("key", computed.keys), ("value", computed.values)):
        for i, array in enumerate(arrays):
            name = f"present_{kind}_{i}"
            yield component, name, array[:, expected], results[name][0][:, found]


@torch.inference_mode()
def _reference(
    source: Source, features: FloatArray, prompts: Sequence[list[int]], steps: int
) -> tuple[FloatArray, dict[str, FloatArray], list[list[Computed]]]:
    """The encoder's states [T,D], keys and values of cross-attention, and per prompt what is computed along its answer.

    Each sequence is computed anew, without a cache of an earlier one.
    """
    model: Any = transformers_model(source, "AutoModelForSpeechSeq2Seq")
    states = model.model.encoder(torch.from_numpy(features)).last_hidden_state
    found = []
    for prompt in prompts:
        tokens, computed = list(prompt), []
        for _ in range(steps + 1):
            ids = torch.tensor([tokens])
            result = model(encoder_outputs=(states,), decoder_input_ids=ids, use_cache=True)
            own = result.cache.self_attention_cache.layers
            keys, values = [layer.keys[0].numpy() for layer in own], [layer.values[0].numpy() for layer in own]
            computed.append(Computed(result.logits[0, -1].numpy(), keys, values))
            tokens.append(int(computed[-1].logits.argmax()))
        found.append(computed)
    cross: dict[str, FloatArray] = {}
    for i, layer in enumerate(result.cache.cross_attention_cache.layers):
        cross |= {f"cross_key_{i}": layer.keys.transpose(2, 3).numpy(), f"cross_value_{i}": layer.values.numpy()}
    return states[0].numpy(), cross, found


def _run_once(graph: ir.Model, feeds: Arrays) -> dict[str, NDArray[Any]]:
    executor = OrtExecutor(graph)
    results = executor.run(feeds)
    executor.close()
    return results


def _sound(count: int, rate: int, rng: np.random.Generator) -> FloatArray:
    """Rising tones in noise, one channel."""
    time = np.arange(count) / rate
    tones = np.sin(2 * np.pi * (200 + 300 * time[:, None] / time[-1]) * np.arange(1, 5) * time[:, None]).mean(1)
    return np.asarray(0.3 * tones + 0.02 * rng.standard_normal(count), np.float32)


def cut_out(source: Source) -> Source:
    """A smaller Whisper: the first and the last layer of each stack, and the first words; tensors are read when used."""
    config = WhisperConfig.from_hf(source.config)
    words = min(WORDS, config.vocab_size)
    stacks = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    kept = {stack: sorted({0, count - 1}) for stack, count in stacks.items()}
    tensors: dict[str, ir.TensorProtocol] = {}
    for name, tensor in source.tensors.items():
        found = re.fullmatch(r"model\.(encoder|decoder)\.layers\.(\d+)\.(.*)", name)
        if found is None:
            table = name in (f"{DECODER}.embed_tokens.weight", f"{HEAD}.weight")
            tensors[name] = first_rows(tensor, words) if table else tensor
        elif int(found[2]) in kept[found[1]]:
            tensors[f"model.{found[1]}.layers.{kept[found[1]].index(int(found[2]))}.{found[3]}"] = tensor
    sizes = {"encoder_layers": len(kept["encoder"]), "decoder_layers": len(kept["decoder"]), "vocab_size": words}
    tokens = {"pad_token_id": None, "decoder_start_token_id": 0}  # the published ones are beyond the words that stay
    unused = ("num_hidden_layers", "bos_token_id", "eos_token_id")
    given = {key: value for key, value in source.config.items() if key not in unused}
    files = {name: path for name, path in source.files.items() if name == "preprocessor_config.json"}
    return Source(source.path, {**given, **sizes, **tokens}, tensors, files)
