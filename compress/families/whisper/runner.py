"""Sound to tokens over any executors of a Whisper's four components."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.executors.ort_executor import Arrays, Executor
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.compress.families.decoder.session import Observer
from pocketport.compress.families.whisper.host import WhisperHost, WhisperState
from pocketport.errors import UsageError


class WhisperRunner:
    """The encoder once, a left-padded prefill of the forced tokens, then token by token with the cache on the host.

    Args:
        executors: one for each of ``encoder``, ``embed``, ``prefill`` and ``decode``; only their ``run(feeds)`` is used.
        config: the bundle's ``config``.
        observe: called behind each run with component, feeds and results (the cache among the feeds changes later).
    """

    def __init__(
        self, executors: Mapping[str, Executor], config: Mapping[str, Any], observe: Observer | None = None
    ) -> None:
        self.host = WhisperHost.of(config)
        self._executors, self._observe = executors, observe
        self._stop = frozenset(config["stop_tokens"])

    @property
    def max_new_tokens(self) -> int:
        """How many tokens the cache has room for: prefill gives the first, each further one takes a column."""
        return self.host.cache - self.host.prompt + 1

    def transcribe(
        self,
        waveform: NDArray[Any],
        *,
        language: str | None = None,
        task: str | None = None,
        max_new_tokens: int | None = None,
    ) -> list[int]:
        """The tokens that greedy decoding gives for one chunk of sound, without timestamps, the stop token included.

        Args:
            waveform: one channel [n], floats, at the model's sampling rate; at most 30 s of the published models.
            language: ``en``, ``<|en|>``, …; None: what ``generation_config.json`` says, else the model listens for it.
            task: ``transcribe`` or ``translate``; None: what the file says, else ``transcribe``.
            max_new_tokens: at most so many; None: what the cache has room for.

        Raises:
            UsageError: the model lacks the language or the task, or so many tokens do not fit the cache.
            InputError: the sound is none that the model takes.
        """
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        if not 1 <= limit <= self.max_new_tokens:
            raise UsageError(
                f"{limit} new tokens do not fit a cache of {self.host.cache} behind a prompt of {self.host.prompt}",
                where="max_new_tokens",
                fix=f"ask for 1 to {self.max_new_tokens}",
            )
        generation = self.host.generation
        wanted = language or generation.language
        chosen = None if wanted is None else generation.language_id(wanted)
        cross = self._run("encoder", self.host.encoder_feeds(waveform))
        if chosen is None and generation.lang_to_id:
            chosen = self.host.heard_language(self._start([generation.decoder_start_token_id], cross)[0])
        logits, state = self._start(generation.prefix(chosen, task), cross)
        tokens = [self.host.choose(logits, first=True)]
        while len(tokens) < limit and tokens[-1] not in self._stop:
            tokens.append(self.host.choose(self._step(tokens[-1], state), first=False))
        return tokens

    def _start(self, tokens: Sequence[int], cross: Arrays) -> tuple[FloatArray, WhisperState]:
        """Logits [1,V] behind a prompt, and the state there."""
        embeds = self._run("embed", self.host.embed_feeds(tokens))["embeds"]
        feeds = self.host.prefill_feeds(np.asarray(embeds, np.float32), len(tokens), cross)
        results = self._run("prefill", feeds)
        return np.asarray(results["logits"]), self.host.started(results, len(tokens), cross)

    def _step(self, token: int, state: WhisperState) -> FloatArray:
        """Logits [1,V] behind one more token."""
        embeds = self._run("embed", self.host.embed_feeds([token], state.column - state.padding))["embeds"]
        results = self._run("decode", self.host.decode_feeds(np.asarray(embeds[-1:], np.float32), state))
        self.host.store(results, state)
        return np.asarray(results["logits"])

    def _run(self, component: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        results: dict[str, NDArray[Any]] = self._executors[component].run(feeds)
        if self._observe is not None:
            self._observe(component, feeds, results)
        return results


def calibration_arrays(
    executors: Mapping[str, Executor], config: Mapping[str, Any], waveforms: Sequence[NDArray[Any]], tokens: int = 16
) -> dict[str, NDArray[Any]]:
    """One array [n, ...] per input of the components, as calibration reads them from an ``.npz`` file.

    Of each sound: the encoder's input, the last prefill, and the last step of decoding at most `tokens` tokens.

    Raises:
        UsageError: an answer ended before its second token, so that decode was never run, or as `transcribe`.
        InputError: as `transcribe`.
    """
    rows: list[dict[str, NDArray[Any]]] = []
    for waveform in waveforms:
        row: dict[str, NDArray[Any]] = {}

        def keep(component: str, feeds: Arrays, results: Arrays, row: dict[str, NDArray[Any]] = row) -> None:
            row.update({name: np.array(array) for name, array in feeds.items()})

        WhisperRunner(executors, config, keep).transcribe(waveform, max_new_tokens=tokens)
        if "token_embeds" not in row:
            raise UsageError(
                "an answer ended with its first token", where="calibration", fix="use recordings with more speech"
            )
        rows.append(row)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
