"""Layers of a sum: least squares of numpy's, GPTQ of the whole matrix, and the error of the sum that is left."""

from dataclasses import replace

import numpy as np
import pytest
from small_models import TERMS, bundle_of, legality, summed

from pocketport.calibration.capture import calibrate
from pocketport.calibration.statistics import SecondMoment, Statistics
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Arrays, OrtExecutor
from pocketport.compress.pivot.apply import apply_component, apply_plan
from pocketport.compress.pivot.summed_weights import SummedWeights, residuals, rounding_order
from pocketport.compress.pivot.weights import QuantizedTensor
from pocketport.compress.planning.plan import Plan, make_plan
from pocketport.compress.recipe import Recipe
from pocketport.errors import InputError

SOURCE, WIDTHS, OUT = 24, TERMS, 32
ORDER = (2, 0, 1)
Feeds = list[tuple[str, Arrays]]
rng = np.random.default_rng(0)


def correlated(rows: int = 400) -> np.ndarray:
    """Rows [n, 96] of which the later columns say much of the first ones."""
    few = rng.standard_normal((rows, SOURCE))
    return np.float32(few @ rng.standard_normal((SOURCE, sum(WIDTHS))) + 0.3 * rng.standard_normal((rows, sum(WIDTHS))))


def moment_of(x: np.ndarray) -> SecondMoment:
    return SecondMoment(np.square(x).sum(0, dtype=np.float64), len(x), x.T @ x)


def test_residuals_are_those_of_least_squares() -> None:
    x = correlated()
    found = residuals(moment_of(x), WIDTHS, ORDER, damping=0.0)
    parts = np.split(x.astype(np.float64), np.cumsum(WIDTHS)[:-1], axis=1)
    for place, left in enumerate(found):
        assert left.later == ORDER[ORDER.index(place) + 1 :]
        later = np.concatenate([*(parts[p] for p in left.later), np.zeros((len(x), 0))], axis=1)
        shares = np.linalg.lstsq(later, parts[place])[0].T
        unsaid = parts[place] - later @ shares.T
        np.testing.assert_allclose(left.shares, shares, atol=2e-3)
        assert left.moment.full is not None and left.moment.rows == len(x)
        np.testing.assert_allclose(left.moment.full, unsaid.T @ unsaid, atol=2e-3 * len(x))
        np.testing.assert_allclose(left.moment.diagonal, np.square(unsaid).sum(0), rtol=1e-2)


def test_an_error_is_made_up_for_as_far_as_the_others_can() -> None:
    x = correlated()
    parts = np.split(x, np.cumsum(WIDTHS)[:-1], axis=1)
    weights = [rng.standard_normal((OUT, k)).astype(np.float32) for k in WIDTHS]
    together = SummedWeights(residuals(moment_of(x), WIDTHS, ORDER, damping=0.0))
    first = ORDER[0]
    error = rng.standard_normal(weights[first].shape).astype(np.float32)
    assert together.wanted(first, weights[first]) is weights[first]
    together.rounded(first, error)
    changed = [w - error if p == first else together.wanted(p, w) for p, w in enumerate(weights)]
    lost = sum(part @ (c - w).T for part, c, w in zip(parts, changed, weights, strict=True))
    best = np.linalg.lstsq(np.concatenate([parts[p] for p in ORDER[1:]], 1), parts[first] @ error.T)[1].sum()
    assert np.square(lost).sum() == pytest.approx(best, rel=1e-3)
    assert np.square(lost).sum() < 0.2 * np.square(parts[first] @ error.T).sum()


def test_the_loudest_inputs_come_first() -> None:
    loudness = (1.0, 9.0, 4.0)
    inputs = [moment_of(np.full((rows, 5), a, np.float32)) for rows, a in zip((90, 10, 50), loudness, strict=True)]
    assert rounding_order(inputs) == [1, 2, 0]


def planned(bundle: ModelBundle, rules: list[dict[str, object]], **changes: object) -> Plan:
    recipe = Recipe.model_validate({"name": "t", "rules": [*rules, {"name": "hidden.*", "scheme": "float"}]})
    return make_plan(bundle, recipe, "x/y", legality(**changes))


def apart(plan: Plan) -> Plan:
    """The same without sums."""
    components = [replace(c, tensors=tuple(replace(t, terms=()) for t in c.tensors)) for c in plan]
    return replace(plan, components=tuple(components))


