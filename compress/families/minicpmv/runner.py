"""The host side of MiniCPM-V: from image and question to text, over any executors of the five components."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketport.compress.executor import Arrays, Executor
from pocketport.compress.families.decoder.host import MASKED, DecoderHost
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.compress.families.decoder.session import DecoderSession
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.prompt import (
    EncodedPrompt,
    decode_answer,
    encode_prompt,
    load_tokenizer,
    stop_tokens,
)
from pocketport.compress.families.minicpmv.slicing import to_patches
from pocketport.compress.families.minicpmv.versions import decoder_of, version_of
from pocketport.compress.families.minicpmv.views import connector_positions, views_of, vision_positions
from pocketport.errors import InputError, UsageError

DECODER = ("embed", "prefill", "decode")


@dataclass(frozen=True)
class Generation:
    """What one `read` gave.

    Attributes:
        text: the answer, up to the end of the turn.
        token_ids: the generated tokens, the end of the turn included.
        seconds: seconds inside each component, and ``host`` for everything between them.
        first_token_seconds: from the call to the first token.
        views: how many pictures the image became (overview and slices).
        prompt_tokens: length of the prompt, vision tokens included.
    """

    text: str
    token_ids: list[int]
    seconds: Mapping[str, float]
    first_token_seconds: float
    views: int
    prompt_tokens: int


class MultimodalRunner:
    """Runs the whole model: slicing, vision, left-padded prefill, greedy decoding with the KV cache on the host.

    Args:
        executors: one for each of ``vision``, ``connector``, ``embed``, ``prefill`` and ``decode``; only their
            ``run(feeds)`` is used.
        config: the bundle's ``config``.
        files: the bundle's files; ``tokenizer.json`` is read.

    Raises:
        InputError: the tokenizer is damaged, or not of this family.
    """

    def __init__(self, executors: Mapping[str, Executor], config: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        self.executors = executors
        self.settings = config
        self.files = files
        self.config = MiniCPMVConfig.model_validate(config["model"])
        self.patches, self.prompt, self.cache = (int(config[key]) for key in ("patches", "prompt", "cache"))
        self._template = version_of(self.config).template
        self._tokenizer = load_tokenizer(files["tokenizer.json"])
        self._stops = stop_tokens(self._tokenizer, self._template)
        if self._tokenizer.token_to_id(self._template.stops[0]) is None:
            raise InputError(
                f"it has no {self._template.stops[0]} token",
                where=str(files["tokenizer.json"]),
                fix="give the checkpoint's tokenizer",
            )
        self._seconds: defaultdict[str, float] = defaultdict(float)
        host = DecoderHost(decoder_of(self.config), self.prompt, self.cache)
        self._session = DecoderSession({name: _Timed(name, self._run) for name in DECODER}, host)

    @property
    def max_new_tokens(self) -> int:
        """How many tokens the cache has room for: prefill gives the first, each further one takes a column."""
        return self.cache - self.prompt + 1

    def read(self, image: Image.Image, question: str, max_new_tokens: int | None = None) -> Generation:
        """Answer `question` about `image` by greedy decoding.

        Raises:
            UsageError: `max_new_tokens` exceeds the cache.
            InputError: the image or the prompt does not fit the static shapes.
        """
        return self._generate(image, question, max_new_tokens, None)

    def answer_tokens(self, answer: str) -> list[int]:
        """The tokens of `answer` and the end of the turn, as far as the cache has room."""
        return [*self._tokenizer.encode(answer, add_special_tokens=False).ids, self._stops[0]][: self.max_new_tokens]

    def force_tokens(self, image: Image.Image, question: str, tokens: Sequence[int]) -> Generation:
        """As `read`, but the answer is given as its tokens: each step is fed the next one (teacher forcing)."""
        return self._generate(image, question, len(tokens), tokens)

    def _generate(
        self, image: Image.Image, question: str, limit: int | None, forced: Sequence[int] | None
    ) -> Generation:
        limit = min(self.max_new_tokens, int(self.settings["max_new_tokens"])) if limit is None else limit
        if not 1 <= limit <= self.max_new_tokens:
            raise UsageError(
                f"{limit} new tokens do not fit a cache of {self.cache} behind a prompt of {self.prompt}",
                where="max_new_tokens", fix=f"ask for 1 to {self.max_new_tokens}",
            )  # fmt: skip
        self._seconds.clear()
        start = time.perf_counter()
        vision, grid = self.encode_image(image)
        prompt = encode_prompt(
            self._tokenizer, question, query_num=self.config.query_num, grid=grid, template=self._template,
            image_id=0 if self.config.use_image_id else None,
        )  # fmt: skip
        logits = self._prefill(prompt, vision)
        first = time.perf_counter() - start
        tokens = [self._next(logits, forced, 0)]
        while len(tokens) < limit and tokens[-1] not in self._stops:
            logits = self._session.step(tokens[-1])
            tokens.append(self._next(logits, forced, len(tokens)))
        seconds = dict(self._seconds)
        seconds["host"] = time.perf_counter() - start - sum(seconds.values())
        text = decode_answer(self._tokenizer, tokens, self._template)
        return Generation(text, tokens, seconds, first, len(vision), len(prompt.input_ids))

    def _next(self, logits: FloatArray, forced: Sequence[int] | None, index: int) -> int:
        return int(logits[0].argmax()) if forced is None else forced[index]

    def _run(self, component: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        start = time.perf_counter()
        results = self.executors[component].run(feeds)
        self._seconds[component] += time.perf_counter() - start
        return results

    def encode_image(self, image: Image.Image) -> tuple[list[FloatArray], tuple[int, int] | None]:
        """Vision tokens [Q,H] of every view, overview first, and the grid (columns, rows) of the slices."""
        views, grid = views_of(image, self.config)
        return [self._encode_view(view) for view in views], grid

    def _encode_view(self, view: Image.Image) -> FloatArray:
        patch = self.config.vision_config.patch_size
        strip, target = to_patches(view, patch)
        count = target[0] * target[1]
        if count > self.patches:
            raise InputError(
                f"a view of {target[1]}×{target[0]} patches exceeds the {self.patches} that the graphs take",
                where="image", fix="use a less extreme aspect ratio",
            )  # fmt: skip
        bias = np.full((1, 1, self.patches), MASKED, np.float32)
        bias[..., :count] = 0
        features = self._run("vision", {
            "pixel_values": _padded(strip, self.patches * patch, axis=2)[None],
            **self._positions(vision_positions(target, self.config)),
            "attention_bias": bias,
        })["vision_features"]  # fmt: skip
        positions = self._positions(connector_positions(target, self.config))
        return self._run("connector", {"vision_features": features, **positions, "attention_bias": bias})[
            "vision_tokens"
        ]

    def _positions(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {name: _padded(array, self.patches, axis=0) for name, array in feeds.items()}

    def _prefill(self, prompt: EncodedPrompt, vision: Sequence[FloatArray]) -> FloatArray:
        """Logits [1,V] of the last token; the session keeps the cache."""
        length = len(prompt.input_ids)
        embeds = self._session.embed(prompt.input_ids)
        padding = self.prompt - length
        for (first, last), tokens in zip(prompt.spans, vision, strict=True):
            embeds[padding + first : padding + last] = tokens
        return self._session.start(embeds, length)


@dataclass(frozen=True)
class _Timed:
    """One executor of the decoder, run by the runner's clock."""

    component: str
    run_timed: Callable[[str, Arrays], dict[str, NDArray[Any]]]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        return self.run_timed(self.component, feeds)


