"""Low-rank corrections beside 4-bit weights, and what the same bits give as smaller blocks: the reference model and MiniLM.

``python benchmarks/low_rank.py [--model reference minilm] [--docs docs/quantization.md]``

All linear layers of the language model (of MiniLM: all) as x86 takes them, float activations, 32 samples calibrate. The
pivots run in onnxruntime: SQNR to float of the prefill's logits over 48 images, or of the sentence embeddings of 24 texts,
that calibration does not see.
"""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from docs_section import replace_section
from numpy.typing import NDArray
from palettes import CALIBRATION_SAMPLES, COMPONENTS, OUTPUT
from real_models import REQUESTS

from pocketport.calibration.capture import calibrate
from pocketport.calibration.metrics import sqnr_db
from pocketport.commands.console import out, table
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.ingest import REFERENCE, ingest
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.plan import Plan, TensorKind, make_plan
from pocketport.compress.recipe import Recipe, Rule
from pocketport.data import load_data
from pocketport.request import Request
from pocketport.targets.contract import Target
from pocketport.targets.registry import backend_for

FORMATS = (
    ("w4cfp32", 0), ("w4cfp32", 2), ("w4cfp32", 4), ("w4cfp32", 8), ("w4cfp32", 16), ("w4b64fp32", 0), ("w4b32fp32", 0), ("w4b32fp32", 4),
    ("w4b16fp32", 0),
)  # fmt: skip
ALGORITHMS = ("mse", "gptq")
HELD_OUT = 48  # images of the reference, by another seed than calibration's
TARGET = Target.parse("x86/generic")


@dataclass(frozen=True)
class Row:
    """One format of one model: bits of a weight with all that belongs to it, and SQNR by algorithm."""

    model: str
    scheme: str
    rank: int
    bits: float
    sqnr_db: Mapping[str, float]


def plan_of(bundle: ModelBundle, name: str, scheme: str, rank: int, algorithm: str) -> Plan:
    """Of the linear layers; everything else is float."""
    rules = [Rule(scheme="float")]
    rules += [
        Rule(component=c, op=op, scheme=scheme, algorithm=algorithm, low_rank=rank)  # type: ignore[arg-type]
        for c in COMPONENTS[name] for op in ("Gemm", "MatMul")
    ]  # fmt: skip
    return make_plan(bundle, Recipe(name="low rank", rules=rules), str(TARGET), backend_for(TARGET).legality(TARGET))


def outputs(bundle: ModelBundle, name: str, feeds: list[Mapping[str, NDArray[np.generic]]]) -> NDArray[np.float32]:
    """Of the first component, over all samples."""
    executor = OrtExecutor(bundle[COMPONENTS[name][0]].graph, optimize=True)
    return np.concatenate([np.ravel(executor.run(f)[OUTPUT[name]]) for f in feeds])


def measure(name: str, folder: Path) -> list[Row]:
    """All formats of one model on the same statistics."""
    request = Request(source=REFERENCE) if name == REFERENCE else REQUESTS[name](folder)
    request = request.model_copy(update={"calibration_samples": CALIBRATION_SAMPLES})
    bundle = ingest(request.source, shapes=request.shapes)
    data = load_data(bundle, request)
    hessians = plan_of(bundle, name, "w4cfp32", 1, "gptq").hessians()
    statistics = calibrate({c.name: c.graph for c in bundle}, data.calibration(), hessians=hessians)
    others = request.model_copy(update={"calibration_samples": HELD_OUT, "seed": request.seed + 1})
    held = load_data(bundle, others).calibration() if request.data is None else data.held_out()
    held_out = [feeds for component, feeds in held if component == COMPONENTS[name][0]]
    truth = outputs(bundle, name, held_out)
    rows = []
    for scheme, rank in FORMATS:
        found = {}
        for algorithm in ALGORITHMS:
            plan = plan_of(bundle, name, scheme, rank, algorithm)
            pivot, _ = apply_plan(bundle, plan, statistics)
            found[algorithm] = sqnr_db(truth, outputs(pivot, name, held_out))
        weights = [t for t in plan[COMPONENTS[name][0]].tensors if t.kind is TensorKind.WEIGHT and t.quantized]
        bits = 8 * sum(t.bytes_after for t in weights) / sum(t.elements for t in weights)
        rows.append(Row(name, scheme, rank, bits, found))
        out.print(
            f"{name} {scheme} rank {rank}: {bits:.2f} bits, " + ", ".join(f"{a} {d:.2f} dB" for a, d in found.items())
        )
    return rows


def markdown(rows: list[Row]) -> str:
    """The documented table: a row for each format, two columns for each model and algorithm."""
    models = list(dict.fromkeys(r.model for r in rows))
    head = "| weights | rank | " + " | ".join(f"{m}: bits | nearest | GPTQ" for m in models) + " |"
    lines = [head, "|---|---|" + "---|---|---|" * len(models)]
    for scheme, rank in FORMATS:
        cells = [next(r for r in rows if (r.model, r.scheme, r.rank) == (m, scheme, rank)) for m in models]
        figures = " | ".join(
            f"{r.bits:.2f} | " + " | ".join(f"{r.sqnr_db[a]:.1f} dB" for a in ALGORITHMS) for r in cells
        )
        lines.append(f"| `{scheme.removesuffix('fp32')}` | {rank or ''} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and put the table into the documentation where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=list(COMPONENTS), default=list(COMPONENTS))
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in options.model for row in measure(name, Path(folder))]
    shown = table(
        "4-bit weights, low-rank corrections", "model", "weights", "rank", "bits", "nearest", "GPTQ", right=(2, 3, 4, 5)
    )
    for r in rows:
        shown.add_row(
            r.model, r.scheme, str(r.rank or ""), f"{r.bits:.2f}", *(f"{r.sqnr_db[a]:.2f} dB" for a in ALGORITHMS)
        )
    out.print(shown)
    if options.docs:
        replace_section(options.docs, "low rank", markdown(rows))


if __name__ == "__main__":
    main()
