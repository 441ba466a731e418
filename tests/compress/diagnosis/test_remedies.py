"""Remedies: only what the target takes, one rule a node, and what was kept holds when the recipe is applied whole."""

from pathlib import Path

import pytest
from roundings import Samples, as_proto, quantized, run
from small_models import block_bundle, legality, summed

from pocketport.calibration.capture import calibrate
from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.diagnosis.remedies import Cost, remedies
from pocketport.compress.diagnosis.repair import LEAST_GAIN_DB, Workbench, repair
from pocketport.compress.diagnosis.switches import Switch, switches_of
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import Recipe, with_rules


def switch_of(plan, tensor: str) -> Switch:
    return next(s for s in switches_of(plan["main"]) if any(t.tensor == tensor for t in s.tensors))


def named(found) -> list[str]:
    return [r.name for r in found]


def test_remedies_are_what_the_target_takes() -> None:
    _, _, plan, _ = quantized(block_bundle(), "w4ca8")
    weight, activation = switch_of(plan, "o_proj.weight"), switch_of(plan, "residual")
    found = remedies("main", weight, legality(), columns=32)
    assert {"algorithm mse", "algorithm rtn", "blocks of 16", "8-bit weight", "float"} <= set(named(found))
    assert "blocks of 32" not in named(found)  # that is the whole row
    assert "algorithm gptq" not in named(found)  # it has that
    assert "16-bit activation" in named(remedies("main", activation, legality()))
    narrow = legality(
        activations={"8": {"dtype": "uint8", "symmetric": False}}, float_bits=[16],
        weights={"4": {"dtype": "int4", "granularities": ["c"]}},
    )  # fmt: skip
    assert not {"float", "8-bit weight", "blocks of 16"} & set(named(remedies("main", weight, narrow, columns=32)))
    assert named(remedies("main", activation, narrow)) == [
        "observer mse", "observer percentile", "observer entropy", "fp16 activation",
    ]  # fmt: skip


def test_a_remedy_speaks_about_every_node_that_holds_the_data() -> None:
    _, _, plan, _ = quantized(block_bundle(), "w8a8")
    wider = next(r for r in remedies("main", switch_of(plan, "k_proj"), legality()) if r.name == "16-bit activation")
    assert {rule.name for rule in wider.rules} >= {"k_proj", "k.split", "k.heads", "k.transposed"}
    assert {(rule.component, rule.scheme) for rule in wider.rules} == {("main", "w8a16")} and wider.cost is Cost.BITS


def test_a_remedy_speaks_about_all_layers_of_a_sum() -> None:
    _, _, plan, _ = quantized(summed(parts=True), "w4cfp32")
    finer = next(
        r for r in remedies("main", switch_of(plan, "w.1"), legality(), columns=32) if r.name == "blocks of 16"
    )
    assert {rule.name for rule in finer.rules} == {"down.0", "down.1", "down.2"}


def test_what_pays_is_kept_and_holds_when_applied_whole(tmp_path: Path) -> None:
    bundle, feeds = block_bundle()
    rules = [{"scheme": "w8a16"}, {"name": "o_proj", "scheme": "w4ca16", "algorithm": "rtn"}]
    recipe = Recipe.model_validate({"name": "t", "rules": rules})
    bench = Workbench(bundle, recipe, "x/y", legality(), "main")
    plan = bench.plan(())
    candidates = [
        (t, remedies("main", switch_of(plan, t), legality(), columns=32)) for t in ("o_proj.weight", "gate_proj.weight")
    ]
    plans = [bench.plan(remedy.rules) for _, found in candidates for remedy in found]
    hessians = {"main": sorted({x for p in plans for x in p.hessians().get("main", ())})}
    statistics = calibrate({"main": bundle["main"].graph}, feeds, hessians=hessians)
    samples = Samples(bundle["main"].graph, [f for _, f in feeds], tmp_path)
    done: list[int] = []
    trials = repair(bench, candidates, statistics, samples, done.append)
    assert done == list(range(1, sum(len(found) for _, found in candidates) + 1))
    kept = [t for t in trials if t.kept]
    assert [t.tensor for t in kept][:1] == ["o_proj.weight"]
    assert all(t.gain_db >= LEAST_GAIN_DB for t in kept) and all(t.after is not None for t in trials)
    assert trials[0].before.db < kept[-1].after.db
    whole = with_rules(recipe, "x/y", [rule for t in kept for rule in t.remedy.rules])
    pivot, _ = apply_plan(bundle, make_plan(bundle, whole, "x/y", legality()), statistics)
    proto = as_proto(pivot["main"].graph, tmp_path)
    got = [run(proto, f) for f in samples.feeds]
    expected = min(sqnr_db(samples.used(samples.outputs, k), samples.used(got, k)) for k in samples.outputs[0])
    assert kept[-1].after.db == pytest.approx(expected, abs=0.01)


def test_recipes_that_round_on_samples_are_measured_so(tmp_path: Path) -> None:
    bundle, feeds = block_bundle()
    rules = [{"scheme": "w4ca16", "algorithm": "gptq", "algorithm_options": {"sweeps": 1, "propagation": 0.5}}]
    recipe = Recipe.model_validate({"name": "t", "rules": rules})
    statistics = calibrate({"main": bundle["main"].graph}, feeds)
    samples = Samples(bundle["main"].graph, [f for _, f in feeds], tmp_path)
    found = Workbench(bundle, recipe, "x/y", legality(), "main", lambda: feeds).measure((), statistics, samples)
    pivot, _ = apply_plan(bundle, make_plan(bundle, recipe, "x/y", legality()), statistics, samples=lambda: feeds)
    proto = as_proto(pivot["main"].graph, tmp_path)
    got = [run(proto, f) for f in samples.feeds]
    expected = min(sqnr_db(samples.used(samples.outputs, k), samples.used(got, k)) for k in samples.outputs[0])
    assert found.db == pytest.approx(expected, abs=0.01)
