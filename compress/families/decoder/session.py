"""One sequence through the executors of a decoder: prefill once, then token by token."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.executors.ort_executor import Arrays, Executor
from pocketport.compress.families.decoder.host import DecoderHost, DecoderState
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.errors import UsageError

Observer: TypeAlias = Callable[[str, Arrays, Arrays], None]


class DecoderSession:
    """Feeds ``embed``, ``prefill`` and ``decode`` and keeps the cache.

    Args:
        executors: one for each of those three; only their ``run(feeds)`` is used.
        host: what the host computes.
        observe: called behind each run with component, feeds and results. The cache among the feeds changes later.
    """

    def __init__(self, executors: Mapping[str, Executor], host: DecoderHost, observe: Observer | None = None) -> None:
        self.host = host
        self._executors = executors
        self._observe = observe
        self._state: DecoderState | None = None

    def embed(self, tokens: Sequence[int]) -> FloatArray:
        """Embeddings of a prompt [S,H], left-padded, writable.

        Raises:
            InputError: the prompt is empty or longer than S, or holds a token outside the vocabulary.
        """
        return np.array(self._run("embed", {"input_ids": self.host.prompt_ids(tokens)})["embeds"])

    def start(
        self,
        embeds: FloatArray,
        length: int,
        positions: NDArray[np.integer[Any]] | None = None,
        extra: Arrays | None = None,
    ) -> FloatArray:
        """Logits [1,V] behind a prompt.

        Args:
            embeds: [S,H], left-padded, vision tokens in their places.
            length: how many rows at its end are meant.
            positions: of those, [length] or [3,length]; without it 0, 1, 2, ...
            extra: further inputs of ``prefill``.
        """
        feeds = {**self.host.prefill_feeds(embeds, length, positions), **(extra or {})}
        results = self._run("prefill", feeds)
        self._state = self.host.started(results, length, positions)
        return np.asarray(results["logits"])

    def step(self, token: int) -> FloatArray:
        """Logits [1,V] behind one more token.

        Raises:
            UsageError: nothing was started.
            InputError: the cache is full.
        """
        if self._state is None:
            raise UsageError("no prompt was given yet", where="decoder session", fix="call start first")
        embeds = self._run("embed", {"input_ids": self.host.one_id(token)})["embeds"][:1]
        results = self._run("decode", self.host.decode_feeds(embeds, self._state))
        self.host.store(results, self._state)
        return np.asarray(results["logits"])

    def _run(self, component: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        results: dict[str, NDArray[Any]] = self._executors[component].run(feeds)
        if self._observe is not None:
            self._observe(component, feeds, results)
        return results
