"""`pocketport search` on a small Llama: budgets, the recipe, and what the chosen schemes measure."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pocketport.cli import app
from pocketport.commands.search import print_layers
from pocketport.compress.mixed_precision.allocation import Allocation, allocate, groupings_of, literal
from pocketport.compress.mixed_precision.exchange import EXCHANGED
from pocketport.compress.mixed_precision.pairs import PAIRS, allocate_pairs
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.compress.recipe import Rule, load_recipe
from pocketport.errors import UsageError
from pocketport.request import Request
from pocketport.stages import search as search_module
from pocketport.stages.context import Context
from pocketport.stages.search import FormatSearch
from pocketport.stages.searched import Budget
from pocketport.stages.sequences import Sequences
from pocketport.stages.weights import plan_formats
from pocketport.store import Store
from tests.pocketport.conftest import perceptron

transformers = pytest.importorskip("transformers")

SCHEMES = "w2b32fp16,w4b32fp16,w8b32fp16"
BITS = 4.6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=160, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        llama.model.layers[1].mlp.down_proj.weight *= 30  # much depends on it
    llama.save_pretrained(folder)
    np.savez(folder / "tokens.npz", input_ids=np.random.default_rng(0).integers(3, 150, (16, 32)))
    return folder


def request(model: Path, **changes: object) -> Request:
    fields = {
        "source": str(model), "formats": ["gptq"], "data": str(model / "tokens.npz"), "calibration_samples": 4,
        "sequence_length": 16, "memory_limit": 1 << 30, **changes,
    }  # fmt: skip
    return Request.model_validate(fields)


def test_a_recipe_within_the_budget(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mixed.yaml"
    arguments = [
        "search", str(model), "--format", "gptq", "--budget-bits", str(BITS), "--schemes", SCHEMES, "--data",
        str(model / "tokens.npz"), "--calibration-samples", "4", "--sequence-length", "16", "--cache", str(tmp_path / "cache"),
        "--out", str(recipe), "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    layers = {layer["layer"]: layer for layer in document["layers"]}
    assert len(layers) == 8  # what shares an input has one scheme, as vLLM joins it
    assert sum(layer["elements"] for layer in layers.values()) == 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64)
    chosen = {layer["scheme"] for layer in layers.values()}
    assert len(chosen) > 1 and layers["model.layers.1.mlp.down_proj"]["scheme"] == "w8b32fp16"
    costs = sum(layer["bytes"][layer["scheme"]] for layer in layers.values())
    elements = sum(layer["elements"] for layer in layers.values())
    best = document["candidates"][0]
    assert best["bytes"] == costs <= BITS * elements / 8
    measured = [candidate["measured"]["divergence"] for candidate in document["candidates"]]
    assert measured == sorted(measured) and measured[0] > 0
    (job,) = plan_formats(request(model, recipe=str(recipe)))
    planned = {p.tensor: p for p in job.plans if p.quantized}
    assert sum(p.bytes_after for p in planned.values()) == costs
    for layer in layers.values():
        assert {planned[weight].scheme for weight in layer["weights"]} == {layer["scheme"]}
    assert sum(p.bytes_after for p in job.plans) == costs + document["fixed_bytes"]
    assert all(rule.component == "prefill" for rule in load_recipe(recipe).rules)


def test_more_bytes_never_hurt_and_too_few_are_refused(model: Path, tmp_path: Path) -> None:
    search = FormatSearch(Context(request(model), Store(tmp_path / "cache"), tmp_path), SCHEMES.split(","))
    whole = search.found.fixed_bytes + 8.5 * search.found.elements / 8
    errors = {}
    for bits in (2.5, 3, 4, 6, 8.5):
        searched = search.search(Budget(bits=bits), confirm=False)
        errors[bits] = min(c.allocation.error for c in searched.candidates if c.allocation.model == "loss")
    assert sorted(errors.values(), reverse=True) == list(errors.values())
    best = search.search(Budget(bytes=whole), confirm=False).best.allocation
    assert set(best.schemes.values()) == {"w8b32fp16"}
    with pytest.raises(UsageError, match="cheapest schemes"):
        search.search(Budget(bits=2.0), confirm=False)
    with pytest.raises(UsageError, match="not searched"):
        search.search(Budget(bytes=1000.0), confirm=False)


def test_layers_exchange_bits_by_what_that_measures(model: Path, tmp_path: Path) -> None:
    search = FormatSearch(Context(request(model), Store(tmp_path / "cache"), tmp_path), SCHEMES.split(","))
    plain = search.search(Budget(bits=BITS))
    searched = search.search(Budget(bits=BITS), exchanges=2)
    budget = BITS * searched.elements / 8
    assert searched.bytes_of(searched.best) <= budget
    before, after = (search.quality(s.best.rules).divergence for s in (plain, searched))
    assert after < before or searched.best == plain.best
    with pytest.raises(UsageError, match="exchange bits"):
        arguments = [
            "search",
            str(model),
            "--target",
            "x86",
            "--budget-bits",
            "4",
            "--exchanges",
            "1",
            "--out",
            "r.yaml",
        ]
        CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False)


@pytest.mark.parametrize("better", [False, True])
def test_exchanges_count_once_they_are_quantized(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    search = FormatSearch(Context(request(model), Store(tmp_path / "cache"), tmp_path), SCHEMES.split(","))
    start = search.search(Budget(bits=BITS)).best
    asked = []

    def exchanged(
        layers: Any, errors: Any, effects: Any, start: Allocation, budget: float, measure: Any, rounds: int
    ) -> Allocation:
        asked.append(measure(start))
        return replace(start, schemes=dict.fromkeys(start.schemes, "w8b32fp16" if better else "w2b32fp16"))

    monkeypatch.setattr(search_module, "exchange", exchanged)
    found = search.search(Budget(bits=BITS), exchanges=1)
    # GPTQ's weights of one scheme throughout stand for those of the allocation.
    assert sum(asked[0]) == pytest.approx(sum(search.quality(start.rules).sums), rel=0.2)
    assert len(asked[0]) == search.measured.count
    assert (len(set(found.best.allocation.schemes.values())) == 1) == better
    assert len(found.candidates) == len(search.search(Budget(bits=BITS)).candidates) + 1
    divergences = [c.figures["divergence"] for c in found.candidates]
    assert divergences == sorted(divergences)


def test_one_sample_cannot_choose_exchanges(model: Path, tmp_path: Path) -> None:
    search = FormatSearch(Context(request(model), Store(tmp_path / "cache"), tmp_path), SCHEMES.split(","), measured=1)
    with pytest.raises(UsageError, match="by chance"):
        search.search(Budget(bits=BITS), exchanges=1)


def test_effects_have_the_errors_sizes_and_pairs_are_a_candidate(model: Path, tmp_path: Path) -> None:
    """Of every sample one, whose squares sum up to the loss within what rows say of how schemes compare."""
    search = FormatSearch(Context(request(model), Store(tmp_path / "cache"), tmp_path), SCHEMES.split(","))
    for weight, own in search.effects.items():
        assert own.keys() == search.errors[weight].keys()
        assert {len(values) for values in own.values()} == {4}
        sizes = [np.square(values).sum() / 2 / search.errors[weight][s]["loss"] for s, values in own.items()]
        assert np.mean(sizes) == pytest.approx(1, rel=0.5) and min(sizes) > 0
    layers, budget = search.found.layers, 4.7 * search.found.elements / 8
    start = allocate(layers, search.errors, budget, "loss")
    found = allocate_pairs(layers, search.errors, search.effects, start, budget)
    assert found.cost <= budget
    models = {c.allocation.model for c in search.search(Budget(bits=4.7), confirm=False).candidates}
    assert (PAIRS in models) == (found.schemes != start.schemes)


def test_the_table_shows_what_was_chosen(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of allocations that were exchanged too: their errors are those of the loss."""
    search = FormatSearch(Context(request(model), Store(tmp_path / "cache"), tmp_path), SCHEMES.split(","))
    searched = search.search(Budget(bits=4.7), confirm=False)
    best = searched.best.allocation
    for model_name in (best.model, EXCHANGED):
        allocation = replace(best, model=model_name)
        print_layers(replace(searched, candidates=(replace(searched.best, allocation=allocation),)))
        printed = capsys.readouterr().out
        for scheme in SCHEMES.split(","):
            assert (scheme in printed) == (scheme in best.schemes.values())


