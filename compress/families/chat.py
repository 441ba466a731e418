"""The host side of every model that answers about an image: greedy decoding over any executors of its components."""

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from pocketport.compress.executors.ort_executor import Arrays, Executor
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.compress.families.decoder.session import DecoderSession
from pocketport.errors import UsageError

DECODER = ("embed", "prefill", "decode")
Span: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class ImagePrompt:
    """A prompt about an image, as the language model takes it.

    Attributes:
        input_ids: its tokens, T of them.
        spans: the half-open ranges of tokens that vision tokens replace.
        vision: the vision tokens of each span, [last − first, H].
        views: how many pictures the image became.
        positions: of the tokens, [T] or [3,T]; None: 0, 1, 2, ...
        extra: further inputs of ``prefill``, in its static shapes, a row for a token [S,…].
    """

    input_ids: list[int]
    spans: Sequence[Span]
    vision: Sequence[FloatArray]
    views: int
    positions: NDArray[np.integer[Any]] | None = None
    extra: Arrays = field(default_factory=dict)

    def place(self, embeds: FloatArray) -> None:
        """Write the vision tokens over those rows of left-padded embeddings [S,H] that stand for them."""
        padding = len(embeds) - len(self.input_ids)
        for (first, last), tokens in zip(self.spans, self.vision, strict=True):
            embeds[padding + first : padding + last] = tokens

    def followed_by(self, tokens: Sequence[int]) -> "ImagePrompt":
        """The prompt with an answer's tokens behind it."""
        positions = self.positions
        if positions is not None:
            behind = int(positions.max()) + 1 + np.arange(len(tokens))
            behind = np.broadcast_to(behind, (*positions.shape[:-1], len(tokens)))
            positions = np.concatenate([positions, behind], axis=-1)
        moved = {
            name: np.concatenate([rows[len(tokens) :], np.zeros_like(rows[: len(tokens)])])
            for name, rows in self.extra.items()
        }
        return replace(self, input_ids=[*self.input_ids, *tokens], positions=positions, extra=moved)


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


