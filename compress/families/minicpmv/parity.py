"""The float graphs and the host side of a MiniCPM-V against the published model in other people's code.

The tower and the resampler are compared view by view (see `original`), the language model along the tokens that its
reference chooses, behind text and behind images: transformers' Llama, Qwen2 or Qwen3, and for MiniCPM its published
equations in torch. How images are cut and prompts are laid out is compared elsewhere (``benchmarks/parity.py``).
Large models are compared in part: one layer of the decoder (its layers are of one kind), first and last of the tower,
and the first words of the vocabulary, so that memory stays at about one layer.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pocketport.calibration.sources.rendered_text import SLICE_AREA, RenderedText
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.chat import ImagePrompt, recorded
from pocketport.compress.families.decoder.parity import Computed, Reference, compare_prompts, computed_by
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.compress.families.language.minicpm_reference import minicpm_reference
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.load import host_of, load_minicpmv
from pocketport.compress.families.minicpmv.original import OriginalVision
from pocketport.compress.families.minicpmv.published import language_part, part_of
from pocketport.compress.families.minicpmv.runner import MultimodalRunner
from pocketport.compress.families.minicpmv.versions import decoder_of
from pocketport.compress.families.minicpmv.views import views_of
from pocketport.compress.families.registry import Lengths, Pair
from pocketport.compress.families.transformers_reference import transformers_model
from pocketport.compress.graph import dimensions
from pocketport.compress.sources.source import Source

SMALL = 64 << 20  # parameters; a model of so many is compared whole
WORDS = 4096
SAMPLE_SEED = 7
SAMPLE_COUNT = 4
TEXT_TOKENS = 96
PART_TOKENS = 192  # beside one view's vision tokens: question and chat template, a token a byte
VISUAL = ("vision", "connector")


class Language(Protocol):
    """A language model over embeddings."""

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Embeddings [T,H]."""
        ...

    def compute(self, embeds: Tensor) -> Computed:
        """A whole sequence [T,H]."""
        ...


def compare(bundle: ModelBundle, source: Source) -> Iterator[Pair]:
    """(component, tensor, the original's numbers, the graphs' numbers) over a few rendered images and a random text.

    What is held in memory is the original's vision or language model, and one component.
    """
    images = SAMPLE_COUNT
    if sum(prod(dimensions(tensor)) for tensor in source.tensors.values()) > SMALL:
        source, images = part_of(source, WORDS), 1
        length = MiniCPMVConfig.of(source).query_num + PART_TOKENS
        lengths = Lengths(length, length + PART_TOKENS, int(bundle.config["patches"]))
        bundle = load_minicpmv(source, bundle.name, lengths)
    host = host_of(bundle)
    rng = np.random.default_rng(SAMPLE_SEED)
    text = rng.integers(0, host.config.vocab_size, min(TEXT_TOKENS, host.prompt)).tolist()
    prompts, originals = [ImagePrompt(text, [], [], 0)], [list[FloatArray]()]
    chat = MultimodalRunner({n: OrtExecutor(bundle[n].graph) for n in VISUAL}, bundle.config, bundle.files)
    original = OriginalVision.of(source)
    for image, question in rendered(chat.config, images):
        prompt, tokens = yield from _compare_views(chat, original, image, question)
        words = [token % host.config.vocab_size for token in prompt.input_ids]  # of a part of the vocabulary
        prompts.append(replace(prompt, input_ids=words))
        originals.append(tokens)
    del chat, original

    def references() -> Sequence[Reference]:
        language = original_language(source)
        return [_behind(language, *pair) for pair in zip(prompts, originals, strict=True)]

    yield from compare_prompts({c.name: c.graph for c in bundle}, host, prompts, references)


def rendered(config: MiniCPMVConfig, count: int) -> Iterator[tuple[Image.Image, str]]:
    """Images and questions, enlarged to where this model would cut them."""
    factor = config.slice_config.scale_resolution / SLICE_AREA**0.5
    for sample in RenderedText(SAMPLE_SEED, "held_out").take(count):
        width, height = (round(side * factor) for side in sample.image.size)
        yield sample.image.resize((width, height)), sample.prompt


def _compare_views(
    chat: MultimodalRunner, original: OriginalVision, image: Image.Image, question: str
) -> Generator[Pair, None, tuple[ImagePrompt, list[FloatArray]]]:
    """Every view of an image; returns the prompt about it, and the original's vision tokens [Q,H] of each view."""
    recording, log = recorded(chat)
    prompt = recording.encode(image, question)
    tokens = []
    outputs = ([call.results for call in log if call.component == name] for name in VISUAL)
    for view, vision, connector in zip(views_of(image, chat.config)[0], *outputs, strict=True):
        features, vision_tokens = original.encode(view)
        yield "vision", "vision_features", features, vision["vision_features"][: len(features)]
        yield "connector", "vision_tokens", vision_tokens, connector["vision_tokens"]
        tokens.append(vision_tokens)
    return prompt, tokens


@dataclass(frozen=True)
class _Transformers:
    """A causal language model of transformers; `scale`: MiniCPM-V multiplies its embeddings by it."""

    model: Any
    scale: float

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int]) -> Tensor:
        embeds: Tensor = self.model.get_input_embeddings()(torch.tensor(tokens)) * self.scale
        return embeds

    def compute(self, embeds: Tensor) -> Computed:
        return computed_by(self.model, inputs_embeds=embeds[None])


def original_language(source: Source) -> Language:
    """The language model of a checkpoint in its reference, float32.

    Raises:
        UsageError: transformers is needed and not installed.
        InputError: names do not match.
    """
    plain = language_part(source)
    if plain.config["model_type"] == "minicpm":
        return minicpm_reference(plain)
    scale = decoder_of(MiniCPMVConfig.of(source)).embedding_scale
    return _Transformers(transformers_model(plain, "AutoModelForCausalLM"), scale)


def _behind(language: Language, prompt: ImagePrompt, vision: Sequence[FloatArray]) -> Reference:
    """The reference for whatever begins with `prompt`, whose views became these tokens."""

    def compute(tokens: Sequence[int]) -> Computed:
        embeds = language.embed(tokens).clone()
        for (first, last), seen in zip(prompt.spans, vision, strict=True):
            embeds[first:last] = torch.from_numpy(seen)
        return language.compute(embeds)

    return compute
