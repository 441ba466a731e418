"""Vision models and a text encoder in 8-bit and 4-bit weights with 8-bit activations: Pocketport beside its peers.

``python benchmarks/vision_weights.py [--only rec det minilm reference] [--rows PATTERN …] [--again] [--nncf PYTHON]
[--aimet PYTHON] [--work build/vision] [--json FILE]``

Everybody gets the same float graph and the same 32 samples; a row of ours says where it calibrates on the first 8 of them
alone. Two placements: ``products`` (integers are what Conv, Gemm and MatMul read, all else is float: x86; NNCF places for
CPUs by its own rules) and ``whole`` (every op that the tool can, as on an NPU). Rows are cached in
``<work>/<model>/<row>.json``, so that the benchmark can run piecewise; ``--again`` measures what matches once more. Seconds are
the tool's own, from reading the graph to writing the quantized one, without imports; CPU seconds are of all threads.
"""

import argparse
import fnmatch
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from full_size import run
from vision_models import MODELS, Model, prepare

from pocketport.commands.console import out, table
from pocketport.files import write_json

PRODUCTS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
PLACEMENTS = {"products": PRODUCTS, "whole": []}
OURS: dict[str, dict[str, Any]] = {
    "default": {"scaled": True, "rule": {}},
    "default, 8 samples": {"scaled": True, "rule": {}, "samples": 8},
    "centered values": {"scaled": True, "rule": {}, "conditioning": ["center_values"]},
    "centered values, GPTQ": {
        "scaled": True, "rule": {"algorithm": "gptq", "algorithm_options": {"sweeps": 2}}, "conditioning": ["center_values"],
    },
    "without scaled inputs": {"scaled": False, "rule": {}},
    "sequential GPTQ": {
        "scaled": True, "rule": {"algorithm": "gptq", "algorithm_options": {"propagation": 0.5, "sweeps": 2}},
    },
    "sequential MSE": {"scaled": True, "rule": {"algorithm": "sequential_mse"}},
    "AdaRound": {"scaled": True, "rule": {"algorithm": "adaround"}},
    "BRECQ": {"scaled": True, "rule": {"algorithm": "brecq"}},
}  # fmt: skip
ONNXRUNTIME = {
    "MinMax": {"method": "MinMax", "extra": {}},
    "Percentile 99.999": {"method": "Percentile", "extra": {}},
    "Entropy": {"method": "Entropy", "extra": {}},
}
AIMET = {
    "min_max": {"scheme": "min_max", "rounding": ""},
    "tf_enhanced": {"scheme": "tf_enhanced", "rounding": ""},
    "sequential MSE": {"scheme": "min_max", "rounding": "seq_mse"},
    "AdaRound": {"scheme": "min_max", "rounding": "adaround"},
}
NNCF = {
    "fast bias correction": {"transformer": False, "fast": True},
    "bias correction": {"transformer": False, "fast": False},
    "transformer": {"transformer": True, "fast": True},
}


@dataclass(frozen=True)
class Job:
    """One tool with one setting: `script` of ``peers/`` with these options, run by `interpreter`."""

    tool: str
    setting: str
    placement: str
    bits: int
    script: str
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Unique, and the file's name."""
        return f"w{self.bits}a8 {self.placement} {self.tool} {self.setting}".replace(" ", "-").replace("/", "-")


@dataclass(frozen=True)
class Row:
    """One measured quantization."""

    model: str
    bits: int
    placement: str
    tool: str
    setting: str
    sqnr_db: float
    score: float
    float_score: float
    seconds: float
    cpu_seconds: float


def jobs() -> list[Job]:
    """All of them, peers first."""
    found = []
    for bits in (8, 4):
        for placement, operators in PLACEMENTS.items():
            common = {"bits": bits, "operators": operators}
            for name, options in ONNXRUNTIME.items():
                found.append(Job("onnxruntime", name, placement, bits, "onnxruntime_static.py", {**common, **options}))
            for name, options in OURS.items():
                if options["scaled"] or operators:
                    found.append(
                        Job("pocketport", name, placement, bits, "pocketport_static.py", {**common, **options})
                    )
        for name, options in AIMET.items():
            found.append(Job("aimet-onnx", name, "whole", bits, "aimet_quantize.py", {"bits": bits, **options}))
    for name, options in NNCF.items():
        found.append(Job("nncf", name, "products", 8, "nncf_quantize.py", options))
    return found


def measure(job: Job, model: Model, interpreter: str, task_samples: int) -> Row:
    """Run the tool in a process of its own, then score what it wrote."""
    script = Path(__file__).parent / "peers" / job.script
    quantized, log = model.folder / f"{job.name}.onnx", model.folder / f"{job.name}.log"
    arguments = [script, model.float_graph, model.calibration, quantized, json.dumps(job.options)]
    run([interpreter, *map(str, arguments)], log)
    timing = json.loads(log.read_text(errors="replace").strip().splitlines()[-1])
    sqnr, score, floats = model.score(quantized, task_samples)
    for file in (quantized, quantized.with_suffix(".data")):
        file.unlink(missing_ok=True)
    return Row(
        model.name, job.bits, job.placement, job.tool, job.setting, round(sqnr, 2), round(score, 4), round(floats, 4),
        round(timing["seconds"], 2), round(timing["cpu_seconds"], 2),
    )  # fmt: skip


def main() -> None:
    """Measure what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rows", nargs="*", default=["*"], help="globs over row names: w8a8-products-onnxruntime-*")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--nncf", default="", help="interpreter of an environment that has NNCF")
    parser.add_argument("--aimet", default="", help="interpreter of an environment that has AIMET-ONNX")
    parser.add_argument("--task-samples", type=int, default=100)
    parser.add_argument("--work", type=Path, default=Path("build/vision"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    interpreters = {"nncf": options.nncf, "aimet-onnx": options.aimet}
    rows: list[Row] = []
    for name in options.only:
        model = prepare(name, options.work)
        for job in jobs():
            path = model.folder / f"{job.name}.json"
            interpreter = interpreters.get(job.tool, sys.executable)
            named = any(fnmatch.fnmatch(job.name, pattern) for pattern in options.rows)
            wanted = named and (options.again or not path.is_file())
            if wanted and interpreter:
                try:
                    row = measure(job, model, interpreter, options.task_samples)
                except RuntimeError as error:  # one tool's failure must not cost the others their rows
                    out.print(f"{name} {job.name}: {error}", markup=False, highlight=False)
                    continue
                write_json(path, asdict(row))
                out.print(f"{name} {job.name}: {row.sqnr_db} dB, {row.score}, {row.seconds} s")
            if path.is_file():
                rows.append(Row(**json.loads(path.read_text(encoding="utf-8"))))
    show(rows)
    if options.json:
        write_json(options.json, [asdict(row) for row in rows])


def show(rows: list[Row]) -> None:
    """One table a scheme and placement."""
    for bits in (8, 4):
        for placement in PLACEMENTS:
            shown = table(
                f"w{bits}a8, {placement}", "model", "tool", "setting", "SQNR", "score", "float", "seconds", "CPU",
                right=(3, 4, 5, 6, 7),
            )  # fmt: skip
            for row in (r for r in rows if (r.bits, r.placement) == (bits, placement)):
                shown.add_row(
                    row.model, row.tool, row.setting, f"{row.sqnr_db:.2f} dB", f"{row.score:.3f}", f"{row.float_score:.3f}",
                    f"{row.seconds:.1f}", f"{row.cpu_seconds:.1f}",
                )  # fmt: skip
            out.print(shown)


if __name__ == "__main__":
    main()
