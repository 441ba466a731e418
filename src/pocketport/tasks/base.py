"""A task scores a whole model end to end, as any set of executors runs it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pocketport.compress.executors.ort_executor import Executor


@dataclass(frozen=True)
class Answer:
    """What one sample gave. `score` in [0, 1]; texts are empty for tasks without text."""

    index: int
    score: float
    expected: str = ""
    text: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """A scored set of held-out samples."""

    @property
    def name(self) -> str:
        """The task's name on the command line."""
        ...

    @property
    def metric(self) -> str:
        """What the mean score is called: ``exact_match``, ``cosine``, …"""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the samples or the scoring change."""
        ...

    def __len__(self) -> int:
        """How many samples there are at most."""
        ...

    def evaluate(
        self, executors: Mapping[str, Executor], count: int, progress: Callable[[int], None] | None = None
    ) -> Sequence[Answer]:
        """Answers for the first `count` samples; `progress` is called with the number done."""
        ...


def mean_score(answers: Sequence[Answer]) -> float:
    """The mean score, as `TaskRecord.value`."""
    return sum(a.score for a in answers) / len(answers)


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance (Wagner and Fischer 1974), by rows."""
    previous = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        current = [i]
        for j, b in enumerate(second, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (a != b)))
        previous = current
    return previous[-1]


def character_error_rate(answers: Sequence[Answer]) -> float:
    """Edit distance over expected length, both summed over the samples."""
    errors = sum(edit_distance(a.expected, a.text) for a in answers)
    return errors / max(1, sum(len(a.expected) for a in answers))
