"""What every shipped recipe does to the reference model on every target and format: score, SQNR and bytes.

``python benchmarks/recipes.py [--recipe …] [--target …] [--format …] [--samples 32] [--docs docs/recipes.md]``

A target's pivot is executed by onnxruntime as it is, and so are the weights of a checkpoint format. The figures go into
``compress/recipes/evidence.json``, which is read when planning (others' entries stay), and with ``--docs`` into the page's tables.
"""

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

from docs_section import replace_section

from pocketport.commands.console import BarProgress, out
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.diagnosis.samples import least_db, output_noise
from pocketport.compress.evidence import EVIDENCE_FILE, Evidence, evidence_table, known_evidence, recipes_table
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.ingest import REFERENCE
from pocketport.compress.mixed_precision.checkpoint import Dequantized, with_weights
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.compress.recipe import SUFFIX, shipped_recipes
from pocketport.errors import InputError, UsageError
from pocketport.files import write_json
from pocketport.pipeline import run_until
from pocketport.request import Request
from pocketport.stages.context import Context
from pocketport.stages.held_out import collect_held_out, load_held_out
from pocketport.stages.ingest import ingest, load_bundle
from pocketport.stages.quantize import load_pivot, load_plan
from pocketport.stages.weights import plan_formats, quantize_format
from pocketport.store import StageResult, Store
from pocketport.tasks import choose_task
from pocketport.tasks.base import mean_score

TARGETS = ["qualcomm/sm8650", "apple/a17-pro", "mediatek/mt6989", "x86/generic"]
FORMATS = ["gguf:q4_k_m", "compressed-tensors"]
HOW = "onnxruntime, as planned"
FOLDER = Path(__file__).resolve().parents[1] / "compress" / "recipes"


def on_target(context: Context, recipe: str, target: str, samples: int) -> Evidence:
    """One recipe on one target."""
    try:
        run = run_until(context, "quantize")
    except (UsageError, InputError) as error:
        return Evidence(recipe=recipe, destination=target, model=REFERENCE, refused=error.why)
    (one,) = run.targets.values()
    assert run.held_out is not None
    size = sum(c.bytes_after for c in load_plan(one.stages["quantize"]))
    return measured(context, recipe, target, load_pivot(one.stages["quantize"]), size, samples, run.held_out)


def on_format(context: Context, recipe: str, form: str, samples: int) -> Evidence:
    """One recipe in one checkpoint format."""
    try:
        (job,) = plan_formats(context.request)
        weights = Dequantized(QuantizedWeights(quantize_format(context, job).path))
    except (UsageError, InputError) as error:
        return Evidence(recipe=recipe, destination=form, model=REFERENCE, refused=error.why)
    bundle = load_bundle(ingest(context))
    size = sum(plan.bytes_after for plan in job.plans)
    held_out = collect_held_out(context, ingest(context))
    return measured(context, recipe, form, with_weights(bundle, weights), size, samples, held_out)


def measured(
    context: Context,
    recipe: str,
    destination: str,
    quantized: ModelBundle,
    size: int,
    samples: int,
    held_out: StageResult,
) -> Evidence:
    """Score and SQNR of a quantized bundle beside float's; `held_out` is of the float bundle that it was made from."""
    bundle = load_bundle(ingest(context))
    task = choose_task(bundle, context.request)
    scores, noise = [], {}
    for graphs in (bundle, quantized):
        executors = {c.name: OrtExecutor(c.graph, optimize=graphs is bundle) for c in graphs}
        scores.append(mean_score(task.evaluate(executors, samples)))
        for name, executor in executors.items() if graphs is quantized else ():
            known = load_held_out(held_out, name)
            noise[name] = least_db(output_noise(known, [executor.run(f) for f in known.feeds]))
    return Evidence(
        recipe=recipe, destination=destination, model=REFERENCE, metric=task.metric, score=round(scores[1], 4),
        float_score=round(scores[0], 4), samples=samples, sqnr_db=round(min(noise.values()), 1), bytes=size, how=HOW,
    )  # fmt: skip


def save(found: Iterable[Evidence], path: Path) -> None:
    """Write the entries in a fixed order."""
    entries = [e.model_dump(exclude_defaults=True) for e in sorted(found, key=lambda e: (e.recipe, e.destination))]
    write_json(path, {"schema": "pocketport.evidence/1", "measured": entries})


def main() -> None:
    """Measure what was asked for, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", nargs="*", default=shipped_recipes())
    parser.add_argument("--target", nargs="*", default=TARGETS)
    parser.add_argument("--format", nargs="*", default=FORMATS)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--calibration-samples", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("out/recipes"))
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    found = {(e.recipe, e.destination): e for e in known_evidence() if e.recipe in shipped_recipes()}
    request = Request(source=REFERENCE, calibration_samples=options.calibration_samples)
    for recipe in options.recipe:
        for destination in (*options.target, *options.format):
            kind = "targets" if destination in options.target else "formats"
            folder = options.out / f"{recipe}-{destination.replace('/', '-').replace(':', '-')}"
            folder.mkdir(parents=True, exist_ok=True)
            # By a file of another name: what is known of the recipe must not stop measuring it again.
            copy = folder / f"{recipe}{SUFFIX}"
            shutil.copyfile(FOLDER / copy.name, copy)
            asked = request.model_copy(update={"recipe": str(copy), kind: [destination]})
            with BarProgress() as progress:
                context = Context(asked, Store(), folder, progress)
                measure = on_target if kind == "targets" else on_format
                found[recipe, destination] = measure(context, recipe, destination, options.samples)
            save(found.values(), FOLDER / EVIDENCE_FILE)
    known_evidence.cache_clear()
    out.print(evidence_table())
    if options.docs is not None:
        tables = f"{recipes_table()}\n{evidence_table()}"
        replace_section(options.docs, "measured", tables.removesuffix("\n"))


if __name__ == "__main__":
    main()
