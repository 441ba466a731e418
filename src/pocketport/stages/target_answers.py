"""What a target's pivot loses as divergence of the answers about images, through all components."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.cache.float_cache import with_float_ends
from pocketport.compress.executors.ort_executor import Arrays, Executor, OrtExecutor
from pocketport.compress.families.chat import ImageChat
from pocketport.compress.families.registry import chat_of, host_of
from pocketport.compress.mixed_precision.chain import Chain
from pocketport.compress.mixed_precision.next_token import LOGITS, Head, Quality
from pocketport.compress.mixed_precision.recording import PREFILL, recorded
from pocketport.compress.mixed_precision.sensitivity import Errors, Rounder, Sensitivities
from pocketport.compress.mixed_precision.stream import GRADIENT
from pocketport.compress.torch_device import best_device
from pocketport.data import prompt_samples
from pocketport.errors import UsageError
from pocketport.files import write_json
from pocketport.stages.context import Context
from pocketport.stages.image_sequences import Answers, ImageSequences
from pocketport.stages.ingest import load_bundle
from pocketport.stages.quantize import load_pivot
from pocketport.stages.searched import Losses
from pocketport.stages.weights import memory_limit
from pocketport.store import StageResult

MEASURED = 96  # images, beside those of calibration: their answers are short
ACTIVATION_SHARE = 0.15  # of the memory limit, for each component
STEPS = (PREFILL, "decode")
CODE, PACKAGES = ("compress", "calibration"), ("torch", "numpy", "onnxruntime")


class AnswerDivergence:
    """An `Objective` (`search_target`).

    Args:
        context: whose request has the images, the reference model's own where it names none.
        bundled: the float graphs.
        samples: images that errors are taken from, None for as many as are calibrated on.
        measured: images that pivots are measured on, None for `MEASURED`.

    Raises:
        UsageError: there are no images, or one alone.
    """

    def __init__(
        self, context: Context, bundled: StageResult, samples: int | None = None, measured: int | None = None
    ) -> None:
        self._context, self._bundled = context, bundled
        self._bundle = load_bundle(bundled)
        self.samples, self.measured = self.data(samples or context.request.calibration_samples, measured or MEASURED)
        self.fingerprint = self.samples.fingerprint

    def data(self, count: int, measured: int, seed: int | None = None) -> tuple[Answers, Answers]:
        """So many images that errors are taken from, and those that pivots are measured on."""
        request = self._context.request
        images = prompt_samples(
            self._bundle,
            request.model_copy(
                update={"calibration_samples": count + measured, "seed": request.seed if seed is None else seed}
            ),
        )
        if images is None or images.count < 2:
            raise UsageError(
                "there are no images to measure answers on",
                where="--data",
                fix="give a folder of images, or search with --objective outputs",
            )
        answers = Answers(
            ImageSequences(
                images.samples, images.count, int(self._bundle.config["prompt"]), 0.0, images.origin, images.fingerprint
            )
        )
        cut = min(count, images.count - 1)
        return answers.part(0, cut), answers.part(cut, images.count)

    def losses(
        self, schemes: Mapping[str, Mapping[str, Sequence[str]]], rounder: Callable[[str], Rounder], scratch: Path,
        advance: Callable[[int], None],
    ) -> Losses:  # fmt: skip
        """See `Objective`."""
        device = best_device()
        head = Head(self._bundle[PREFILL].graph, device)
        budget = int(ACTIVATION_SHARE * memory_limit(self._context.request))
        opened: dict[str, Activations] = {}
        found: dict[str, Sensitivities] = {}
        with ExitStack() as stack:

            def activations(name: str) -> Activations:
                path = scratch.with_name(f"{scratch.name}-{name}")
                opened[name] = stack.enter_context(Activations(path, budget))
                return opened[name]

            prompts = partial(self.samples.prompts, self._bundle, host_of(self._bundle))
            chain = Chain(self._bundle, recorded(self._bundle, prompts), head.hidden, activations, device)
            for name in chain.streams:
                own = partial(_advance, advance, found, name)
                found[name] = Sensitivities(schemes.get(name, {}), rounder(name), chain.count, opened[name], own)
            chain.forward()
            self._into_head(chain, head, found[PREFILL])
            chain.backward(
                lambda name, node: found[name].wants(node),
                lambda name: found[name].visit,
                lambda name: found[name].finish,
            )
        return _by_key(found)

    def _into_head(self, chain: Chain, head: Head, found: Sensitivities) -> None:
        """Gradients of the hidden states; the vocabulary's projection is behind them and finished at once."""
        stream, generator = chain.streams[PREFILL], torch.Generator().manual_seed(self._context.request.seed)
        searched = found.wants(head.projection)
        for sample in range(stream.count):
            hidden = stream.activations.get(head.hidden, sample, stream.device)
            visit = partial(found.visit, sample, head.projection) if searched else None
            gradient = head.gradient(hidden, generator, stream.counting[sample], visit)
            stream.activations.put(GRADIENT + head.hidden, sample, gradient)
        if searched:
            found.finish_nodes([head.projection])

    def figures(self, pivot: StageResult) -> dict[str, float]:
        """The divergence on the measured images."""
        return self.quality(pivot, self.measured).figures

    def quality(self, pivot: StageResult, samples: Answers) -> Quality:
        """What the whole pivot answers, each token after the right ones, beside the float graphs."""
        key = f"measure {pivot.digest[:8]}"
        self._context.progress.start(key, "measure the quantized model", None)
        expected = Expected.load(self._expected(samples).path)

        def produce(directory: Path) -> None:
            write_json(directory / "quality.json", vars(self._compared(load_pivot(pivot), samples, expected)))

        inputs = {"pivot": pivot.digest, "data": samples.fingerprint}
        result = self._stage(key, inputs, produce)
        return Quality(**json.loads((result.path / "quality.json").read_text("utf-8")))

    def _compared(self, pivot: ModelBundle, samples: Answers, expected: "Expected") -> Quality:
        chat = _chat(pivot)
        sums: list[float] = []
        for (image, question, _), tokens, wanted in zip(
            samples.images.samples(), expected.tokens, expected.logits, strict=True
        ):
            found = torch.from_numpy(answer_logits(chat, image, question, tokens.tolist())).double().log_softmax(-1)
            known = torch.from_numpy(np.array(wanted)).double().log_softmax(-1)
            sums.append(float((known.exp() * (known - found)).sum()))
        counts = [len(tokens) for tokens in expected.tokens]
        return Quality(sum(sums) / sum(counts), sum(counts), None, sums, counts)

    def _expected(self, samples: Answers) -> StageResult:
        """The float graphs' logits, of answers that are not known of their own ones."""
        self._context.progress.start("answers", "answers of the float model", samples.count)

        def produce(directory: Path) -> None:
            chat, tokens, logits = _chat(self._bundle), list[list[int]](), list[NDArray[np.float32]]()
            for image, question, answer in samples.images.samples():
                own = chat.read(image, question).token_ids if answer is None else chat.answer_tokens(answer)
                tokens.append(own)
                logits.append(answer_logits(chat, image, question, own))
                self._context.progress.advance("answers", len(tokens))
            np.save(directory / "logits.npy", np.concatenate(logits))
            np.savez(directory / "tokens.npz", tokens=np.concatenate(tokens), counts=[len(own) for own in tokens])

        return self._stage("answers", {"bundle": self._bundled.digest, "data": samples.fingerprint}, produce)

    def _stage(self, key: str, inputs: Mapping[str, Any], produce: Callable[[Path], None]) -> StageResult:
        result = self._context.store.run(key.partition(" ")[0], inputs, produce, code=CODE, packages=PACKAGES)
        return self._context.record(key, result)


