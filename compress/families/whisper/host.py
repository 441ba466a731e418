"""The host's part of a Whisper: sound to features, positions, attention bias, and the cache between calls.

Prompts are left-padded, as those of every decoder here: a padding row sees itself alone, and nothing else sees it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.families.decoder.host import MASKED, present_states, stored_dtype
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.compress.families.whisper.config import Generation, WhisperConfig
from pocketport.compress.families.whisper.features import LogMel
from pocketport.errors import InputError


@dataclass
class WhisperState:
    """One answer on its way.

    Attributes:
        padding: columns at the left of the prompt that hold nothing.
        column: the next free column of the cache.
        cross: `cross_key_i`, `cross_value_i`, as the encoder gave them.
        cache: `past_key_i`, `past_value_i` [1,heads,C,d], float32 (integers and their ranges where the graphs have
            those, see `integer_cache`).
    """

    padding: int
    column: int
    cross: Arrays
    cache: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class WhisperHost:
    """What the host computes for the graphs of one bundle.

    Attributes:
        config: of the model.
        audio: from sound to features.
        generation: the tokens that answers begin with.
        prompt: tokens that prefill takes (S).
        cache: columns that decode reads (C).
    """

    config: WhisperConfig
    audio: LogMel
    generation: Generation
    prompt: int
    cache: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "WhisperHost":
        """The host of a bundle with this ``config``."""
        return cls(
            WhisperConfig.from_hf(settings["model"]), LogMel.from_hf(settings["audio"]),
            Generation.model_validate(settings["generation"]), int(settings["prompt"]), int(settings["cache"]),
        )  # fmt: skip

    def encoder_feeds(self, waveform: NDArray[Any]) -> dict[str, FloatArray]:
        """The input of ``encoder`` for one channel of sound [n]; errors as `LogMel.apply`."""
        return {"input_features": self.audio.apply(waveform)}

    def embed_feeds(self, tokens: Sequence[int], first: int = 0) -> dict[str, NDArray[np.int32]]:
        """The inputs of ``embed`` for tokens that take the positions from `first` on; they lie at the right.

        Raises:
            InputError: there are none, or more than the graphs take, or one is not in the vocabulary.
        """
        if not 1 <= len(tokens) <= self.prompt:
            raise InputError(
                f"the prompt has {len(tokens)} tokens, the graphs take 1 to {self.prompt}",
                where="prompt",
                fix="shorten it, or build the bundle with a longer prompt",
            )
        if not 0 <= min(tokens) <= max(tokens) < self.config.vocab_size:
            raise InputError(
                f"it holds tokens outside the vocabulary of {self.config.vocab_size}",
                where="prompt",
                fix="use the model's own tokenizer",
            )
        ids, positions = np.zeros((2, self.prompt), np.int32)
        ids[-len(tokens) :] = tokens
        positions[-len(tokens) :] = first + np.arange(len(tokens))
        return {"input_ids": ids, "position_ids": positions}

    def prefill_feeds(self, embeds: FloatArray, length: int, cross: Arrays) -> dict[str, NDArray[Any]]:
        """The inputs of ``prefill``.

        Args:
            embeds: [S,D].
            length: how many rows at its end are meant.
            cross: `cross_key_i`, `cross_value_i` of ``encoder``; other arrays are left alone.
        """
        columns = np.arange(self.prompt)
        row, column = columns[:, None], columns[None]
        seen = (column == row) | ((column < row) & (column >= self.prompt - length))
        return {"inputs_embeds": embeds, "attention_bias": _bias(seen), **_cross(cross)}

    def started(self, results: Arrays, length: int, cross: Arrays) -> WhisperState:
        """The state behind a prefill that gave `results`; the rest as in `prefill_feeds`."""
        state = WhisperState(self.prompt - length, self.prompt, _cross(cross))
        for name, present in present_states(results):
            past = np.zeros((*present.shape[:2], self.cache, present.shape[3]), stored_dtype(present))
            past[:, :, state.padding : self.prompt] = present[:, :, state.padding :]
            state.cache[f"past_{name}"] = past
        return state

    def decode_feeds(self, embeds: FloatArray, state: WhisperState) -> dict[str, NDArray[Any]]:
        """The inputs of ``decode`` for the token whose embedding [1,D] this is.

        Raises:
            InputError: the cache is full.
        """
        if state.column >= self.cache:
            raise InputError(
                f"the cache of {self.cache} columns is full",
                where="decode",
                fix="build the bundle with a longer cache",
            )
        columns = np.arange(self.cache + 1)
        seen = (columns >= state.padding) & ((columns < state.column) | (columns == self.cache))  # the token comes last
        return {"token_embeds": embeds, "cache_bias": _bias(seen[None]), **state.cache, **state.cross}

    def store(self, results: Arrays, state: WhisperState) -> None:
        """Write the column that ``decode`` gave into the cache."""
        for name, present in present_states(results):
            state.cache[f"past_{name}"][:, :, state.column] = present[:, :, 0]
        state.column += 1

    def choose(self, logits: FloatArray, *, first: bool) -> int:
        """The greedy token of logits [1,V], suppressed ones left out; `first`: it begins the answer."""
        allowed = np.array(logits[0], np.float32)
        never = [*self.generation.suppress_tokens, *(self.generation.begin_suppress_tokens if first else ())]
        allowed[[token for token in never if 0 <= token < len(allowed)]] = -np.inf
        return int(allowed.argmax())

    def heard_language(self, logits: FloatArray) -> int:
        """The likeliest language's token, by the logits [1,V] behind the start token alone."""
        tokens = list(self.generation.lang_to_id.values())
        return tokens[int(np.asarray(logits)[0, tokens].argmax())]


def _cross(results: Arrays) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in results.items() if name.startswith("cross_")}


def _bias(seen: NDArray[np.bool_]) -> FloatArray:
    """[1, rows, columns]: 0 where attention is allowed."""
    return np.where(seen, 0, MASKED).astype(np.float32)[None]
