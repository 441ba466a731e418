"""A target's executors in one worker process, seen from the parent as ordinary executors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketport.targets.contract import Arrays, Artifact, Executor, Target
from pocketport.targets.registry import backend_for
from pocketport.workers import DEFAULT_LIMITS, Limits, Worker


class ExecutorHost:
    """Lives in the worker: opens every artifact once and runs the one that is named."""

    def __init__(self, target: Target, artifacts: Mapping[str, Artifact], pivots: Mapping[str, Path]) -> None:
        backend = backend_for(target)
        self._executors: dict[str, Executor] = {
            name: backend.execute(artifact, target, pivots[name]) for name, artifact in artifacts.items()
        }

    def run(self, component: str, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run one component."""
        return self._executors[component].run(feeds)

    def close(self) -> None:
        """Close every executor."""
        for executor in self._executors.values():
            executor.close()


@dataclass
class RemoteExecutor:
    """One component of an ExecutorHost."""

    worker: Worker
    component: str

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run in the worker process."""
        result: dict[str, NDArray[np.generic]] = self.worker.call("run", self.component, dict(feeds))
        return result

    def close(self) -> None:
        """The host closes all its executors together."""


@contextmanager
def remote_executors(
    target: Target,
    artifacts: Mapping[str, Artifact],
    pivots: Mapping[str, Path],
    *,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[dict[str, Executor]]:
    """Executors by component name, hosted in one worker process that ends with the block."""
    label = f"{target}: executing {', '.join(artifacts)}"
    with Worker(
        "pocketport.remote:ExecutorHost", target, dict(artifacts), dict(pivots), label=label, limits=limits
    ) as worker:
        yield {name: RemoteExecutor(worker, name) for name in artifacts}
        worker.call("close")