def test_another_algorithm_has_other_errors(model: Path, tmp_path: Path) -> None:
    """In the same cache, of the same samples and schemes."""
    store = Store(tmp_path / "cache")
    found = {
        recipe: FormatSearch(Context(request(model, recipe=recipe), store, tmp_path), ["w3b32fp16"]).errors
        for recipe in ("rtn", "gptq")
    }
    for name, errors in found["gptq"].items():
        assert errors["w3b32fp16"]["output"] < 0.9 * found["rtn"][name]["w3b32fp16"]["output"]


@pytest.mark.parametrize("scheme", ["w4b32fp16", "w2b32fp16"])
def test_errors_sum_to_what_groups_of_layers_measure(scheme: str, model: Path, tmp_path: Path) -> None:
    """Each kind of layer alone, and each stretch of the depth, in the scheme nearest to the budget, if none is better and smaller."""
    search = FormatSearch(Context(request(model), Store(tmp_path / "cache"), tmp_path), SCHEMES.split(","))
    if scheme != "w4b32fp16":
        for errors in search.errors.values():
            errors["w4b32fp16"]["loss"] = 2 * errors[scheme]["loss"]
    searched = search.search(Budget(bits=BITS))
    rules = [Rule(component="prefill", scheme=scheme)]
    every = [weight for layer in searched.layers for weight in layer.weights]
    assert search.quality(rules, only=every) == search.quality(rules) != search.quality(rules, only=every[:1])
    for grouping in groupings_of(searched.layers):
        ratios = []
        for group in sorted(set(grouping)):
            own = [layer for layer, label in zip(searched.layers, grouping, strict=True) if label == group]
            alone = search.quality(rules, only=[weight for layer in own for weight in layer.weights]).divergence
            ratios.append(sum(layer.error(searched.errors, scheme, "loss") for layer in own) / alone)
        assert len(ratios) > 1
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3)


