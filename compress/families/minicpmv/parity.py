"""The float component graphs against the torch model, over whole answers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from pocketport.calibration.sources.rendered_text import RenderedText
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executor import OrtExecutor
from pocketport.compress.families.chat import recorded
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.modeling import MiniCPMV
from pocketport.compress.families.minicpmv.prompt import END_OF_TURN, encode_prompt, load_tokenizer
from pocketport.compress.families.minicpmv.runner import MultimodalRunner
from pocketport.compress.families.minicpmv.slicing import (
    position_ids,
    sincos_positions,
    slice_image,
    to_patches,
)
from pocketport.compress.families.registry import Pair
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

SAMPLE_SEED = 7
SAMPLE_COUNT = 4


def compare(bundle: ModelBundle, source: Source) -> Iterator[Pair]:
    """(component, tensor, torch's numbers, the graphs' numbers) over a few rendered images.

    Vision features are compared where there are patches, logits along the tokens that torch chose, and at last the
    tokens that each chose by itself.
    """
    model = load_torch(source)
    tokenizer = load_tokenizer(source.files["tokenizer.json"])
    runner = MultimodalRunner({c.name: OrtExecutor(c.graph) for c in bundle}, bundle.config, bundle.files)
    samples = RenderedText(SAMPLE_SEED, "held_out").take(SAMPLE_COUNT)
    for image, question in ((sample.image, sample.prompt) for sample in samples):
        limit = int(bundle.config["max_new_tokens"])
        expected = read_with_torch(model, tokenizer, image, question, limit)
        recording, log = recorded(runner)
        recording.force_tokens(image, question, expected.tokens)
        outputs: dict[str, list[Any]] = {
            name: [c.results for c in log if c.component == name] for name in bundle.components
        }
        yield from _views(expected, outputs["vision"], outputs["connector"])
        yield "prefill", "logits", expected.logits[0], outputs["prefill"][0]["logits"][0]
        for reference, result in zip(expected.logits[1:], outputs["decode"], strict=False):
            yield "decode", "logits", reference, result["logits"][0]
        free = runner.read(image, question, limit).token_ids
        yield "decode", "token_ids", np.array(expected.tokens), np.array(free)


def _views(expected: "TorchAnswer", vision: Iterable[Any], connector: Iterable[Any]) -> Iterator[Pair]:
    for reference, result in zip(expected.features, vision, strict=True):
        yield "vision", "vision_features", reference, result["vision_features"][: len(reference)]
    for reference, result in zip(expected.vision_tokens, connector, strict=True):
        yield "connector", "vision_tokens", reference, result["vision_tokens"]


def load_torch(source: Source) -> MiniCPMV:
    """The source as a float32 torch model in evaluation mode; float32 weights stay memory-mapped."""
    config = MiniCPMVConfig.of(source)
    model = MiniCPMV(config)
    weights = {name: torch.from_numpy(source.tensors[name].numpy()) for name in source.tensors}
    if config.tie_word_embeddings:
        weights.setdefault("llm.lm_head.weight", weights["llm.model.embed_tokens.weight"])
    missing = model.load_state_dict(weights, strict=False, assign=True).missing_keys
    if missing:
        raise InputError("the checkpoint lacks it", where=f"tensor {missing[0]}", fix="give the whole checkpoint")
    model.eval()
    return model


@dataclass
class TorchAnswer:
    """What torch computed on the way to one answer: per view features [L,D] and tokens [Q,H], per step logits [V]."""

    features: list[NDArray[Any]] = field(default_factory=list)
    vision_tokens: list[NDArray[Any]] = field(default_factory=list)
    logits: list[NDArray[Any]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


@torch.inference_mode()
def read_with_torch(
    model: MiniCPMV, tokenizer: Tokenizer, image: Image.Image, question: str, limit: int
) -> TorchAnswer:
    """Greedy decoding of one prompt without any padding."""
    config, answer = model.config, TorchAnswer()
    views, grid = slice_image(image.convert("RGB"), config.slice_config)
    for view in views:
        strip, target = to_patches(view, config.vision_config.patch_size)
        ids = position_ids(target, config.vision_config.buckets_per_side)
        positions = sincos_positions(config.hidden_size, target)
        tokens, features = model.encode_images(*(torch.from_numpy(a)[None] for a in (strip, ids, positions)))
        answer.features.append(features[0].numpy())
        answer.vision_tokens.append(tokens[0].numpy())
    prompt = encode_prompt(tokenizer, question, query_num=config.query_num, grid=grid)
    input_ids = torch.tensor([prompt.input_ids])
    is_vision = torch.zeros(input_ids.shape, dtype=torch.bool)
    for first, last in prompt.spans:
        is_vision[0, first:last] = True
    hidden, cache = model.llm(model.embed(input_ids, torch.from_numpy(np.stack(answer.vision_tokens)), is_vision))
    stop = tokenizer.token_to_id(END_OF_TURN)
    while True:
        logits = model.llm.lm_head(hidden[0, -1])
        answer.logits.append(logits.numpy())
        answer.tokens.append(int(logits.argmax()))
        if answer.tokens[-1] == stop or len(answer.tokens) == limit:
            return answer
        position = torch.tensor([[len(prompt.input_ids) + len(answer.tokens) - 1]])
        mask = torch.ones(1, 1, 1, int(position) + 1, dtype=torch.bool)
        embeds = model.llm.model.embed_tokens(torch.tensor([answer.tokens[-1:]]))
        hidden, cache = model.llm(embeds, positions=position, mask=mask, past=cache)
