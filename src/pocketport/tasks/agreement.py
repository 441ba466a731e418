"""Agreement with the float model: the task of a model about which nothing else is known."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.executor import Executor
from pocketport.tasks.base import Answer


class Agreement:
    """Cosine between what a target and the float graph compute for one output, averaged over held-out samples.

    Args:
        float_executor: runs the float graph.
        feeds: held-out inputs of the only component, ``main``.
        output: which output is compared.
        fingerprint: of the data.
    """

    name = "agreement"
    metric = "cosine"

    def __init__(
        self,
        float_executor: Executor,
        feeds: Sequence[Mapping[str, NDArray[np.generic]]],
        output: str,
        fingerprint: str,
    ) -> None:
        self._float = float_executor
        self._feeds = feeds
        self._output = output
        self.fingerprint = f"{self.name}/{output}/{fingerprint}"

    def __len__(self) -> int:
        return len(self._feeds)

    @staticmethod
    def score(ours: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
        """How well one output, flattened, agrees with float's: 1 is equal."""
        norms = float(np.linalg.norm(ours) * np.linalg.norm(reference))
        return float(ours @ reference) / norms if norms else float(np.array_equal(ours, reference))

    def evaluate(
        self, executors: Mapping[str, Executor], count: int, progress: Callable[[int], None] | None = None
    ) -> Sequence[Answer]:
        """One score a sample."""
        return list(self._answers(executors["main"], count, progress))

    def _answers(self, executor: Executor, count: int, progress: Callable[[int], None] | None) -> Iterator[Answer]:
        for index, feeds in enumerate(self._feeds[:count]):
            ours = np.asarray(executor.run(feeds)[self._output], np.float64).ravel()
            reference = np.asarray(self._float.run(feeds)[self._output], np.float64).ravel()
            yield Answer(index, self.score(ours, reference))
            if progress:
                progress(index + 1)