def _padded(array: NDArray[Any], length: int, *, axis: int) -> NDArray[Any]:
    """Zeros behind `array` up to `length` along `axis`."""
    widths = [(0, length - array.shape[axis] if a == axis else 0) for a in range(array.ndim)]
    return np.pad(array, widths)


def meaningful_rows(component: str, feeds: Arrays) -> dict[str, tuple[int, int, int]]:
    """Where padding is excluded from what a component makes: output → (axis, first, last) of the rows that are used.

    Outputs that are not named are used whole.
    """
    if component == "vision":
        return {"vision_features": (0, 0, int((np.asarray(feeds["attention_bias"], np.float32) > MASKED / 2).sum()))}
    if component != "prefill":
        return {}
    bias = np.asarray(feeds["attention_bias"], np.float32)
    padding = int((bias[0, -1] < MASKED / 2).sum())  # the last token sees every other one
    layers = range(len(bias[0]))
    return {f"present_{kind}_{i}": (2, padding, bias.shape[1]) for i in layers for kind in ("key", "value")}


@dataclass(frozen=True)
class Call:
    """One run of one component: what went in, what came out."""

    component: str
    feeds: Arrays
    results: Arrays


class _Recorder:
    """Passes calls on and logs those that are wanted; feeds are copied, for the cache among them changes later."""

    def __init__(self, component: str, executor: Executor, log: list[Call], wanted: Callable[[str, int], bool]) -> None:
        self._component, self._executor, self._log, self._wanted = component, executor, log, wanted
        self._count = 0

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        wanted = self._wanted(self._component, self._count)
        self._count += 1
        if not wanted:
            return self._executor.run(feeds)
        copies = {name: np.array(array) for name, array in feeds.items()}
        results = self._executor.run(feeds)
        self._log.append(Call(self._component, copies, results))
        return results


def recorded(
    runner: MultimodalRunner, wanted: Callable[[str, int], bool] = lambda component, index: True
) -> tuple[MultimodalRunner, list[Call]]:
    """A runner over the same executors, and the growing list of its calls in the order of execution.

    `wanted` chooses calls by component and by how many calls that component had before.
    """
    log: list[Call] = []
    recorders = {name: _Recorder(name, executor, log, wanted) for name, executor in runner.executors.items()}
    return MultimodalRunner(recorders, runner.settings, runner.files), log


def chain_feeds(
    runner: MultimodalRunner, samples: Iterable[tuple[Image.Image, str, str | None]], *, decode_steps: int = 4
) -> Iterator[tuple[str, Arrays]]:
    """Every component's feeds as the whole chain produces them, for calibrating.

    Args:
        runner: over the float graphs.
        samples: image, question, and the right answer, which is then forced; without one the model's own is used.
        decode_steps: how many decode steps of each answer are given, spread evenly over it.

    Yields:
        (component, feeds), in the order of execution; what is held in memory is one sample's.
    """
    for image, question, answer in samples:
        tokens = runner.read(image, question).token_ids if answer is None else runner.answer_tokens(answer)
        steps = len(tokens) - 1  # prefill gives the first token
        kept = {round(i) for i in np.linspace(0, steps - 1, min(decode_steps, steps))}

        def wanted(component: str, index: int, kept: set[int] = kept) -> bool:
            if component == "embed":  # the first embeds the prompt, the next the token of decode's first step
                return index == 0 or index - 1 in kept
            return component != "decode" or index in kept

        recording, log = recorded(runner, wanted)
        recording.force_tokens(image, question, tokens)
        yield from ((call.component, call.feeds) for call in log)
