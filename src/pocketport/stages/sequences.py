"""Calibration sequences for weights: token sequences of one length, through the embedding, as prefill takes them."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pocketport.calibration.sources.prose import prose
from pocketport.calibration.storage import read_npz
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.executors.torch_executor import TorchExecutor
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.errors import InputError, UsageError
from pocketport.files import sha256_file

Tokens: TypeAlias = NDArray[np.int32]


@dataclass(frozen=True)
class Sequences:
    """Calibration sequences.

    Attributes:
        tokens: int32 [n, S].
        origin: where they come from, for reports.
    """

    tokens: Tokens
    origin: str

    @property
    def rows(self) -> int:
        """Tokens of all sequences together."""
        return self.tokens.size

    @property
    def count(self) -> int:
        """How many sequences there are."""
        return len(self.tokens)

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens."""
        return hashlib.sha256(self.tokens.tobytes()).hexdigest()

    def part(self, start: int, stop: int) -> "Sequences":
        """Some of the sequences."""
        return replace(self, tokens=self.tokens[start:stop])

    def feeds(self, bundle: ModelBundle, host: DecoderHost) -> Iterator[Arrays]:
        """The inputs of ``prefill`` for each sequence, made when asked for."""
        embed = TorchExecutor(bundle["embed"].graph)
        for row in self.tokens:
            embeds = embed.run({"input_ids": row})["embeds"]
            yield host.prefill_feeds(np.asarray(embeds, np.float32), len(row))


def sequences_for(bundle: ModelBundle, data: str | None, count: int, length: int, seed: int) -> Sequences:
    """Sequences of `length` tokens, cut at random places.

    Args:
        bundle: its ``tokenizer.json`` is used.
        data: a text file, an ``.npz`` file with ``input_ids`` [n, S], or None for the prose that Python carries.
        count: how many.
        length: tokens of each.
        seed: of the places.

    Raises:
        UsageError: there is no such file, or the model has no tokenizer for text.
        InputError: the file does not hold enough.
    """
    if data is not None and data.endswith(".npz"):
        return _from_arrays(Path(data), count, length)
    text, origin = (prose(), "Python's language reference") if data is None else (_read(Path(data)), Path(data).name)
    if "tokenizer.json" not in bundle.files:
        raise UsageError(
            "the model has no tokenizer.json to make tokens with",
            where=str(bundle.name),
            fix="give --data an .npz file with input_ids",
        )
    tokenizer = Tokenizer.from_file(str(bundle.files["tokenizer.json"]))
    ids = np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    if len(ids) < length:
        raise InputError(
            f"it has {len(ids)} tokens, a sequence takes {length}", where=f"--data {origin}", fix="give a longer text"
        )
    starts = np.random.default_rng(seed).integers(0, len(ids) - length + 1, count)
    return Sequences(ids[starts[:, None] + np.arange(length)], f"{origin}, {len(ids):,} tokens")


def _read(path: Path) -> str:
    if not path.is_file():
        raise UsageError("no such file", where=f"--data {path}", fix="give a text file, or an .npz file with input_ids")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text: {error}", where=str(path), fix="convert it to UTF-8") from error


def _from_arrays(path: Path, count: int, length: int) -> Sequences:
    ids = read_npz(path).get("input_ids")
    if ids is None or ids.ndim != 2 or ids.shape[1] < length or len(ids) < count:
        shape = None if ids is None else ids.shape
        raise InputError(
            f"its input_ids have the shape {shape}, [{count}, {length}] or more is needed",
            where=str(path),
            fix="save an integer array [sequences, tokens]",
        )
    return Sequences(np.ascontiguousarray(ids[:count, :length], np.int32), f"{path.name} {sha256_file(path)[:12]}")


FeedsFactory: TypeAlias = Callable[[], Iterator[Arrays]]
