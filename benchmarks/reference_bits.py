"""How low the reference model can go: exact match of the whole chain at fewer and fewer bits.

``python benchmarks/reference_bits.py [--samples 500] [--rows w4 w3 …] [--docs docs/quantization.md] [--json FILE]``

Weights of the language model are rounded layer by layer on images and text (`--format` on the command line), those of
vision and connector by the target road's plan, without any chip's limits; where the language model has integer
activations it goes by the plan too. Everything is executed by onnxruntime as the integers say (QDQ in float32), and scored
beside float on the same held-out images: other typefaces, other strings than calibration saw.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from docs_section import replace_section

from pocketport.calibration.capture import calibrate
from pocketport.commands.console import BarProgress, out, table
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.conditioning.condition import condition
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.ingest import REFERENCE, ingest
from pocketport.compress.mixed_precision.checkpoint import Dequantized, with_weights
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.legality import ActivationRule, Legality, WeightRule
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.compress.recipe import Recipe, Rule, load_recipe
from pocketport.data import load_data
from pocketport.files import write_json
from pocketport.request import Request
from pocketport.stages.context import Context
from pocketport.stages.weights import plan_formats, quantize_format
from pocketport.store import Store
from pocketport.tasks import choose_task
from pocketport.tasks.base import mean_score

VISION = ("vision", "connector")
LANGUAGE = ("prefill", "decode")
WEIGHT_DTYPES = {"8": "int8", "4": "int4"}


@dataclass(frozen=True)
class Setting:
    """One row: schemes of the vision side and of the language model, and how the latter's weights are rounded.

    Attributes:
        vision: scheme of ``vision`` and ``connector``.
        language: scheme of the language model.
        recipe: of the language model's weights where its activations stay float: a shipped one's name.
        careful: whether vision and connector go by the shipped recipe of that name.
    """

    vision: str
    language: str
    recipe: str = ""
    careful: bool = False


SETTINGS = {
    "vision-w8a16": Setting("w8a16", "float"),
    "vision-w8a8": Setting("w8a8", "float"),
    "vision-w8a8-careful": Setting("w8a8", "float", careful=True),
    "w8a8": Setting("w8a8", "w8a8"),
    "w4a16": Setting("w8a16", "w4b32a16"),
    "w4a8": Setting("w8a8", "w4b32a8"),
    "w4": Setting("w8a16", "w4b64fp16", "gptq"),
    "w4-vision-w8a8": Setting("w8a8", "w4b64fp16", "gptq"),
    "w4-vision-w8a8-careful": Setting("w8a8", "w4b64fp16", "gptq", careful=True),
    "w4-rtn": Setting("w8a16", "w4b64fp16", "rtn"),
    "w3": Setting("w8a16", "w3b64fp16", "gptq"),
    "w3-rtn": Setting("w8a16", "w3b64fp16", "rtn"),
    "w2": Setting("w8a16", "w2b32fp16", "gptq"),
    "w2-rtn": Setting("w8a16", "w2b32fp16", "rtn"),
}


def without_limits(bundle: ModelBundle) -> Legality:
    """What a chip would be that takes everything."""
    return Legality(
        tested_with="nothing",
        defaults=dict.fromkeys((c.name for c in bundle), "float"),
        activations={bits: ActivationRule(dtype=f"uint{bits}", symmetric=False) for bits in ("8", "16")},
        weights={
            bits: WeightRule(dtype=dtype, granularities=("t", "c", "b"), blocks=(32, 64))
            for bits, dtype in WEIGHT_DTYPES.items()
        },
        ops=frozenset(node.op_type for c in bundle for node in c.graph.graph),
        float_ops=frozenset({"Softmax"}),
    )


def quantized(setting: Setting, bundle: ModelBundle, request: Request, work: Path) -> ModelBundle:
    """The bundle under a setting."""
    schemes = {name: setting.vision for name in VISION}
    if not setting.recipe:
        schemes |= dict.fromkeys(LANGUAGE, setting.language)
    rules = [Rule(component=name, scheme=scheme) for name, scheme in schemes.items()]
    if setting.careful:
        careful = load_recipe("careful")
        bundle, _ = condition(bundle, careful.conditioning, lambda b: load_data(b, request).calibration(), chained=True)
        rules += careful.rules
    plan = make_plan(bundle, Recipe(name="bits", rules=rules), "none/none", without_limits(bundle))
    data = load_data(bundle, request)
    statistics = calibrate({c.name: c.graph for c in bundle}, data.calibration(), hessians=plan.hessians())
    pivot, _ = apply_plan(bundle, plan, statistics, samples=data.calibration)
    return with_weights(pivot, Dequantized(rounded_weights(setting, request, work))) if setting.recipe else pivot


def rounded_weights(setting: Setting, request: Request, work: Path) -> QuantizedWeights:
    """The language model's weights, rounded layer by layer."""
    recipe = work / "recipe.yaml"
    algorithm = setting.recipe
    recipe.write_text(json.dumps({"rules": [{"algorithm": algorithm, "scheme": setting.language}]}))
    asked = request.model_copy(update={"formats": ["gptq"], "recipe": str(recipe)})
    with BarProgress() as progress:
        context = Context(asked, Store(), work, progress)
        (job,) = plan_formats(asked)
        return QuantizedWeights(quantize_format(context, job).path)


def score(bundle: ModelBundle, request: Request, samples: int) -> float:
    """Exact match of the first held-out images."""
    task = choose_task(bundle, request)
    return mean_score(task.evaluate({c.name: OrtExecutor(c.graph) for c in bundle}, samples))


def markdown(rows: Mapping[str, float], baseline: float, samples: int) -> str:
    """The table for the docs."""
    lines = [
        f"Exact match on {samples} held-out images, float {100 * baseline:.1f} %.", "",
        "| language model | its weights rounded by | vision, connector | exact match | points lost |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, value in rows.items():
        one = SETTINGS[name]
        rounding = one.recipe or ("" if one.language == "float" else "the plan")
        lines.append(
            f"| {one.language} | {rounding} | {one.vision}{', careful' if one.careful else ''} | {100 * value:.1f} % | {100 * (baseline - value):+.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--calibration-samples", type=int, default=64)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    request = Request(source=REFERENCE, calibration_samples=options.calibration_samples)
    bundle = ingest(REFERENCE)
    baseline = score(bundle, request, options.samples)
    rows: dict[str, float] = {}
    shown = table(REFERENCE, "", "exact match", "points lost", right=(1, 2))
    shown.add_row("float", f"{100 * baseline:.1f} %", "")
    for name in options.rows:
        with tempfile.TemporaryDirectory() as work:
            rows[name] = score(quantized(SETTINGS[name], bundle, request, Path(work)), request, options.samples)
        shown.add_row(name, f"{100 * rows[name]:.1f} %", f"{100 * (baseline - rows[name]):+.1f}")
        out.print(f"{name}: {100 * rows[name]:.1f} %")
    out.print(shown)
    if options.json:
        entries = [{"row": name, **asdict(SETTINGS[name]), "exact_match": value} for name, value in rows.items()]
        write_json(options.json, {"float": baseline, "samples": options.samples, "rows": entries})
    if options.docs:
        replace_section(options.docs, "reference bits", markdown(rows, baseline, options.samples))


if __name__ == "__main__":
    main()
