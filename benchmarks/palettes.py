"""Palettes beside scales at about the same bytes, in 4, 3 and 2 bits: the reference model's language model, and MiniLM.

``python benchmarks/palettes.py [--model reference minilm] [--samples 100] [--docs docs/quantization.md] [--json FILE]``

All linear weights, each algorithm on the same statistics. The weights that the integers stand for go into the float graph,
which onnxruntime runs: SQNR to float over held-out samples (the reference model: of prefill's logits; MiniLM: of its
sentence embeddings), and the task's score (exact match over the whole chain; cosine to float).
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from docs_section import replace_section
from numpy.typing import NDArray
from real_models import REQUESTS

from pocketport.calibration.capture import calibrate
from pocketport.calibration.metrics import sqnr_db
from pocketport.calibration.statistics import SecondMoment, Statistics
from pocketport.commands.console import out, table
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.graph import constant
from pocketport.compress.ingest import REFERENCE, ingest
from pocketport.compress.mixed_precision.checkpoint import with_weights
from pocketport.compress.pivot.weights import quantize_weight
from pocketport.compress.planning.legality import Legality, PaletteRule, WeightRule
from pocketport.compress.planning.plan import Plan, TensorKind, TensorPlan, make_plan
from pocketport.compress.recipe import Recipe, Rule
from pocketport.data import load_data
from pocketport.files import write_json
from pocketport.request import Request
from pocketport.tasks import choose_task
from pocketport.tasks.base import mean_score

FORMATS = {4: ("p", "c", "p16", "b32", "p4"), 3: ("c", "p16", "b32", "p2"), 2: ("c", "p16", "b32", "p1")}
NEAREST = {"p": "kmeans"}  # the algorithm without propagation; of scales `mse`
COMPONENTS = {REFERENCE: ("prefill", "decode"), "minilm": ("main",)}
OUTPUT = {REFERENCE: "logits", "minilm": "sentence_embedding"}  # of the first of them
CALIBRATION_SAMPLES = 32
HELD_OUT = 24


@dataclass(frozen=True)
class Row:
    """What one format makes of one model: SQNR and score by algorithm, ``nearest`` and ``gptq``."""

    model: str
    scheme: str
    bits_per_weight: float
    sqnr_db: Mapping[str, float]
    score: Mapping[str, float]
    seconds: Mapping[str, float]


class Subject:
    """One model, calibrated once for all formats."""

    def __init__(self, name: str, folder: Path, samples: int) -> None:
        request = Request(source=REFERENCE) if name == REFERENCE else REQUESTS[name](folder)
        self.name = name
        self._samples = samples
        self._request = request.model_copy(update={"calibration_samples": CALIBRATION_SAMPLES})
        self.bundle = ingest(request.source, shapes=request.shapes)
        data = load_data(self.bundle, self._request)
        hessians = self.plan("w4cfp32", "gptq").hessians()
        self._statistics = calibrate({c.name: c.graph for c in self.bundle}, data.calibration(), hessians=hessians)
        self._held_out = [f for c, f in data.held_out() if c == COMPONENTS[name][0]][:HELD_OUT]
        self._floats = self._outputs(self.bundle)

    def plan(self, scheme: str, algorithm: str) -> Plan:
        """Of the linear weights, for a chip that takes everything."""
        rules = [Rule(component=c, op=op, scheme=scheme, algorithm=algorithm)
                 for c in COMPONENTS[self.name] for op in ("Gemm", "MatMul")]  # fmt: skip
        return make_plan(self.bundle, Recipe(name="palettes", rules=rules), "none/none", _without_limits(self.bundle))

    def row(self, scheme: str) -> Row:
        """Measure one format."""
        kind = scheme.removeprefix("w")[1]
        sqnr, score, seconds = {}, {}, {}
        for how, algorithm in (("nearest", NEAREST.get(kind, "mse")), ("gptq", "gptq")):
            plan = self.plan(scheme, algorithm)
            start = time.perf_counter()
            weights = _rounded(self.bundle, plan, self._statistics)
            seconds[how] = time.perf_counter() - start
            changed = with_weights(self.bundle, weights)
            sqnr[how] = sqnr_db(self._floats, self._outputs(changed))
            score[how] = self.score(changed)
        bits = [(8 * _size(t), t.elements) for t in _weights(plan)]
        return Row(self.name, scheme, sum(b for b, _ in bits) / sum(n for _, n in bits), sqnr, score, seconds)

    def score(self, bundle: ModelBundle) -> float:
        """Of the task, over the whole chain."""
        executors = {c.name: OrtExecutor(c.graph, optimize=True) for c in bundle}
        task = choose_task(self.bundle, self._request)
        return mean_score(task.evaluate(executors, min(self._samples, len(task))))

    def _outputs(self, bundle: ModelBundle) -> NDArray[np.float32]:
        executor = OrtExecutor(bundle[COMPONENTS[self.name][0]].graph, optimize=True)
        return np.concatenate([np.ravel(executor.run(feeds)[OUTPUT[self.name]]) for feeds in self._held_out])


def _without_limits(bundle: ModelBundle) -> Legality:
    return Legality(
        tested_with="nothing",
        defaults=dict.fromkeys((c.name for c in bundle), "float"),
        weights={
            str(bits): WeightRule(dtype=f"int{bits}", granularities=("t", "c", "b"), blocks=(32,)) for bits in FORMATS
        },
        palettes=PaletteRule(bits=tuple(FORMATS)),
    )


def _weights(plan: Plan) -> list[TensorPlan]:
    """Every weight once, whichever components have it."""
    found = {t.tensor: t for c in plan for t in c.tensors if t.kind is TensorKind.WEIGHT and t.quantized}
    return list(found.values())


def _size(tensor: TensorPlan) -> int:
    """Bytes on Apple's chips, where scales are float16 and symmetric integers have no zero points."""
    if tensor.granularity == "p":
        return tensor.bytes_after
    scales = (tensor.bytes_after - tensor.elements * tensor.bits // 8) * 8 // (32 + tensor.bits)
    return tensor.elements * tensor.bits // 8 + 2 * scales


def _rounded(bundle: ModelBundle, plan: Plan, statistics: Statistics) -> dict[str, torch.Tensor]:
    """The weights as floats, rounded on the statistics of all components that have them."""
    weights = {}
    for tensor in _weights(plan):
        users = [c.component for c in plan if any(t.tensor == tensor.tensor for t in c.tensors)]
        moments = (statistics.moments.get(f"{c}/{tensor.activation}") for c in users)
        moment = reduce(SecondMoment.merged, (m.mean() for m in moments if m is not None))
        real = np.asarray(constant(bundle[users[0]].graph.graph.initializers[tensor.tensor]), np.float32)
        done = quantize_weight(real, tensor, moment, None)
        weights[tensor.tensor] = torch.from_numpy(done.encoding.dequantize(done.integers))
    return weights


def markdown(rows: list[Row], floats: Mapping[str, float]) -> str:
    """The table for the docs: a line a format, for each model bits a weight, and SQNR and score by algorithm."""
    head = [f"{name} (float {score:.3f}): bits | nearest | GPTQ" for name, score in floats.items()]
    lines = [f"| weights | {' | '.join(head)} |", "|---|" + "---|---|---|" * len(floats)]
    found = {(row.model, row.scheme): row for row in rows}
    for scheme in dict.fromkeys(row.scheme for row in rows):
        cells = []
        for row in (found.get((name, scheme)) for name in floats):
            how = () if row is None else (f"{row.sqnr_db[k]:.1f} dB, {row.score[k]:.3f}" for k in ("nearest", "gptq"))
            cells += ["", "", ""] if row is None else [f"{row.bits_per_weight:.2f}", *how]
        lines.append(f"| `{scheme.removesuffix('fp32')}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="*", default=list(COMPONENTS), choices=list(COMPONENTS))
    parser.add_argument("--bits", nargs="*", type=int, default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    floats: dict[str, float] = {}
    for name in options.model:
        with tempfile.TemporaryDirectory() as folder:
            subject = Subject(name, Path(folder), options.samples)
            floats[name] = subject.score(subject.bundle)
            shown = table(f"{name}, float {floats[name]:.3f}", "weights", "bits", "nearest", "GPTQ", right=(1, 2, 3))
            for scheme in (f"w{bits}{kind}fp32" for bits in options.bits for kind in FORMATS[bits]):
                row = subject.row(scheme)
                cells = [f"{row.sqnr_db[k]:.1f} dB, {row.score[k]:.3f}, {row.seconds[k]:.1f} s" for k in row.sqnr_db]
                shown.add_row(scheme, f"{row.bits_per_weight:.2f}", *cells)
                out.print(f"{name} {scheme}: {row.bits_per_weight:.2f} bits, {'; '.join(cells)}")
                rows.append(row)
                if options.json:
                    write_json(options.json, {"float": floats, "rows": [asdict(row) for row in rows]})
        out.print(shown)
    if options.docs:
        replace_section(options.docs, "palettes", markdown(rows, floats))


if __name__ == "__main__":
    main()
