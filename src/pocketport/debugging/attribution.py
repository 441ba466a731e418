"""The end-to-end loss by component: one component quantized at a time, and all but one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.sources.rendered_text import RenderedText
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Arrays, Executor, OrtExecutor
from pocketport.compress.families.registry import chat_of
from pocketport.tasks.base import Task, mean_score
from pocketport.tasks.read_text import HELD_OUT_SEED

LANGUAGE_COMPONENTS = ("prefill", "decode")


@dataclass(frozen=True)
class Outcome:
    """The whole model with some components quantized: task score, and relative noise of what comes out at its end."""

    score: float
    noise: float


@dataclass(frozen=True)
class Attribution:
    """What each component does to the whole.

    Attributes:
        samples: how many.
        metric: of the task's score.
        ends: the outputs whose noise is meant, ``component/output``.
        float_score: with nothing quantized.
        everything: with all components quantized.
        alone: by component, with that one quantized.
        all_but: by component, with that one float; empty where the model has one component.
    """

    samples: int
    metric: str
    ends: tuple[str, ...]
    float_score: float
    everything: Outcome
    alone: Mapping[str, Outcome]
    all_but: Mapping[str, Outcome]


class _Recorder:
    """An executor that remembers what came out of one output."""

    def __init__(self, executor: Executor, output: str) -> None:
        self._executor = executor
        self._output = output
        self.seen: list[NDArray[np.float64]] = []

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        results = self._executor.run(feeds)
        self.seen.append(np.asarray(results[self._output], np.float64).ravel())
        return results


class Chain:
    """The whole model on the reference executor, any of its components quantized.

    Args:
        bundle: float graphs.
        pivot: the same, quantized.
        task: that scores it.
        count: samples.
    """

    def __init__(self, bundle: ModelBundle, pivot: ModelBundle, task: Task, count: int) -> None:
        self._bundle = bundle
        self._task = task
        self._count = min(count, len(task))
        self._float: dict[str, Executor] = {c.name: OrtExecutor(c.graph) for c in bundle}
        self._quantized: dict[str, Executor] = {c.name: OrtExecutor(c.graph) for c in pivot}
        self._chat = chat_of(bundle)
        self.ends = self._ends()
        self._expected = self._outputs(self._float)

    def _ends(self) -> dict[str, str]:
        """Component → output, of what leaves the model."""
        if self._chat is not None:
            return dict.fromkeys((c for c in LANGUAGE_COMPONENTS if c in self._bundle.components), "logits")
        named = self._bundle.config.get("task_output")
        return {c.name: str(named or c.graph.graph.outputs[-1].name) for c in self._bundle}

    def score(self, quantized: frozenset[str]) -> float:
        """The task's score."""
        return mean_score(self._task.evaluate(self._mixed(quantized), self._count))

    def noise(self, quantized: frozenset[str]) -> float:
        """Energy of the ends' error over float's energy."""
        error = energy = 0.0
        for expected, got in zip(self._expected, self._outputs(self._mixed(quantized)), strict=True):
            error += float(np.square(got - expected).sum())
            energy += float(np.square(expected).sum())
        return error / energy if energy else 0.0

    def _mixed(self, quantized: frozenset[str]) -> dict[str, Executor]:
        return {name: (self._quantized if name in quantized else self._float)[name] for name in self._float}

    def _outputs(self, executors: Mapping[str, Executor]) -> list[NDArray[np.float64]]:
        """What the ends give on every sample. Answers are given, not generated, so that every step sees the same tokens."""
        recorders = {name: _Recorder(executors[name], output) for name, output in self.ends.items()}
        mixed = {**executors, **recorders}
        if self._chat is None:
            self._task.evaluate(mixed, self._count)
        else:
            chat = self._chat(mixed, self._bundle.config, self._bundle.files)
            texts = RenderedText(seed=HELD_OUT_SEED, fonts="held_out")
            for sample in (texts[i] for i in range(self._count)):
                chat.force_tokens(sample.image, sample.prompt, chat.answer_tokens(sample.answer))
        return [array for recorder in recorders.values() for array in recorder.seen]


def attribute(
    bundle: ModelBundle,
    pivot: ModelBundle,
    task: Task,
    count: int,
    progress: Callable[[int], None] | None = None,
) -> Attribution:
    """Run the whole model with each component quantized alone, and with all but each.

    Args:
        bundle: float graphs.
        pivot: the same, quantized.
        task: that scores it.
        count: samples.
        progress: called with the number of combinations done, of `combinations`.
    """
    chain = Chain(bundle, pivot, task, count)
    names = frozenset(bundle.components)
    outcomes: dict[frozenset[str], Outcome] = {}
    for done, quantized in enumerate(combinations(names), start=1):
        outcomes[quantized] = Outcome(chain.score(quantized), chain.noise(quantized))
        if progress:
            progress(done)
    return Attribution(
        samples=min(count, len(task)),
        metric=task.metric,
        ends=tuple(f"{name}/{output}" for name, output in chain.ends.items()),
        float_score=outcomes[frozenset()].score,
        everything=outcomes[names],
        alone={n: outcomes[frozenset({n})] for n in bundle.components},
        all_but={n: outcomes[names - {n}] for n in bundle.components} if len(names) > 1 else {},
    )


def combinations(names: frozenset[str]) -> list[frozenset[str]]:
    """Nothing, everything, each alone, all but each; none of them twice."""
    return list(dict.fromkeys(_combinations(names)))


def _combinations(names: frozenset[str]) -> Iterator[frozenset[str]]:
    yield frozenset()
    yield names
    for name in sorted(names):
        yield frozenset({name})
        yield names - {name}
