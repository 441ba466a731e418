"""The host's part of a decoder: rotary tables, attention bias, KV cache, and so the feeds of prefill and decode.

The prompt is left-padded: the last token is always the last row. Padding columns are never attended to, but for
each padding row by itself, so that no row of the softmax is empty. Before layers with linear attention, which mask
nothing, the embeddings of padding rows are zero, and stay so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.families.decoder.config import SLIDING, DecoderConfig
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.errors import InputError

COLUMNS = ("key_", "value_")  # states with a column a token
MASKED = -100.0  # added to scores that attention must not see: finite, so that it has an encoding
Rows: TypeAlias = Mapping[str, tuple[int, int, int]]
"""Output → (axis, first, last) of the rows that are used of it."""


@dataclass
class DecoderState:
    """One sequence on its way.

    Attributes:
        padding: columns at the left of the prompt that hold nothing.
        column: the next free column of the cache.
        offset: what is added to a token's distance from `padding` to give its position: 0 unless vision tokens take
            fewer positions than columns (multimodal rotary positions).
        cache: ``past_key_i`` and ``past_value_i``, float32 [1,kv,C,d], as decode takes them (integers and their ranges
            where the graphs have those, see `integer_cache`); of layers with linear attention ``past_conv_i`` and
            ``past_state_i``.
    """

    padding: int
    column: int
    offset: int = 0
    cache: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class DecoderHost:
    """What the host computes for the graphs of one decoder.

    Attributes:
        config: the decoder.
        prompt: tokens that prefill takes (S).
        cache: columns that decode reads (C).
    """

    config: DecoderConfig
    prompt: int
    cache: int

    def rope(self, positions: NDArray[np.integer[Any]]) -> dict[str, FloatArray]:
        """The rotary inputs of integer positions: cosines and signed sines, each [T,d].

        Args:
            positions: [T]; for multimodal rotary positions also [3,T].
        """
        feeds: dict[str, FloatArray] = {}
        for kind in self.config.kinds:
            prefix = self.config.rope_prefix(kind)
            if f"{prefix}rope_cos" not in feeds:
                cos, sin = self.config.rope_of(kind).tables(positions, self.cache)
                feeds |= {f"{prefix}rope_cos": cos, f"{prefix}rope_sin": sin}
        return feeds

    def bias(
        self, rows: NDArray[np.integer[Any]], columns: NDArray[np.integer[Any]], padding: int
    ) -> dict[str, FloatArray]:
        """The attention biases [1,rows,columns]: 0 where the token in a column may be seen from a row, else −100.

        Args:
            rows: the column of the cache in which each row's own token lies.
            columns: what each column of the bias stands for, as a column of the cache; −1: nothing yet.
            padding: columns below this hold nothing.
        """
        row, column = rows[:, None], columns[None]
        causal = (column <= row) & (column >= padding)
        feeds = {}
        for kind in self.config.kinds:
            allowed = causal
            if kind == SLIDING and self.config.sliding_window is not None:
                allowed = causal & (column > row - self.config.sliding_window)
            bias = np.where(allowed | (column == row), 0, MASKED).astype(np.float32)[None]
            feeds[f"{self.config.input_prefix(kind)}attention_bias"] = bias
        return feeds

    def padding(self, length: int) -> int:
        """Rows in front of a prompt of `length` tokens.

        Raises:
            InputError: it is empty, or longer than the graphs take.
        """
        if not 1 <= length <= self.prompt:
            raise InputError(
                f"the prompt has {length} tokens, the graphs take 1 to {self.prompt}",
                where="prompt",
                fix="shorten it, or build the bundle with a longer prompt",
            )
        return self.prompt - length

    def prompt_ids(self, tokens: Sequence[int]) -> NDArray[np.int32]:
        """`tokens` behind zeros, [S]: the input of ``embed``.

        Raises:
            InputError: there are none, or more than the graphs take, or one is not in the vocabulary.
        """
        padding = self.padding(len(tokens))
        if not 0 <= min(tokens) <= max(tokens) < self.config.vocab_size:
            raise InputError(
                f"it holds tokens outside the vocabulary of {self.config.vocab_size}",
                where="prompt",
                fix="use the model's own tokenizer",
            )
        ids = np.zeros(self.prompt, np.int32)
        ids[padding:] = tokens
        return ids

    def one_id(self, token: int) -> NDArray[np.int32]:
        """The input of ``embed`` for one token: the first row of its output is the token's, [S]."""
        ids = np.zeros(self.prompt, np.int32)
        ids[0] = token
        return ids

    def prefill_feeds(
        self, embeds: FloatArray, length: int, positions: NDArray[np.integer[Any]] | None = None
    ) -> dict[str, FloatArray]:
        """The inputs of ``prefill``.

        Args:
            embeds: [S,H], left-padded.
            length: how many rows at its end are meant.
            positions: of those, [length] or [3,length]; without it 0, 1, 2, ...
        """
        padding = self.prompt - length
        places = np.arange(length) if positions is None else positions
        before = np.zeros((*places.shape[:-1], padding), places.dtype)
        columns = np.arange(self.prompt)
        if self.config.delta is not None:
            embeds = np.concatenate([np.zeros_like(embeds[:padding]), embeds[padding:]])
        return {
            "inputs_embeds": embeds,
            **self.rope(np.concatenate([before, places], axis=-1)),
            **self.bias(columns, columns, padding),
        }

    def started(
        self, results: Mapping[str, NDArray[Any]], length: int, positions: NDArray[np.integer[Any]] | None = None
    ) -> DecoderState:
        """The state behind a prefill: its keys and values at the cache's first S columns.

        Args:
            results: what ``prefill`` gave.
            length: as in `prefill_feeds`.
            positions: as in `prefill_feeds`; the next token's position is one more than the largest.
        """
        padding = self.prompt - length
        offset = 0 if positions is None else int(positions.max()) + 1 - length
        state = DecoderState(padding, self.prompt, offset)
        for name, present in present_states(results):
            dtype = stored_dtype(present)
            if name.startswith(COLUMNS):
                past = np.zeros((*present.shape[:2], self.cache, present.shape[3]), dtype)
                past[:, :, padding : self.prompt] = present[:, :, padding:]
                present = past
            state.cache[f"past_{name}"] = np.array(present, dtype)
        return state

    def decode_feeds(self, embeds: FloatArray, state: DecoderState) -> dict[str, NDArray[Any]]:
        """The inputs of ``decode`` for the token whose embedding [1,H] this is, at the state's next column.

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
        columns[state.column :] = self.cache + 1  # nothing yet
        columns[-1] = state.column  # the token itself comes last
        position = np.array([state.column - state.padding + state.offset])
        return {
            "inputs_embeds": embeds,
            **self.rope(position),
            **self.bias(np.array([state.column]), columns, state.padding),
            **state.cache,
        }

    def store(self, results: Mapping[str, NDArray[Any]], state: DecoderState) -> None:
        """Write what ``decode`` gave into the cache: a column of keys and values, other states whole."""
        for name, present in present_states(results):
            past = state.cache[f"past_{name}"]
            if name.startswith(COLUMNS):
                past[:, :, state.column] = present[:, :, 0]
            else:
                past[:] = present
        state.column += 1


def present_states(results: Mapping[str, NDArray[Any]]) -> list[tuple[str, NDArray[Any]]]:
    """The states that a graph gave, ``present_`` taken off their names."""
    return [(name.removeprefix("present_"), v) for name, v in results.items() if name.startswith("present_")]


def stored_dtype(present: NDArray[Any]) -> np.dtype[Any]:
    """What a cache holds of a state that a graph gave: integers as they are, else float32."""
    return present.dtype if present.dtype.kind in "iu" else np.dtype(np.float32)


def prompt_rows(component: str, feeds: Mapping[str, NDArray[Any]], outputs: Iterable[str]) -> Rows:
    """Which rows of prefill's keys and values are a prompt's own: those behind the padding. Other components have none.

    A padding row is seen by itself alone, every other one by the row behind it too.
    """
    if component != "prefill":
        return {}
    bias = np.asarray(feeds["attention_bias"], np.float32)[0]
    padding = int((np.diagonal(bias, -1) < MASKED / 2).sum())
    return {name: (2, padding, len(bias)) for name in outputs if name.startswith(("present_key_", "present_value_"))}
