"""What a recipe's `cache` becomes in a plan, where it is refused, and that `apply_plan` does it."""

import numpy as np
import pytest
from decoder_models import save_decoder
from small_models import bundle_of, cached_bundle, cnn_bundle, legality

from pocketport.calibration.capture import calibrate
from pocketport.calibration.statistics import Statistics
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.cache.float_cache import with_float_ends
from pocketport.compress.cache.integer_cache import key_ranges, with_integer_cache
from pocketport.compress.diagnosis.compare import compare_graphs
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.decoder.session import DecoderSession
from pocketport.compress.families.registry import Lengths, family_of, host_of
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.legality import Legality
from pocketport.compress.planning.plan import Plan, make_plan
from pocketport.compress.recipe import Recipe, Rule, with_rules
from pocketport.compress.sources.open import open_source
from pocketport.errors import InputError, UsageError
from pocketport.profiles.memory import memory_plan

PROMPT, CACHE, LENGTH = 16, 20, 11


def chip(bits: tuple[int, ...] = (4, 8), activations: str = "fp32") -> Legality:
    defaults = dict.fromkeys(("embed", "prefill", "decode", "main"), f"w8c{activations}")
    return legality(defaults=defaults, cache={"bits": bits, "why": "it has no bytes"})


def recipe(cache: str, **targets: str) -> Recipe:
    sections = {name: {"cache": own} for name, own in targets.items()}
    return Recipe.model_validate({"name": "test", "cache": cache, "targets": sections})


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    source = open_source(save_decoder(tmp_path_factory.mktemp("qwen3"), "qwen3"))
    return family_of(source).load(source, "qwen3", Lengths(prompt=PROMPT, cache=CACHE))


