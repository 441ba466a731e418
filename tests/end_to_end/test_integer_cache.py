"""The reference model to x86 with an integer cache: the answers are those of the functions, the document says it."""

import json
from pathlib import Path

import jsonschema
import pytest

from pocketport.compress.cache.integer_cache import key_ranges, with_integer_cache
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import load_recipe
from pocketport.debugging.opened import open_run
from pocketport.pipeline import run_until
from pocketport.report.document import finish_run
from pocketport.request import Request
from pocketport.run_document import json_schema
from pocketport.running import open_model
from pocketport.stages.calibrate import load_statistics
from pocketport.stages.context import Context
from pocketport.stages.ingest import load_bundle
from pocketport.stages.verify import load_answers
from pocketport.store import Store
from pocketport.targets.contract import Target
from pocketport.targets.registry import backend_for
from pocketport.tasks import choose_task

SAMPLES = 6
FLOAT_BYTES = 1_048_576
LEAST_PIVOT_DB = 30.0  # how faithfully an engine keeps our numbers


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "least_db"), [("int8", 278_528, 15), ("int4", 147_456, 10)])
def test_the_reference_on_x86(tmp_path: Path, name: str, size: int, least_db: float) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"cache: {name}", encoding="utf-8")
    request = Request(
        source="reference", targets=["x86"], recipe=str(recipe), calibration_samples=4, task_samples=SAMPLES
    )
    context = Context(request, Store(tmp_path / "store"), tmp_path / "out")
    context.out.mkdir()
    run = run_until(context, "profile")
    document = finish_run(run)
    jsonschema.validate(json.loads((context.out / "run.json").read_text()), json_schema())
    record = document.targets[0]
    assert record.status == "ok" and record.cache is not None and record.task is not None and record.profile is not None
    assert (record.cache.name, record.cache.bytes, record.cache.float_bytes) == (name, size, FLOAT_BYTES)
    assert "key-value cache" in (context.out / "report.html").read_text(encoding="utf-8")

    language = [c for c in record.components if c.name in ("prefill", "decode")]
    verified = [v for c in language for v in (c.verify, *c.verify_others) if v is not None]
    assert len(verified) >= 2 and min(v.pivot_db for v in verified) > LEAST_PIVOT_DB
    assert min(v.sqnr_db for v in verified) > least_db
    outputs = {v.name: v.dtype for v in load_bundle(run.conditioned)["decode"].graph.graph.outputs}
    assert set(verified[-1].outputs) == set(outputs), "compared as the float graph has them"

    # The same by functions: the float cache's pivot, then its graphs rewritten.
    assert run.calibrated is not None
    bundle, statistics = load_bundle(run.conditioned), load_statistics(run.calibrated)
    target = Target.parse("x86")
    plan = make_plan(bundle, load_recipe("default"), "x86", backend_for(target).legality(target))
    pivot, _ = apply_plan(bundle, plan, statistics)
    rewritten = with_integer_cache(pivot, key_ranges(statistics), int(name[-1]))
    reference = {component: OrtExecutor(rewritten[component].graph) for component in ("prefill", "decode")}
    task, ported = choose_task(bundle, request), load_answers(run.targets["x86"].stages["task"])
    with open_model(context.out) as model:
        again = task.evaluate(model.executors, 2)
        answers = task.evaluate({**model.executors, **reference}, SAMPLES)
    assert [a.text for a in again] == [a.text for a in ported[:2]]
    same = sum(a.text == b.text for a, b in zip(ported, answers, strict=True))
    assert same >= SAMPLES - 1, "engines add in other orders: a near tie may fall the other way"
    assert abs(record.task.value - record.task.float_value) <= 1 / SAMPLES

    opened = open_run(context, document, None).targets["x86"]
    assert opened.plan.cache is not None and opened.plan.cache.bytes_after == size
    assert {v.name: v.dtype for v in opened.pivot["decode"].graph.graph.outputs} == outputs
