"""A float model's answers about images, token by token, and how far a quantized model's predictions of them diverge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.cache.float_cache import with_float_ends
from pocketport.compress.executors.ort_executor import Arrays, Executor, OrtExecutor
from pocketport.compress.families.chat import ImageChat
from pocketport.compress.families.registry import chat_of
from pocketport.compress.mixed_precision.next_token import LOGITS, Quality
from pocketport.compress.pivot.float_weights import with_float_weights
from pocketport.errors import UsageError
from pocketport.stages.image_sequences import DECODERS, Answers


@dataclass(frozen=True)
class ExpectedAnswers:
    """Sample by sample.

    Attributes:
        tokens: of each answer, int64 [T].
        logits: that each of them is predicted by, float32 [T, V].
    """

    tokens: Sequence[NDArray[np.int64]]
    logits: Sequence[NDArray[np.float32]]

    @classmethod
    def save(cls, bundle: ModelBundle, samples: Answers, folder: Path, advance: Callable[[int], None]) -> None:
        """Compute and store them: the right answers where they are known, else the model's own ones.

        Args:
            bundle: float graphs.
            samples: images and questions.
            folder: takes the files that `load` reads.
            advance: called with the number of samples done.
        """
        chat, tokens, logits = chat_over(bundle), list[list[int]](), list[NDArray[np.float32]]()
        for image, question, answer in samples.images.samples():
            own = chat.read(image, question).token_ids if answer is None else chat.answer_tokens(answer)
            tokens.append(own)
            logits.append(answer_logits(chat, image, question, own))
            advance(len(tokens))
        np.save(folder / "logits.npy", np.concatenate(logits))
        np.savez(folder / "tokens.npz", tokens=np.concatenate(tokens), counts=[len(own) for own in tokens])

    @classmethod
    def load(cls, folder: Path) -> "ExpectedAnswers":
        """What `save` wrote; logits stay on disk."""
        with np.load(folder / "tokens.npz") as stored:
            cuts = np.cumsum(stored["counts"])[:-1]
            tokens = np.split(stored["tokens"], cuts)
        return cls(tokens, np.split(np.load(folder / "logits.npy", mmap_mode="r"), cuts))

    def compared(self, bundle: ModelBundle, samples: Answers) -> Quality:
        """The divergence of a bundle's predictions of the same tokens, each behind the expected ones before it.

        Args:
            bundle: float graphs or pivots.
            samples: those that the answers are about.
        """
        chat, sums = chat_over(bundle), list[float]()
        for (image, question, _), tokens, logits in zip(
            samples.images.samples(), self.tokens, self.logits, strict=True
        ):
            found = torch.from_numpy(answer_logits(chat, image, question, tokens.tolist())).double().log_softmax(-1)
            expected = torch.from_numpy(np.array(logits)).double().log_softmax(-1)
            sums.append(float((expected.exp() * (expected - found)).sum()))
        counts = [len(tokens) for tokens in self.tokens]
        return Quality(sum(sums) / sum(counts), sum(counts), None, sums, counts)


def chat_over(bundle: ModelBundle) -> ImageChat:
    """The model in onnxruntime; integer caches are rounded inside its graphs.

    Raises:
        UsageError: it does not answer about images.
    """
    factory = chat_of(bundle)
    if factory is None:
        raise UsageError("it does not answer about images", where=bundle.name, fix="give a model that does")
    executors = {c.name: OrtExecutor(with_float_weights(with_float_ends(c.graph))) for c in bundle}
    return factory(executors, bundle.config, bundle.files)


def answer_logits(chat: ImageChat, image: Image.Image, question: str, tokens: Sequence[int]) -> NDArray[np.float32]:
    """The logits that every token of an answer is predicted by, each behind the given ones before it, [T, V]."""
    kept: list[NDArray[Any]] = []
    executors = {n: _Kept(e, kept) if n in DECODERS else e for n, e in chat.executors.items()}
    chat.over(executors).force_tokens(image, question, tokens)
    return np.concatenate(kept).astype(np.float32)


@dataclass(frozen=True)
class _Kept:
    """Passes calls on and keeps their logits."""

    executor: Executor
    kept: list[NDArray[Any]]

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        results = self.executor.run(feeds)
        self.kept.append(results[LOGITS])
        return results
