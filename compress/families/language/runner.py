"""Text in tokens over any executors of a language model's three components."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pocketport.compress.executors.ort_executor import Arrays, Executor
from pocketport.compress.families.decoder.config import DecoderConfig
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.compress.families.decoder.session import DecoderSession, Observer
from pocketport.errors import UsageError


class LanguageRunner:
    """Left-padded prefill, then token by token with the KV cache on the host.

    Args:
        executors: one for each of ``embed``, ``prefill`` and ``decode``; only their ``run(feeds)`` is used.
        config: the bundle's ``config``.
        observe: called behind each run with component, feeds and results (the cache among the feeds changes later).
    """

    def __init__(
        self, executors: Mapping[str, Executor], config: Mapping[str, Any], observe: Observer | None = None
    ) -> None:
        self.executors, self.settings = executors, config
        self.host = DecoderHost(DecoderConfig.from_hf(config["model"]), int(config["prompt"]), int(config["cache"]))
        self._stop = frozenset(config["stop_tokens"])
        self._session = DecoderSession(executors, self.host, observe)

    @property
    def max_new_tokens(self) -> int:
        """How many tokens the cache has room for: prefill gives the first, each further one takes a column."""
        return self.host.cache - self.host.prompt + 1

    def generate(self, token_ids: Sequence[int], max_new_tokens: int | None = None) -> list[int]:
        """The tokens that greedy decoding puts behind `token_ids`, the stop token included.

        Raises:
            UsageError: `max_new_tokens` exceeds the cache.
            InputError: the prompt is empty, too long, or holds tokens that the model does not have.
        """
        limit = self._limit(self.max_new_tokens if max_new_tokens is None else max_new_tokens)
        logits = self._session.start(self._session.embed(token_ids), len(token_ids))
        tokens = [int(logits[0].argmax())]
        while len(tokens) < limit and tokens[-1] not in self._stop:
            tokens.append(int(self._session.step(tokens[-1])[0].argmax()))
        return tokens

    def logits(self, token_ids: Sequence[int], continuation: Sequence[int]) -> FloatArray:
        """What the model says before each token of a given continuation, [len(continuation), V].

        Raises:
            UsageError: the continuation is empty or exceeds the cache.
            InputError: as `generate`.
        """
        self._limit(len(continuation))
        rows = [self._session.start(self._session.embed(token_ids), len(token_ids))]
        rows.extend(self._session.step(token) for token in continuation[:-1])
        return np.concatenate(rows)

    def perplexity(self, token_ids: Sequence[int], continuation: Sequence[int]) -> float:
        """exp of the mean negative log-likelihood of `continuation` behind `token_ids`; errors as `logits`."""
        logits = self.logits(token_ids, continuation).astype(np.float64)
        peaks = logits.max(-1, keepdims=True)
        normalizers = peaks[:, 0] + np.log(np.exp(logits - peaks).sum(-1))
        return math.exp(float(np.mean(normalizers - logits[np.arange(len(continuation)), list(continuation)])))

    def _limit(self, count: int) -> int:
        if not 1 <= count <= self.max_new_tokens:
            raise UsageError(
                f"{count} new tokens do not fit a cache of {self.host.cache} behind a prompt of {self.host.prompt}",
                where="max_new_tokens",
                fix=f"ask for 1 to {self.max_new_tokens}",
            )
        return count


def chain_feeds(
    executors: Mapping[str, Executor],
    config: Mapping[str, Any],
    samples: Iterable[tuple[Sequence[int], Sequence[int]]],
    *,
    decode_steps: int = 4,
) -> Iterator[tuple[str, Arrays]]:
    """Every component's feeds as the whole chain produces them, for calibrating.

    Args:
        executors, config: as `LanguageRunner`; the executors are those of the float graphs.
        samples: tokens of a prompt, and of what is then forced behind it.
        decode_steps: how many decode steps of each sample are given, spread evenly over it.

    Yields:
        (component, feeds), in the order of execution; what is held in memory is one sample's.
    """
    for prompt, continuation in samples:
        steps = len(continuation) - 1  # prefill gives the first token
        kept = {round(i) for i in np.linspace(0, steps - 1, min(decode_steps, steps))}
        log: list[tuple[str, Arrays]] = []
        runner = LanguageRunner(executors, config, _keep(log, kept))
        runner.logits(prompt, continuation)
        yield from log


def _keep(log: list[tuple[str, Arrays]], kept: set[int]) -> Observer:
    """Puts copies of the wanted feeds into `log`: the first of embed and prefill, and the kept steps of decode."""
    counts = {"embed": 0, "prefill": 0, "decode": 0}
    wanted: Mapping[str, Callable[[int], bool]] = {
        "embed": lambda index: index == 0 or index - 1 in kept,
        "prefill": lambda index: True,
        "decode": lambda index: index in kept,
    }

    def observe(component: str, feeds: Arrays, results: Arrays) -> None:
        if wanted[component](counts[component]):
            log.append((component, {name: np.array(array) for name, array in feeds.items()}))
        counts[component] += 1

    return observe
