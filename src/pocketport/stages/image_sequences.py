"""Calibration samples of images and text for weights: each whole prompt and its answer, as the language model sees them.

Text alone would show the layers none of the vision tokens that make up most of a multimodal prompt.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from pocketport.compress.blockwise.samples import ROW_WEIGHTS
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Arrays, Executor
from pocketport.compress.executors.torch_executor import TorchExecutor
from pocketport.compress.families.chat import ImagePrompt
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.compress.families.registry import chat_of
from pocketport.data import PromptSample, prompt_samples
from pocketport.errors import InputError, UsageError
from pocketport.request import Request

ROW_STEP = 32  # samples without padding to the full length have a multiple of it
MEASURED_IMAGES = 96  # that a search measures on, where nothing is said: their answers are short
DECODERS = ("prefill", "decode")  # they are what is quantized; all else runs in float to make their inputs


@dataclass(frozen=True)
class ImageSequences:
    """Calibration samples of images and text.

    Attributes:
        samples: makes them anew: image, question and, where it is known, the right answer.
        count: how many there are.
        length: rows of ``prefill`` (S).
        visual_weight: how much a vision token counts where a text token counts 1.
        origin: where they come from, for reports.
        data: changes when any sample changes.
        padded: whether every sample has S rows, rather than as few multiples of `ROW_STEP` as hold it.
    """

    samples: Callable[[], Iterator[PromptSample]]
    count: int
    length: int
    visual_weight: float
    origin: str
    data: str
    padded: bool = True

    @property
    def fingerprint(self) -> str:
        """Changes when any feed changes."""
        rows = f"{self.length} rows" if self.padded else f"multiples of {ROW_STEP} rows"
        return f"{self.data}/{rows}/vision {self.visual_weight:g}"

    @property
    def rows(self) -> int:
        """Rows of all samples together, padding included."""
        return self.count * self.length

    def part(self, start: int, stop: int) -> "ImageSequences":
        """Some of the samples."""
        data = f"{self.data}/{start}-{stop}"
        return replace(self, samples=lambda: islice(self.samples(), start, stop), count=stop - start, data=data)

    def feeds(self, bundle: ModelBundle, host: DecoderHost) -> Iterator[Arrays]:
        """The inputs of ``prefill`` for each sample and its ``row_weights`` [S], made when asked for.

        Raises:
            UsageError: the model does not answer about images.
            InputError: a prompt and its answer are longer than S.
        """
        return (feeds for _, feeds in self.prompts(bundle, host, _float_executors(bundle)))

    def prompts(
        self, bundle: ModelBundle, host: DecoderHost, executors: Mapping[str, Executor]
    ) -> Iterator[tuple[ImagePrompt, Arrays]]:
        """The prompts, each with its `feeds`; all components but `DECODERS` run on `executors`."""
        factory = chat_of(bundle)
        if factory is None:
            raise UsageError("it does not answer about images", where=bundle.name, fix="calibrate it with a text")
        chat = factory(executors, bundle.config, bundle.files)
        for index, (image, question, answer) in enumerate(self.samples()):
            prompt = chat.encode(image, question)
            if answer is not None:
                prompt = prompt.followed_by(chat.answer_tokens(answer))
            length = len(prompt.input_ids)
            if length > host.prompt:
                raise InputError(
                    f"prompt and answer take {length} tokens, a calibration sequence has {host.prompt}",
                    where=f"sample {index} of {self.origin}",
                    fix=f"give --sequence-length {length} or more, or smaller images",
                )
            rows = host.prompt if self.padded else min(host.prompt, -(-length // ROW_STEP) * ROW_STEP)
            embeds = np.array(
                executors["embed"].run({"input_ids": host.prompt_ids(prompt.input_ids)})["embeds"][-rows:]
            )
            prompt.place(embeds)
            yield (
                prompt,
                {
                    **replace(host, prompt=rows).prefill_feeds(embeds, length, prompt.positions),
                    **{name: array[-rows:] for name, array in prompt.extra.items()},
                    ROW_WEIGHTS: row_weights(prompt, rows, self.visual_weight),
                },
            )


@dataclass(frozen=True)
class Answers:
    """Prompts about images of which the predictions of the answer count, where it is known, else those of all text."""

    images: ImageSequences

    @property
    def count(self) -> int:
        """How many samples there are."""
        return self.images.count

    @property
    def fingerprint(self) -> str:
        """Changes when any feed changes."""
        return f"answers/{self.images.fingerprint}"

    def part(self, start: int, stop: int) -> "Answers":
        """Some of the samples."""
        return Answers(self.images.part(start, stop))

    def feeds(self, bundle: ModelBundle, host: DecoderHost) -> Iterator[Arrays]:
        """As `ImageSequences.feeds`."""
        return (feeds for _, feeds in self.prompts(bundle, host, _float_executors(bundle)))

    def prompts(
        self, bundle: ModelBundle, host: DecoderHost, executors: Mapping[str, Executor]
    ) -> Iterator[tuple[ImagePrompt, Arrays]]:
        """As `ImageSequences.prompts`."""
        factory = chat_of(bundle)
        assert factory is not None
        chat = factory({}, bundle.config, bundle.files)
        prompts = self.images.prompts(bundle, host, executors)
        for (_, _, answer), (prompt, feeds) in zip(self.images.samples(), prompts, strict=True):
            if answer is None:
                yield prompt, feeds
                continue
            rows = np.zeros_like(feeds[ROW_WEIGHTS])
            rows[-1 - len(chat.answer_tokens(answer)) : -1] = 1  # each row predicts the next one's token
            yield prompt, {**feeds, ROW_WEIGHTS: rows}


def images_of(bundle: ModelBundle, request: Request) -> Answers | None:
    """The request's images, as many as it calibrates on, with their answers; None where it has none.

    Raises:
        InputError: a file is not a readable image.
    """
    images = prompt_samples(bundle, request)
    if images is None:
        return None
    length = int(bundle.config["prompt"])
    return Answers(ImageSequences(images.samples, images.count, length, 0.0, images.origin, images.fingerprint))


def _float_executors(bundle: ModelBundle) -> dict[str, Executor]:
    """Of all that stands before the language model, weights read node by node."""
    return {c.name: TorchExecutor(c.graph) for c in bundle if c.name not in DECODERS}


def row_weights(prompt: ImagePrompt, rows: int, visual_weight: float) -> FloatArray:
    """How much each row of a left-padded prompt counts, [S]: padding 0, vision tokens `visual_weight`, text 1."""
    padding = rows - len(prompt.input_ids)
    weights = np.ones(rows, np.float32)
    weights[:padding] = 0
    for first, last in prompt.spans:
        weights[padding + first : padding + last] = visual_weight
    return weights
