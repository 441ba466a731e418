"""What a target's pivot loses as divergence of the answers about images, through all components."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.registry import chat_of
from pocketport.compress.mixed_precision.linked_calls import PREFILL
from pocketport.compress.mixed_precision.next_token import Quality
from pocketport.compress.mixed_precision.sensitivity import Errors, Rounder, Sensitivities
from pocketport.compress.mixed_precision.summed_inputs import Sum
from pocketport.files import write_json
from pocketport.stages.answer_gradients import AnswerGradients, answers_of
from pocketport.stages.context import Context
from pocketport.stages.expected_answers import ExpectedAnswers
from pocketport.stages.image_sequences import MEASURED_IMAGES, Answers
from pocketport.stages.ingest import load_bundle
from pocketport.stages.quantize import load_pivot
from pocketport.stages.searched import Losses
from pocketport.store import StageResult

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
        answers = answers_of(self._bundle, request.model_copy(update=changes))
        last = answers.count - 1  # few images: one at least to measure on
        return answers.part(0, min(count, last)), answers.part(min(start, last), answers.count)

    def losses(
        self, schemes: Mapping[str, Mapping[str, Sequence[str]]], rounder: Callable[[str], Rounder], scratch: Path,
        advance: Callable[[int], None], sums: Mapping[str, Sequence[Sum]],
    ) -> Losses:  # fmt: skip
        """See `Objective`."""
        found: dict[str, Sensitivities] = {}

        def visitor(name: str, count: int, activations: Activations) -> Sensitivities:
            own = partial(_advance, advance, found, name)
            found[name] = Sensitivities(
                schemes.get(name, {}), rounder(name), count, activations, own, sums.get(name, ())
            )
            return found[name]

        AnswerGradients(self._bundle, self.samples, self._context.request).show(scratch, visitor)
        return _by_key(found)

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
