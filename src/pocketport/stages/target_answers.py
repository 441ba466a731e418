"""What a target's pivot loses as divergence of the answers about images, through all components."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.registry import chat_of, host_of
from pocketport.compress.mixed_precision.chain import Chain
from pocketport.compress.mixed_precision.linked_calls import PREFILL, linked_calls
from pocketport.compress.mixed_precision.next_token import Head, Quality
from pocketport.compress.mixed_precision.sensitivity import Errors, Rounder, Sensitivities
from pocketport.compress.mixed_precision.stream import GRADIENT
from pocketport.compress.torch_device import best_device
from pocketport.data import prompt_samples
from pocketport.errors import UsageError
from pocketport.files import write_json
from pocketport.stages.context import Context
from pocketport.stages.expected_answers import ExpectedAnswers
from pocketport.stages.image_sequences import MEASURED_IMAGES, Answers, ImageSequences
from pocketport.stages.ingest import load_bundle
from pocketport.stages.quantize import load_pivot
from pocketport.stages.searched import Losses
from pocketport.stages.weights import memory_limit
from pocketport.store import StageResult

ACTIVATION_SHARE = 0.15  # of the memory limit, for each component
CODE, PACKAGES = ("compress", "calibration"), ("torch", "numpy", "onnxruntime")


class AnswerDivergence:
    """An `Objective` (`search_target`).

    Args:
        context: whose request has the images, the reference model's own where it names none.
        bundled: the float graphs.
        samples: images that errors are taken from, None for as many as are calibrated on.
        measured: images that pivots are measured on, None for `MEASURED_IMAGES`.

    Raises:
        UsageError: there are no images, or one alone.
    """

    def __init__(
        self, context: Context, bundled: StageResult, samples: int | None = None, measured: int | None = None
    ) -> None:
        self._context, self._bundled = context, bundled
        self._bundle = load_bundle(bundled)
        self.samples, self.measured = self.data(
            samples or context.request.calibration_samples, measured or MEASURED_IMAGES
        )
        self.fingerprint = self.samples.fingerprint

    def data(self, count: int, measured: int, seed: int | None = None) -> tuple[Answers, Answers]:
        """So many images that errors are taken from, and those behind them, and behind calibration's, to measure on."""
        request = self._context.request
        start = max(count, request.calibration_samples)
        changes = {"calibration_samples": start + measured, "seed": request.seed if seed is None else seed}
        images = prompt_samples(self._bundle, request.model_copy(update=changes))
        if images is None or images.count < 2:
            raise UsageError(
                "there are no images to measure answers on", where="--data",
                fix="give a folder of images, or search with --objective outputs",
            )  # fmt: skip
        prompt = int(self._bundle.config["prompt"])
        answers = Answers(ImageSequences(images.samples, images.count, prompt, 0.0, images.origin, images.fingerprint))
        last = images.count - 1  # few images: one at least to measure on
        return answers.part(0, min(count, last)), answers.part(min(start, last), images.count)

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
            chain = Chain(self._bundle, linked_calls(self._bundle, prompts), head.hidden, activations, device)
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
        """What the whole pivot answers, beside the float graphs."""
        key = f"measure {pivot.digest[:8]}"
        self._context.progress.start(key, "measure the quantized model", None)

        def produce(directory: Path) -> None:
            write_json(directory / "quality.json", vars(self.expected(samples).compared(load_pivot(pivot), samples)))

        result = self._stage(key, {"pivot": pivot.digest, "data": samples.fingerprint}, produce)
        return Quality(**json.loads((result.path / "quality.json").read_text("utf-8")))

    def expected(self, samples: Answers) -> ExpectedAnswers:
        """What the float graphs answer, or the store's."""
        key = "answers"
        self._context.progress.start(key, "answers of the float model", samples.count)

        def produce(directory: Path) -> None:
            ExpectedAnswers.save(self._bundle, samples, directory, partial(self._context.progress.advance, key))

        result = self._stage(key, {"bundle": self._bundled.digest, "data": samples.fingerprint}, produce)
        return ExpectedAnswers.load(result.path)

    def _stage(self, key: str, inputs: Mapping[str, Any], produce: Callable[[Path], None]) -> StageResult:
        result = self._context.store.run(key.partition(" ")[0], inputs, produce, code=CODE, packages=PACKAGES)
        return self._context.record(key, result)


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