def test_errors_are_taken_from_samples_that_nothing_is_measured_on(model: Path, tmp_path: Path) -> None:
    context = Context(request(model), Store(tmp_path / "cache"), tmp_path)
    search = FormatSearch(context, ["w4b32fp16"], samples=6)
    assert isinstance(search.samples, Sequences) and isinstance(search.measured, Sequences)
    given = np.load(model / "tokens.npz")["input_ids"][:, :16]
    np.testing.assert_array_equal(search.samples.tokens, given[:6])
    np.testing.assert_array_equal(search.measured.tokens, given[6:14])
    fewer = FormatSearch(context, ["w4b32fp16"], samples=6, measured=3).measured
    assert isinstance(fewer, Sequences)
    np.testing.assert_array_equal(fewer.tokens, given[6:9])


def test_schemes_that_a_format_lacks(model: Path, tmp_path: Path) -> None:
    context = Context(request(model), Store(tmp_path / "cache"), tmp_path)
    with pytest.raises(UsageError, match="no layer takes w7b32fp16"):
        FormatSearch(context, ["w4b32fp16", "w7b32fp16"])
    known = FormatSearch(context, None, joined=False).found
    assert len(known.layers) == 14
    assert {"w3b32fp16", "w4b32fp16"} <= known.plans.keys()
    assert not any(scheme.startswith("q") for scheme in known.plans)


@pytest.mark.parametrize("recipe", ["default", "gptq"])
def test_errors_are_those_of_the_weights_that_are_written(
    model: Path, tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first layer GPTQ's inputs are the float model's too."""
    from torch import Tensor

    from pocketport.compress.mixed_precision.checkpoint import CheckpointLayers, Dequantized

    seen: dict[str, list[Tensor]] = {}
    rounded = CheckpointLayers.rounded

    def watched(self: CheckpointLayers, weight: str, *rest: Any) -> Iterator[Tensor]:
        seen[weight] = list(rounded(self, weight, *rest))
        return iter(seen[weight])

    monkeypatch.setattr(CheckpointLayers, "rounded", watched)
    search = FormatSearch(Context(request(model, recipe=recipe), Store(tmp_path / "cache"), tmp_path), ["w3b32fp16"])
    name = "model.layers.0.self_attn.v_proj.weight"
    assert search.errors[name]["w3b32fp16"]["loss"] > 0
    search.quality([Rule(scheme="w3b32fp16")])
    (index,) = (tmp_path / "cache" / "weights").rglob("index.json")
    written = Dequantized(QuantizedWeights(index.parent))[name]
    assert float((seen[name][0] != written).float().mean()) < (0.002 if recipe == "gptq" else 1e-9)


def test_names_are_taken_literally() -> None:
    from fnmatch import fnmatchcase

    for name in ("a[0].b*c?", "plain.q_proj"):
        assert fnmatchcase(name, literal(name)) and not fnmatchcase(name.replace("[0]", "0") + "x", literal(name))


def test_a_recipe_for_a_target(tmp_path: Path) -> None:
    """The layer whose noise reaches the output whole gets more bits than the one in front of a narrow one."""
    data = tmp_path / "samples.npz"
    np.savez(data, x=np.random.default_rng(1).standard_normal((24, 1, 16)).astype(np.float32))
    recipe = tmp_path / "mixed.yaml"
    arguments = [
        "search", str(perceptron(tmp_path / "perceptron.onnx")), "--target", "x86", "--budget-bits", "9.5", "--schemes",
        "w8a8,w4b16a8", "--data", str(data), "--out", str(recipe), "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    schemes = {layer["layer"]: layer["scheme"] for layer in document["layers"]}
    assert set(schemes) == {"first", "second"} and set(schemes.values()) == {"w8a8", "w4b16a8"}
    noise = [candidate["measured"]["noise over signal"] for candidate in document["candidates"]]
    assert noise == sorted(noise) and 0 < noise[0] < 0.1
    written = load_recipe(recipe)
    assert [(rule.name, rule.scheme) for rule in written.rules_for("x86/generic")] == list(schemes.items())
    refused = CliRunner().invoke(app, [*arguments[:2], "--out", str(recipe), "--budget-bits", "4"])
    assert isinstance(refused.exception, UsageError)
