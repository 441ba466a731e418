"""Where the time of a long run goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Timing:
    """Seconds by phase (``forward``, ``hessian``, ``factor``, ``solve``, ``write`` …), of the whole run and by segment."""

    def __init__(self) -> None:
        self.segments: dict[str, dict[str, float]] = {}
        self._name = ""

    def start(self, segment: str) -> None:
        """What follows belongs to this segment."""
        self._name = segment
        self.segments[segment] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.segments.setdefault(self._name, defaultdict(float))[name] += time.perf_counter() - start

    def to_json(self) -> dict[str, Any]:
        """Sums by phase, and the same by segment."""
        total: defaultdict[str, float] = defaultdict(float)
        for phases in self.segments.values():
            for name, seconds in phases.items():
                total[name] += seconds
        rounded = {s: {n: round(v, 3) for n, v in phases.items()} for s, phases in self.segments.items()}
        return {"seconds": {n: round(v, 3) for n, v in total.items()}, "segments": rounded}
