"""What every stage needs: the request, the store, and somewhere to report progress."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pocketport.request import Request
from pocketport.store import StageResult, Store


class Progress(Protocol):
    """Receives progress; the CLI draws bars, tests and the API may pass `SilentProgress`."""

    def start(self, key: str, description: str, total: int | None) -> None:
        """A piece of work begins."""
        ...

    def advance(self, key: str, done: int) -> None:
        """`done` of its total are finished."""
        ...

    def finish(self, key: str, note: str) -> None:
        """It ended; `note` is shown beside it."""
        ...


class SilentProgress:
    """Shows nothing."""

    def start(self, key: str, description: str, total: int | None) -> None:
        """Ignored."""

    def advance(self, key: str, done: int) -> None:
        """Ignored."""

    def finish(self, key: str, note: str) -> None:
        """Ignored."""


@dataclass
class Context:
    """One run in the making.

    Attributes:
        request: what was asked for.
        store: where stages leave their outputs.
        out: the run's directory.
        progress: see Progress.
        results: every stage result so far, for ``run.json``.
    """

    request: Request
    store: Store
    out: Path
    progress: Progress = field(default_factory=SilentProgress)
    results: dict[str, StageResult] = field(default_factory=dict)

    def record(self, name: str, result: StageResult) -> StageResult:
        """Remember a stage's result under a name that is unique in the run."""
        self.results[name] = result
        self.progress.finish(name, "from the cache" if result.cached else f"{result.seconds:.1f} s")
        return result