@dataclass(frozen=True)
class Expected:
    """Answers sample by sample: tokens [T], and the logits that each of them was chosen by, [T, V]."""

    tokens: list[NDArray[np.int64]]
    logits: list[NDArray[np.float32]]

    @classmethod
    def load(cls, folder: Path) -> "Expected":
        """What `AnswerDivergence` stored; logits stay on disk."""
        with np.load(folder / "tokens.npz") as stored:
            cuts = np.cumsum(stored["counts"])[:-1]
            tokens = np.split(stored["tokens"], cuts)
        return cls(tokens, np.split(np.load(folder / "logits.npy", mmap_mode="r"), cuts))


def answer_logits(chat: ImageChat, image: Image.Image, question: str, tokens: Sequence[int]) -> NDArray[np.float32]:
    """The logits of every token of an answer, each behind the right ones before it, [T, V]."""
    kept: list[NDArray[Any]] = []
    executors = {n: _Kept(e, kept) if n in STEPS else e for n, e in chat.executors.items()}
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


def _chat(bundle: ModelBundle) -> ImageChat:
    factory = chat_of(bundle)
    assert factory is not None
    executors = {component.name: OrtExecutor(with_float_ends(component.graph)) for component in bundle}
    return factory(executors, bundle.config, bundle.files)


def _advance(advance: Callable[[int], None], found: Mapping[str, Sensitivities], name: str, done: int) -> None:
    advance(done + sum(len(s.errors) for other, s in found.items() if other != name))


def _by_key(found: Mapping[str, Sensitivities]) -> Losses:
    errors: dict[str, dict[str, Errors]] = {}
    effects: dict[str, Tensor] = {}
    for name, own in found.items():
        errors |= {f"{name}/{weight}": one for weight, one in own.errors.items()}
        effects |= {f"{name}/{weight}": one for weight, one in own.effects.items()}
    return errors, effects


def answers_about_images(bundle: ModelBundle) -> bool:
    """Whether there are answers to measure."""
    return chat_of(bundle) is not None and PREFILL in {component.name for component in bundle}
