"""The graphs of a decoder against an independent reference, along the tokens that the reference chooses."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.chat import ImagePrompt
from pocketport.compress.families.decoder.config import LINEAR
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.compress.families.registry import Pair

SAMPLE_SEED = 7
DECODE_STEPS = 5
LONG_ENOUGH = 96  # tokens; a sliding window asks for more


@dataclass(frozen=True)
class Computed:
    """What a reference gives for one sequence of T tokens.

    Attributes:
        logits: behind the last token, [V].
        keys, values: of each layer that has them, [kv,T,d], keys rotated.
        states: of the other layers, by `DecoderConfig.state_names`.
    """

    logits: FloatArray
    keys: Sequence[FloatArray]
    values: Sequence[FloatArray]
    states: Mapping[str, FloatArray] = field(default_factory=dict)


Reference: TypeAlias = Callable[[Sequence[int]], Computed]
"""Computes a whole sequence anew, without padding and without a cache of its own making."""


def compare_decoder(
    graphs: Mapping[str, ir.Model], host: DecoderHost, reference: Callable[[], Reference]
) -> Iterator[Pair]:
    """(component, tensor, the reference's numbers, the graphs' numbers) over a long and a short prompt of random tokens.

    Prefill's logits and every key and value where there is no padding; then decode's logits and new keys and values
    along the tokens that the reference chooses; at last the tokens that each would have chosen. Other states whole.

    Args:
        graphs: ``embed``, ``prefill`` and ``decode``.
        host: of these graphs.
        reference: makes the reference. It is dropped before the graphs are opened, and prefill before decode: what
            is held in memory is one of them.
    """
    lengths = sorted({_long(host), min(7, host.prompt)}, reverse=True)
    rng = np.random.default_rng(SAMPLE_SEED)
    texts = [rng.integers(0, host.config.vocab_size, length).tolist() for length in lengths]
    prompts = [ImagePrompt(text, [], [], 0) for text in texts]
    yield from compare_prompts(graphs, host, prompts, lambda: [reference()] * len(prompts))


def compare_prompts(
    graphs: Mapping[str, ir.Model],
    host: DecoderHost,
    prompts: Sequence[ImagePrompt],
    references: Callable[[], Sequence[Reference]],
) -> Iterator[Pair]:
    """As `compare_decoder`, over given prompts, each with a reference of its own (which may know its images)."""
    steps = min(DECODE_STEPS, host.cache - host.prompt)
    expected = _expected(references(), prompts, steps)
    embed, prefill = OrtExecutor(graphs["embed"]), OrtExecutor(graphs["prefill"])
    states, chosen = [], []
    for prompt, computed in zip(prompts, expected, strict=True):
        length = len(prompt.input_ids)
        embeds = np.array(embed.run({"input_ids": host.prompt_ids(prompt.input_ids)})["embeds"], np.float32)
        prompt.place(embeds)
        results = prefill.run({**host.prefill_feeds(embeds, length, prompt.positions), **prompt.extra})
        padding = host.padding(length)
        yield "prefill", "logits", computed[0].logits, results["logits"][0]
        yield from _states("prefill", host, computed[0], results, slice(None), slice(padding, None))
        states.append(host.started(results, length, prompt.positions))
        chosen.append([int(results["logits"][0].argmax())])
    prefill.close()
    decode = OrtExecutor(graphs["decode"])
    for state, computed, tokens in zip(states, expected, chosen, strict=True):
        for before, after in itertools.pairwise(computed):
            one = embed.run({"input_ids": host.one_id(int(before.logits.argmax()))})["embeds"][:1]
            results = decode.run(host.decode_feeds(np.asarray(one, np.float32), state))
            host.store(results, state)
            tokens.append(int(results["logits"][0].argmax()))
            yield "decode", "logits", after.logits, results["logits"][0]
            yield from _states("decode", host, after, results, slice(-1, None), slice(None))
        yield "decode", "token_ids", np.array([int(c.logits.argmax()) for c in computed]), np.array(tokens)


def _long(host: DecoderHost) -> int:
    """A prompt that a sliding window cuts, where that is possible."""
    return min(host.prompt, max(LONG_ENOUGH, 2 * (host.config.sliding_window or 0)))


def _expected(references: Sequence[Reference], prompts: Sequence[ImagePrompt], steps: int) -> list[list[Computed]]:
    """Per prompt what its reference computes behind it and behind each token that it then chooses."""
    found = []
    for reference, prompt in zip(references, prompts, strict=True):
        tokens, computed = list(prompt.input_ids), [reference(prompt.input_ids)]
        for _ in range(steps):
            tokens.append(int(computed[-1].logits.argmax()))
            computed.append(reference(tokens))
        found.append(computed)
    return found


def _states(
    component: str,
    host: DecoderHost,
    computed: Computed,
    results: Mapping[str, NDArray[Any]],
    expected: slice,
    found: slice,
) -> Iterator[Pair]:
    arrays = {"key": iter(computed.keys), "value": iter(computed.values)}
    for name in host.config.state_names():
        kind, present = name.partition("_")[0], f"present_{name}"
        if kind in arrays:
            yield component, present, next(arrays[kind])[:, expected], results[present][0][:, found]
        else:
            yield component, present, computed.states[name], results[present][0]


def from_transformers(model: nn.Module) -> Reference:
    """A causal language model of transformers as a reference."""
    return lambda tokens: computed_by(model, input_ids=torch.tensor([list(tokens)]))


@torch.inference_mode()
def computed_by(model: nn.Module, **inputs: Any) -> Computed:
    """What a language model of transformers gives for one sequence: ``input_ids`` [1,T] or ``inputs_embeds``, and more."""
    cache = empty_cache(model)
    result = model(**inputs, cache=cache, use_cache=True, logits_to_keep=1)
    return computed_of(result.logits[0, -1], cache)


def empty_cache(model: nn.Module) -> Any:
    """A cache of transformers, fit for the model; sliding layers keep every column too, which it does not know of."""
    from transformers import DynamicCache

    text: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    return DynamicCache(config=text) if LINEAR in (getattr(text, "layer_types", None) or ()) else DynamicCache()


def computed_of(logits: torch.Tensor, cache: Any) -> Computed:
    """Logits [V] and everything that a cache of transformers holds."""
    columns = [layer for layer in cache.layers if hasattr(layer, "keys")]
    states = {}
    for i, layer in enumerate(cache.layers):
        if not hasattr(layer, "keys"):
            states[f"conv_{i}"] = layer.conv_states[0][0].numpy()[:, 1:]  # one column more than the next token sees
            states[f"state_{i}"] = layer.recurrent_states[0][0].numpy()
    return Computed(
        logits.numpy(),
        [layer.keys[0].numpy() for layer in columns],
        [layer.values[0].numpy() for layer in columns],
        states,
    )