@pytest.fixture(scope="module")
def feeds(decoder: ModelBundle) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Of every component, as the float chain gives them."""
    calls: list[tuple[str, dict[str, np.ndarray]]] = []
    executors = {c.name: OrtExecutor(c.graph) for c in decoder}
    rng = np.random.default_rng(0)
    for _ in range(3):
        session = DecoderSession(
            executors, host_of(decoder), lambda name, f, _: calls.append((name, {n: np.array(v) for n, v in f.items()}))
        )
        session.start(session.embed(rng.integers(0, 160, LENGTH).tolist()), LENGTH)
        for token in rng.integers(0, 160, 2).tolist():
            session.step(token)
    return calls


@pytest.fixture(scope="module")
def statistics(decoder: ModelBundle, feeds: list[tuple[str, dict[str, np.ndarray]]]) -> Statistics:
    return calibrate({c.name: c.graph for c in decoder}, feeds)


def test_the_chips_section_comes_before_the_vendors_and_that_before_the_recipe() -> None:
    mine = recipe("int8", x="int4", **{"x/new": "float"})
    wanted = {"x/old": "int4", "x/new@1.2": "float", "x": "int4", "y/z": "int8"}
    assert {target: mine.cache_for(target) for target in wanted} == wanted
    assert Recipe(name="empty").cache_for("x") == "float"
    further = with_rules(mine, "x/new", [Rule(scheme="float")])
    assert further.cache_for("x/new") == "float"
    assert further.targets["x/new"].rules


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4)])
def test_the_plan_says_what_becomes_of_the_cache(decoder: ModelBundle, name: str, bits: int) -> None:
    plan = make_plan(decoder, recipe(name), "x/y", chip())
    assert plan.cache is not None and Plan.from_json(plan.to_json()) == plan
    assert plan.cache.name == name and plan.cache.states == ("key_0", "value_0", "key_1", "value_1")
    config = host_of(decoder).config
    elements = 2 * 2 * config.num_key_value_heads * CACHE * config.head_dim
    ranges = 2 * config.num_key_value_heads * CACHE * 2 * 4
    assert plan.cache.bytes_before == 4 * elements and plan.cache.bytes_after == elements * bits // 8 + ranges
    keys = {"present_key_0", "present_key_1"}
    assert all(keys <= plan.selection()[c].tensors for c in ("prefill", "decode"))
    assert make_plan(decoder, recipe("float"), "x/y", chip()).cache is None
    assert make_plan(decoder, recipe("int8", x="float"), "x/y", chip()).cache is None


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("activations", ["fp32", "a16"])
def test_applying_the_plan_is_the_functions_on_the_float_caches_pivot(
    decoder: ModelBundle, statistics: Statistics, feeds: list[tuple[str, dict[str, np.ndarray]]], name: str, activations: str
) -> None:  # fmt: skip
    """And it holds as many bytes as the plan says; with integers as activations, names do not clash."""
    plans = [make_plan(decoder, recipe(n), "x/y", chip(activations=activations)) for n in (name, "float")]
    pivot, plain = (apply_plan(decoder, plan, statistics)[0] for plan in plans)
    expected = with_integer_cache(plain, key_ranges(statistics), int(name[-1]))
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, 160, LENGTH + 3).tolist()
    answers = []
    for bundle in (pivot, expected, plain):
        session = DecoderSession({c.name: OrtExecutor(c.graph) for c in bundle}, host_of(decoder))
        logits = [session.start(session.embed(tokens[:LENGTH]), LENGTH)]
        answers.append(np.concatenate([*logits, *(session.step(t) for t in tokens[LENGTH:])]))
    np.testing.assert_array_equal(answers[0], answers[1])
    lost = np.square(answers[0] - answers[2]).mean() / np.square(answers[2]).mean()
    assert 0 < lost < (0.01 if name == "int8" else 0.5)
    made, before = (
        next(s.cache for s in memory_plan({c.name: c.graph for c in b}, float_bits=32).steps if s.name == "decode")
        for b in (pivot, plain)
    )
    assert plans[0].cache is not None
    narrow = 2 if activations == "a16" else 1  # such a cache has 16 bits already
    assert (made, before) == (plans[0].cache.bytes_after, plans[0].cache.bytes_before // narrow)
    one = [f for n, f in feeds if n == "decode"][:1]
    compared = compare_graphs(decoder["decode"].graph, with_float_ends(pivot["decode"].graph), one)
    assert {"logits"} <= {c.tensor for c in compared} and all(np.isfinite(c.cumulative_db) for c in compared)
    assert min(c.local_db for c in compared if c.op == "Softmax") > 20  # it reads keys that no cache has rounded


def test_where_it_is_refused(decoder: ModelBundle) -> None:
    with pytest.raises(UsageError, match="no key-value cache in 4-bit integers: it has no bytes") as caught:
        make_plan(decoder, recipe("int4"), "x/y", chip(bits=(8,)))
    assert "x/y" in caught.value.where and "cache: float" in caught.value.fix
    with pytest.raises(UsageError, match="none was tried"):
        make_plan(decoder, recipe("int8"), "x/y", legality(defaults=chip().defaults))
    for bundle in (cnn_bundle()[0], cached_bundle()[0]):  # the second has keys of another name
        with pytest.raises(UsageError, match="it has no key-value cache"):
            make_plan(bundle, recipe("int8"), "x/y", chip())


def test_channels_that_do_not_fill_bytes_are_refused_before_anything_runs() -> None:
    graphs = {}
    for name in ("prefill", "decode"):
        g = GraphBuilder(name)
        past = {part: g.input(f"past_{part}_0", (1, 2, 6, 15)) for part in ("key", "value")}
        for part, value in past.items():
            g.output(g.node("Relu", [value], f"{part}.relu", output=f"present_{part}_0"))
        graphs[name] = g.finish()
    bundle = bundle_of(**graphs)
    with pytest.raises(InputError, match="15 channels don't fill bytes") as caught:
        make_plan(bundle, recipe("int4"), "x/y", chip())
    assert "past_key_0" in caught.value.where and "8-bit" in caught.value.fix
    assert make_plan(bundle, recipe("int8"), "x/y", chip()).cache is not None