class ImageChat(ABC):
    """Runs the whole model: a family's `encode`, left-padded prefill, greedy decoding with the KV cache on the host.

    Families derive from it; their constructors take ``(executors, config, files)``, as `ChatFactory` says.

    Args:
        executors: one for each component; only their ``run(feeds)`` is used.
        settings: the bundle's ``config``; ``max_new_tokens`` is how long answers get unless told otherwise.
        host: what the host computes for the language model.
        tokenizer: the checkpoint's.
        stops: the tokens that end an answer, the usual one first.
    """

    def __init__(
        self,
        executors: Mapping[str, Executor],
        settings: Mapping[str, Any],
        host: DecoderHost,
        tokenizer: Tokenizer,
        stops: Sequence[int],
    ) -> None:
        self.executors = executors
        self.settings = settings
        self.host = host
        self.tokenizer = tokenizer
        self.stops = stops
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @abstractmethod
    def encode(self, image: Image.Image, question: str) -> ImagePrompt:
        """The prompt about an image; components on the way are run by `run`.

        Raises:
            InputError: the image does not fit the static shapes.
        """

    def over(self, executors: Mapping[str, Executor]) -> Self:
        """The same model on other executors."""
        other = copy(self)
        other.executors = executors
        return other

    @property
    def max_new_tokens(self) -> int:
        """How many tokens the cache has room for: prefill gives the first, each further one takes a column."""
        return self.host.cache - self.host.prompt + 1

    def read(
        self,
        image: Image.Image,
        question: str,
        max_new_tokens: int | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> Generation:
        """Answer `question` about `image` by greedy decoding.

        Args:
            image: of any size that the family cuts into views.
            question: about it.
            max_new_tokens: of the answer; None: as the bundle's configuration says.
            on_token: is called with every token as soon as it is there, the end of the turn included.

        Raises:
            UsageError: `max_new_tokens` exceeds the cache.
            InputError: the image or the prompt does not fit the static shapes.
        """
        return self._generate(image, question, max_new_tokens, None, on_token)

    def answer_tokens(self, answer: str) -> list[int]:
        """The tokens of `answer` and the end of the turn, as far as the cache has room."""
        return [*self.tokenizer.encode(answer, add_special_tokens=False).ids, self.stops[0]][: self.max_new_tokens]

    def force_tokens(self, image: Image.Image, question: str, tokens: Sequence[int]) -> Generation:
        """As `read`, but the answer is given as its tokens: each step is fed the next one (teacher forcing)."""
        return self._generate(image, question, len(tokens), tokens)

    def run(self, component: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run a component by the chat's clock."""
        start = time.perf_counter()
        results = self.executors[component].run(feeds)
        self._seconds[component] += time.perf_counter() - start
        return results

    def _generate(
        self,
        image: Image.Image,
        question: str,
        limit: int | None,
        forced: Sequence[int] | None,
        on_token: Callable[[int], None] | None = None,
    ) -> Generation:
        limit = min(self.max_new_tokens, int(self.settings["max_new_tokens"])) if limit is None else limit
        if not 1 <= limit <= self.max_new_tokens:
            raise UsageError(
                f"{limit} new tokens do not fit a cache of {self.host.cache} behind a prompt of {self.host.prompt}",
                where="max_new_tokens", fix=f"ask for 1 to {self.max_new_tokens}",
            )  # fmt: skip
        self._seconds = defaultdict(float)
        start = time.perf_counter()
        session = DecoderSession({name: _Timed(name, self.run) for name in DECODER}, self.host)
        prompt = self.encode(image, question)
        logits = self._prefill(session, prompt)
        first = time.perf_counter() - start
        tokens: list[int] = []
        while True:
            tokens.append(_next(logits, forced, len(tokens)))
            if on_token is not None:
                on_token(tokens[-1])
            if len(tokens) == limit or tokens[-1] in self.stops:
                break
            logits = session.step(tokens[-1])
        seconds = dict(self._seconds)
        seconds["host"] = time.perf_counter() - start - sum(seconds.values())
        end = next((index for index, token in enumerate(tokens) if token in self.stops), len(tokens))
        text = str(self.tokenizer.decode(tokens[:end], skip_special_tokens=True))
        return Generation(text, tokens, seconds, first, prompt.views, len(prompt.input_ids))

    def _prefill(self, session: DecoderSession, prompt: ImagePrompt) -> FloatArray:
        """Logits [1,V] of the last token; the session keeps the cache."""
        embeds = session.embed(prompt.input_ids)
        prompt.place(embeds)
        return session.start(embeds, len(prompt.input_ids), prompt.positions, prompt.extra)


ChatFactory: TypeAlias = Callable[[Mapping[str, Executor], Mapping[str, Any], Mapping[str, Path]], ImageChat]
"""Executors, the bundle's ``config`` and its files → chat."""


def _next(logits: FloatArray, forced: Sequence[int] | None, index: int) -> int:
    return int(logits[0].argmax()) if forced is None else forced[index]


@dataclass(frozen=True)
class _Timed:
    """One executor of the decoder, run by the chat's clock."""

    component: str
    run_timed: Callable[[str, Arrays], dict[str, NDArray[Any]]]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        return self.run_timed(self.component, feeds)


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
    chat: ImageChat, wanted: Callable[[str, int], bool] = lambda component, index: True
) -> tuple[ImageChat, list[Call]]:
    """A chat over the same executors, and the growing list of its calls in the order of execution.

    `wanted` chooses calls by component and by how many calls that component had before.
    """
    log: list[Call] = []
    return chat.over({name: _Recorder(name, executor, log, wanted) for name, executor in chat.executors.items()}), log


def chain_feeds(
    chat: ImageChat, samples: Iterable[tuple[Image.Image, str, str | None]], *, decode_steps: int = 4
) -> Iterator[tuple[str, Arrays]]:
    """Every component's feeds as the whole chain produces them, for calibrating.

    Args:
        chat: over the float graphs.
        samples: image, question, and the right answer, which is then forced; without one the model's own is used.
        decode_steps: how many decode steps of each answer are given, spread evenly over it.

    Yields:
        (component, feeds), in the order of execution; what is held in memory is one sample's.
    """
    for image, question, answer in samples:
        tokens = chat.read(image, question).token_ids if answer is None else chat.answer_tokens(answer)
        steps = len(tokens) - 1  # prefill gives the first token
        kept = {round(i) for i in np.linspace(0, steps - 1, min(decode_steps, steps))}

        def wanted(component: str, index: int, kept: set[int] = kept) -> bool:
            if component == "embed":  # the first embeds the prompt, the next the token of decode's first step
                return index == 0 or index - 1 in kept
            return component != "decode" or index in kept

        recording, log = recorded(chat, wanted)
        recording.force_tokens(image, question, tokens)
        yield from ((call.component, call.feeds) for call in log)
