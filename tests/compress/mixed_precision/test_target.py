"""What there is to choose on a target, on prefill and decode that share their weights."""

import numpy as np
import pytest
import torch
from small_models import ROWS, WIDTH, bundle_of, cached_bundle, cnn, legality

from pocketport.compress.mixed_precision.allocation import allocate
from pocketport.compress.mixed_precision.outputs import output_gradient
from pocketport.compress.mixed_precision.sensitivity import MODELS
from pocketport.compress.mixed_precision.target import target_layers, with_rules
from pocketport.compress.plan import TensorKind, make_plan
from pocketport.compress.recipe import Recipe, Rule, TargetSection
from pocketport.errors import InputError, UsageError

TARGET = "example/chip"
BASE = Recipe(name="base", rules=[Rule(name="gate_proj", scheme="float")])
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "lm_head"}  # gate_proj stays float


def test_layers_are_those_that_the_base_quantizes_in_every_legal_scheme() -> None:
    bundle, _ = cached_bundle()
    found = target_layers(bundle, BASE, TARGET, legality(), None)
    assert {layer.name for layer in found.layers} == LINEAR
    assert found.components == ("prefill",)  # decode's weights are the same ones
    for layer in found.layers:
        assert layer.costs.keys() == {"w8a16", "w4a16", "w4b16a16", "w4b32a16"}
        assert {node.component for node in layer.nodes} == {"prefill", "decode"}
        assert layer.costs["w4a16"] < layer.costs["w4b16a16"] < layer.costs["w8a16"]
    plan = make_plan(bundle, BASE, TARGET, legality())
    assert found.fixed_bytes + sum(layer.costs["w8a16"] for layer in found.layers) == sum(c.bytes_after for c in plan)


def test_the_rules_give_the_bytes_that_were_counted() -> None:
    bundle, _ = cached_bundle()
    found = target_layers(bundle, BASE, TARGET, legality(), ["w8a16", "w4b16a16"])
    errors = {
        weight: {scheme: dict.fromkeys(MODELS, float(i + 1) * 4.0 ** -int(scheme[1])) for scheme in layer.costs}
        for i, layer in enumerate(found.layers)
        for weight in layer.weights
    }
    allocation = allocate(found.layers, errors, 7.5 * found.elements / 8, "loss")
    assert set(allocation.schemes.values()) == {"w8a16", "w4b16a16"}
    plan = make_plan(bundle, with_rules(BASE, TARGET, allocation.rules(found.layers)), TARGET, legality())
    assert sum(c.bytes_after for c in plan) == found.fixed_bytes + allocation.cost
    for component in plan:
        own = {t.node: t.scheme for t in component.tensors if t.kind is TensorKind.WEIGHT}
        assert own == {**allocation.schemes, "gate_proj": "float"}


def test_time_is_what_decode_reads() -> None:
    bundle, _ = cached_bundle()
    found = target_layers(bundle, BASE, TARGET, legality(), ["w8a16", "w4b16a16"])
    decode = make_plan(bundle, BASE, TARGET, legality())["decode"]
    sizes = {t.node: t.bytes_after for t in decode.tensors if t.kind is TensorKind.WEIGHT}
    for layer in found.timed(50.0):
        assert layer.costs["w8a16"] == pytest.approx(sizes[layer.name] / 50e6)  # the base's scheme
        assert layer.costs["w4b16a16"] < layer.costs["w8a16"]


def test_rules_for_one_chip_come_last() -> None:
    base = Recipe(name="base", targets={"example/chip": TargetSection(rules=[Rule(scheme="w8a16")])})
    recipe = with_rules(base, "example/chip@2", [Rule(name="x", scheme="w4a16")])
    assert [rule.scheme for rule in recipe.rules_for("example/chip")] == ["w8a16", "w4a16"]
    assert not recipe.rules_for("example/other")


def test_rounding_is_that_of_the_plan() -> None:
    bundle, _ = cached_bundle()
    found = target_layers(bundle, BASE, TARGET, legality(), None)
    weight = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    errors = {
        scheme: float(
            (found.rounded("prefill/q_proj.weight", scheme, weight, torch.ones(WIDTH)) - weight).square().sum()
        )
        for scheme in ("w8a16", "w4b16a16", "w4a16")
    }
    assert 0 < errors["w8a16"] < 0.02 * errors["w4b16a16"] < 0.02 * errors["w4a16"]


def test_what_can_not_be_chosen_is_an_error() -> None:
    bundle, _ = cached_bundle()
    with pytest.raises(UsageError, match="no layer takes w3a16"):
        target_layers(bundle, BASE, TARGET, legality(), ["w8a16", "w3a16"])
    with pytest.raises(UsageError, match="nothing to choose"):
        target_layers(bundle, Recipe(name="float", rules=[Rule(scheme="float")]), TARGET, legality(), None)
    with pytest.raises(InputError, match="Clip, MaxPool"):
        target_layers(bundle_of(main=cnn(np.random.default_rng(0))), BASE, TARGET, legality(), None)


def test_random_signs_measure_noise_over_signal() -> None:
    generator = torch.Generator().manual_seed(1)
    output, noise = torch.randn(ROWS, 40, generator=generator), torch.randn(ROWS, 40, generator=generator)
    found = [float((output_gradient(output, generator) * noise).sum() ** 2) for _ in range(4000)]
    expected = float(noise.square().sum() / output.square().sum())
    assert np.mean(found) == pytest.approx(expected, rel=0.1)