def lost(bundle: ModelBundle, feeds: Feeds, plan: Plan) -> float:
    """Noise over signal of the pivot's output on other samples."""
    statistics = calibrate({"main": bundle["main"].graph}, feeds[:30], hessians=plan.hessians())
    pivot, _ = apply_plan(bundle, plan, statistics)
    executors = [OrtExecutor(one["main"].graph) for one in (bundle, pivot)]
    wanted, got = (np.stack([e.run(f)["y"] for _, f in feeds[30:]]) for e in executors)
    return float(np.square(wanted - got).sum() / np.square(wanted).sum())


PALETTES = {"palettes": {"bits": [2, 4], "grouped": True}}
RULES = {"all alike": [{"scheme": "w4fp32"}], "mixed": [{"scheme": "w4fp32"}, {"name": "down.1", "scheme": "w8fp32"}],
         "palettes": [{"scheme": "w2pfp32", "algorithm": "gptq"}]}  # fmt: skip


@pytest.mark.parametrize("rules", RULES)
def test_less_is_lost_together(rules: str) -> None:
    bundle, feeds = summed(parts=True)
    plan = planned(bundle, RULES[rules], **PALETTES)
    assert lost(bundle, feeds, plan) < 0.7 * lost(bundle, feeds, apart(plan))


def test_as_little_is_lost_as_by_gptq_of_the_whole() -> None:
    losses = []
    for parts in (True, False):
        bundle, feeds = summed(parts=parts)
        losses.append(lost(bundle, feeds, planned(bundle, [{"scheme": "w4fp32"}])))
    assert losses[0] < 1.1 * losses[1]


def test_less_is_lost_together_where_inputs_are_scaled() -> None:
    bundle, feeds = summed(parts=True, relu=True)
    changes = {"defaults": {"main": "w4a8", "head": "w4a8"}, "integer_ops": ["Gemm"], "scaled_inputs": True}
    plan = planned(bundle, [{"name": "down.*", "scheme": "w4a8"}], **changes)
    terms = next(t.terms for t in plan["main"].tensors if t.terms)
    assert terms == ("x.0/scaled", "x.1/scaled", "x.2/scaled")
    assert plan.hessians() == {"main": ["x.0 + x.1 + x.2"]}
    assert lost(bundle, feeds, plan) < 0.9 * lost(bundle, feeds, apart(plan))


def test_components_with_the_same_weights_have_the_same_integers() -> None:
    bundle, feeds = summed(parts=True)
    both = bundle_of(prefill=bundle["main"].graph, decode=bundle["main"].graph)
    rules = [{"scheme": "float"}, {"name": "down.*", "scheme": "w4fp32", "algorithm": "gptq"}]
    plan = planned(both, rules, defaults={"main": "w8a16", "head": "w8a16"})
    fed = [(name, f) for name in ("prefill", "decode") for _, f in feeds]
    statistics = calibrate({c.name: c.graph for c in both}, fed, hessians=plan.hessians())
    pivot, _ = apply_plan(both, plan, statistics)
    results = [OrtExecutor(c.graph).run(feeds[0][1])["y"] for c in pivot]
    assert np.array_equal(*results)
    assert not np.allclose(results[0], OrtExecutor(bundle["main"].graph).run(feeds[0][1])["y"], rtol=1e-3)


def test_what_is_remembered_depends_on_how_the_others_were_rounded() -> None:
    bundle, feeds = summed(parts=True)
    known: dict[str, QuantizedTensor] = {}
    results = {}
    for first in ("w4fp32", "w8fp32", "w4fp32"):
        plan = planned(bundle, [{"scheme": "w4fp32"}, {"name": "down.0", "scheme": first}])
        statistics = calibrate({"main": bundle["main"].graph}, feeds, hessians=plan.hessians())
        pivot = apply_component(bundle, plan, statistics, "main", known)
        alone, _ = apply_plan(bundle, plan, statistics)
        y = OrtExecutor(pivot).run(feeds[0][1])["y"]
        assert np.array_equal(y, OrtExecutor(alone["main"].graph).run(feeds[0][1])["y"])
        assert np.array_equal(results.setdefault(first, y), y)
    assert len(known) == 5  # the loudest comes first and depends on none, two depend on down.0


def test_calibration_without_the_sum_is_an_error() -> None:
    bundle, feeds = summed(parts=True)
    plan = planned(bundle, [{"scheme": "w4fp32"}])
    statistics: Statistics = calibrate({"main": bundle["main"].graph}, feeds)
    with pytest.raises(InputError, match=r"did not see hidden\.0 \+ hidden\.1 \+ hidden\.2") as caught:
        apply_plan(bundle, plan, statistics)
    assert (
        caught.value.where in {f"tensor main/{t.tensor}" for t in plan["main"].tensors if t.terms}
        and "hessians" in caught.value.fix
    )
