"""The models of `vision_weights.py`: float graphs, calibration data, and how a quantized graph is scored.

PP-OCRv4 recognition and detection and MiniLM, prepared and fed as `real_models.py` does it, and the vision tower of the
reference model. Everybody quantizes the same float graph, which our ingestion has already cleaned: shapes are static,
batch normalization is folded, GELU, hard swish and layer norms are single ops.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
from real_models import REQUESTS

from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.registry import family_named
from pocketport.compress.graph import save_graph
from pocketport.compress.ingest import ingest
from pocketport.data import load_data
from pocketport.request import Request
from pocketport.tasks import choose_task
from pocketport.tasks.base import Task, mean_score
from pocketport.tasks.ctc_recognition import CtcRecognition

SAMPLES = 32  # that calibrate
HELD_OUT = 24  # that SQNR is measured on
LINES = range(
    1000, 1096
)  # the same of recognition, where one character that flips is much: none that the task asks for
REFERENCE = "reference"
MODELS = (*REQUESTS, REFERENCE)
COMPONENT = {REFERENCE: "vision"}
OUTPUT = {"minilm": "sentence_embedding"}
OPSET = 21  # the newest that every peer reads; 16- and 4-bit types begin with it


@dataclass(frozen=True)
class Model:
    """One float graph on disk: ``float.onnx`` and ``calibration.npz``, one array [n, …] an input."""

    name: str
    folder: Path
    bundle: ModelBundle
    request: Request

    @property
    def component(self) -> str:
        """The bundle's component that is quantized."""
        return COMPONENT.get(self.name, "main")

    @property
    def float_graph(self) -> Path:
        """The file that everybody quantizes."""
        return self.folder / "float.onnx"

    @property
    def calibration(self) -> Path:
        """The data that everybody calibrates on."""
        return self.folder / "calibration.npz"

    def feeds(self, *, held_out: bool) -> list[Mapping[str, np.ndarray]]:
        """Inputs of the component, one mapping a sample."""
        data = load_data(self.bundle, self.request)
        return [v for c, v in (data.held_out() if held_out else data.calibration()) if c == self.component]

    def score(self, quantized: Path, task_samples: int) -> tuple[float, float, float]:
        """SQNR in dB over the held-out samples, task score, and float's task score on the same samples.

        The quantized graph runs without onnxruntime's rewrites: DequantizeLinear, float op, QuantizeLinear, as written.
        On a CPU without VNNI the fused u8·s8 kernels saturate, which would be held against whoever writes s8 weights.
        """
        pivot = OrtExecutor(quantized, threads=2)
        found = [self._used(feeds, pivot.run(feeds)) for feeds, _ in self._expected]
        count = min(task_samples, len(self._task))
        scores = mean_score(self._task.evaluate({**self._executors, self.component: pivot}, count))
        sqnr = sqnr_db(np.concatenate([wanted for _, wanted in self._expected]), np.concatenate(found))
        return sqnr, scores, self._float_score(count)

    @cached_property
    def _executors(self) -> dict[str, OrtExecutor]:
        return {c.name: OrtExecutor(c.graph, threads=2, optimize=True) for c in self.bundle}

    @cached_property
    def _task(self) -> Task:
        return choose_task(self.bundle, self.request)

    @cached_property
    def _expected(self) -> list[tuple[Mapping[str, np.ndarray], np.ndarray]]:
        """Held-out inputs, and what float makes of them."""
        reference = OrtExecutor(self.bundle[self.component].graph, threads=2)
        held_out = self.feeds(held_out=True)[:HELD_OUT]
        if isinstance(self._task, CtcRecognition):
            held_out = [self._task.feeds(index)[0] for index in LINES]
        return [(feeds, self._used(feeds, reference.run(feeds))) for feeds in held_out]

    def _float_score(self, count: int) -> float:
        """Of the first `count` samples; kept in a file, since it does not change."""
        file = self.folder / f"float-score-{count}.json"
        if not file.is_file():
            file.write_text(json.dumps(mean_score(self._task.evaluate(self._executors, count))))
        return float(json.loads(file.read_text()))

    def _used(self, feeds: Mapping[str, np.ndarray], results: Mapping[str, np.ndarray]) -> np.ndarray:
        """The output that SQNR is measured on, without padding, flat."""
        key = OUTPUT.get(self.name, next(iter(results)))
        family, value = family_named(self.bundle.family), np.asarray(results[key])
        cut = {} if family is None else family.meaningful_rows(self.component, feeds, results)
        axis, first, last = cut.get(key, (0, 0, len(value)))
        return value.take(range(first, last), axis=axis).ravel()


def prepare(name: str, work: Path) -> Model:
    """The model's folder below `work`, its files written unless they are there."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    request = Request(source=REFERENCE) if name == REFERENCE else REQUESTS[name](folder)
    request = request.model_copy(update={"calibration_samples": SAMPLES})
    model = Model(name, folder, ingest(request.source, shapes=request.shapes), request)
    if not model.float_graph.is_file():
        graph = model.bundle[model.component].graph
        graph.graph.opset_imports[""] = OPSET
        save_graph(graph, model.float_graph)
        stacked = _stack(model.feeds(held_out=False)[:SAMPLES], graph)
        np.savez(model.calibration, **stacked)
    return model


def _stack(feeds: Sequence[Mapping[str, np.ndarray]], graph: ir.Model) -> dict[str, np.ndarray]:
    names = [v.name or "" for v in graph.graph.inputs]
    return {name: np.stack([f[name] for f in feeds]) for name in names}
