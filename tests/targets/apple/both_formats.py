"""One graph in both Apple formats, compiled and executed in a worker, beside onnxruntime."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pocketport.targets.contract import Artifact, CompileRequest, Target
from pocketport.workers import Worker

TARGET = Target("apple", "a17-pro")


@dataclass(frozen=True)
class Results:
    expected: dict[str, NDArray[np.generic]]
    found: dict[str, dict[str, NDArray[np.generic]]]
    artifacts: dict[str, Artifact]


def bench(label: str) -> Worker:
    """The worker that compiles and executes."""
    return Worker("pocketport.targets.conformance:Bench", "pocketport.targets.apple:backend", label=label)


def both_formats(worker: Worker, pivot: Path, outputs: list[str], feeds: dict[str, NDArray[np.generic]]) -> Results:
    """What `pivot`, which lies in a folder of its own, gives everywhere."""
    request = CompileRequest("main", pivot, TARGET, pivot.parent / "work", pivot.parent / "out")
    request.work.mkdir()
    request.out.mkdir()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(pivot), options)
    expected = dict(zip(outputs, session.run(outputs, feeds), strict=True))
    _, result = worker.call("build", request)
    found = {a.kind: worker.call("run_twice", a, request, feeds)[0] for a in result.artifacts}
    return Results(expected, found, {a.kind: a for a in result.artifacts})
