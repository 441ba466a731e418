"""Agreement with the float model: the task of a model about which nothing else is known."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.executors.ort_executor import Executor
from pocketport.tasks.base import Answer


class Agreement:
    """Cosine between what a target and the float graphs compute, averaged over held-out samples.

    Args:
        float_executors: run the float graphs, by component.
        samples: held-out inputs: component and feeds.
        outputs: which output of each component is compared.
        fingerprint: of the data.
    """

    name = "agreement"
    metric = "cosine"

    def __init__(
        self,
        float_executors: Mapping[str, Executor],
        samples: Sequence[tuple[str, Mapping[str, NDArray[np.generic]]]],
        outputs: Mapping[str, str],
        fingerprint: str,
    ) -> None:
        self._float = float_executors
        self._samples = samples
        self._outputs = outputs
        self.fingerprint = f"{self.name}/{','.join(outputs.values())}/{fingerprint}"

    def __len__(self) -> int:
        return len(self._samples)

    @staticmethod
    def score(ours: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
        """How well one output, flattened, agrees with float's: 1 is equal."""
        norms = float(np.linalg.norm(ours) * np.linalg.norm(reference))
        return float(ours @ reference) / norms if norms else float(np.array_equal(ours, reference))

    def evaluate(
        self, executors: Mapping[str, Executor], count: int, progress: Callable[[int], None] | None = None
    ) -> Sequence[Answer]:
        """One score a sample."""
        return list(self._answers(executors, count, progress))

    def _answers(
        self, executors: Mapping[str, Executor], count: int, progress: Callable[[int], None] | None
    ) -> Iterator[Answer]:
        for index, (component, feeds) in enumerate(self._samples[:count]):
            ours, reference = (
                np.asarray(side[component].run(feeds)[self._outputs[component]], np.float64).ravel()
                for side in (executors, self._float)
            )
            yield Answer(index, self.score(ours, reference))
            if progress:
                progress(index + 1)
