"""What there is to choose on a target, on prefill and decode that share their weights."""

import numpy as np
import pytest
import torch
from small_models import ROWS, WIDTH, bundle_of, cached_bundle, legality

from pocketport.calibration.capture import calibrate
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.mixed_precision.allocation import allocate
from pocketport.compress.mixed_precision.outputs import output_gradient
from pocketport.compress.mixed_precision.sensitivity import MODELS, Inputs
from pocketport.compress.mixed_precision.target import target_layers
from pocketport.compress.pivot.apply import apply_component
from pocketport.compress.pivot.input_scaling import input_factors
from pocketport.compress.pivot.weights import QuantizedTensor
from pocketport.compress.planning.plan import TensorKind, make_plan
from pocketport.compress.recipe import Recipe, Rule, TargetSection, with_rules
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
    schemes = ("w8a16", "w4b16a16", "w4a16")
    made = found.rounded("prefill/q_proj.weight", schemes, weight, Inputs(torch.eye(WIDTH), 1), {})
    errors = {scheme: float((rounded - weight).square().sum()) for scheme, rounded in zip(schemes, made, strict=True)}
    assert 0 < errors["w8a16"] < 0.02 * errors["w4b16a16"] < 0.02 * errors["w4a16"]


@pytest.mark.parametrize(("scheme", "algorithm"), [("w8a8", "mse"), ("w4b16a8", "gptq")])
def test_errors_are_those_of_the_weights_that_are_written(scheme: str, algorithm: str) -> None:
    """Where inputs are scaled, the layer's weight is multiplied before it is rounded: as the pivot has it."""
    rng = np.random.default_rng(0)
    g = GraphBuilder("main")
    gain = np.geomspace(0.02, 4, WIDTH).astype(np.float32)
    x = g.node("Mul", [g.node("Sigmoid", [g.input("x", (ROWS, WIDTH))], "positive"), g.weight("gain", gain)], "wide")
    real = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
    g.output(g.node("MatMul", [x, g.weight("w", real)], "layer", output="y"))
    bundle = bundle_of(main=g.finish())
    chip = legality(defaults={"main": "w8a8", "head": "w8a8"}, integer_ops=["MatMul"], scaled_inputs=True)
    base = Recipe(name="base", rules=[Rule(algorithm=algorithm)])  # type: ignore[arg-type]
    found = target_layers(bundle, base, TARGET, chip, [scheme])
    assert found.scales_inputs
    feeds = [("main", {"x": rng.standard_normal((ROWS, WIDTH)).astype(np.float32)}) for _ in range(8)]
    plan = make_plan(bundle, with_rules(base, TARGET, [Rule(name="layer", scheme=scheme)]), TARGET, chip)
    statistics = calibrate({"main": bundle["main"].graph}, feeds, hessians=plan.hessians())
    inputs = np.concatenate([gain / (1 + np.exp(-f["x"])) for _, f in feeds])
    (rounded,) = found.rounded(
        "main/w", [scheme], torch.from_numpy(real.T.copy()), Inputs(torch.from_numpy(inputs.T @ inputs), len(inputs)),
        found.factors(bundle, statistics),
    )  # fmt: skip
    known: dict[str, QuantizedTensor] = {}
    apply_component(bundle, plan, statistics, "main", known)
    (written,) = known.values()
    (factors,) = input_factors(bundle, plan, statistics).values()
    stands_for = written.encoding.dequantize(written.integers) / factors[:, None]
    assert factors.max() / factors.min() > 3
    np.testing.assert_allclose(rounded.T, stands_for, rtol=1e-4, atol=1e-6)


def test_what_can_not_be_chosen_is_an_error() -> None:
    bundle, _ = cached_bundle()
    with pytest.raises(UsageError, match="no layer takes w3a16"):
        target_layers(bundle, BASE, TARGET, legality(), ["w8a16", "w3a16"])
    with pytest.raises(UsageError, match="nothing to choose"):
        target_layers(bundle, Recipe(name="float", rules=[Rule(scheme="float")]), TARGET, legality(), None)
    g = GraphBuilder("main")
    steps = g.node("Round", [g.input("x", (ROWS, WIDTH))], "steps")
    g.output(g.node("MatMul", [steps, g.weight("w", np.eye(WIDTH, dtype=np.float32))], "layer", output="y"))
    with pytest.raises(InputError, match="gradients can't be taken through Round"):
        target_layers(bundle_of(main=g.finish()), BASE, TARGET, legality(), None)


def test_random_signs_measure_noise_over_signal() -> None:
    generator = torch.Generator().manual_seed(1)
    output, noise = torch.randn(ROWS, 40, generator=generator), torch.randn(ROWS, 40, generator=generator)
    found = [float((output_gradient(output, generator) * noise).sum() ** 2) for _ in range(4000)]
    expected = float(noise.square().sum() / output.square().sum())
    assert np.mean(found) == pytest.approx(expected, rel=0.1)


def test_palettes_are_tried_where_the_target_takes_them() -> None:
    bundle, _ = cached_bundle()
    takes = legality(palettes={"bits": [2, 4], "grouped": True})
    found = target_layers(bundle, BASE, TARGET, takes, None)
    plain = target_layers(bundle, BASE, TARGET, legality(), None)
    assert found.plans.keys() - plain.plans.keys() == {"w2pa16", "w4pa16", "w2p16a16", "w4p16a16"}
    weight = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    schemes = ("w4a16", "w2p16a16", "w4p16a16")
    made = found.rounded("prefill/q_proj.weight", schemes, weight, Inputs(torch.eye(WIDTH), 1), {})
    scaled, coarse, fine = made
    assert all(len(channels.unique()) <= 4 for channels in coarse.split(16))
    assert (fine - weight).square().sum() < (scaled - weight).square().sum() < (coarse - weight).square().sum()
    rules = [Rule(component="prefill", name="q_proj", scheme="w2p16a16"), Rule(name="k_proj", scheme="w4pa16")]
    plan = make_plan(bundle, with_rules(BASE, TARGET, rules), TARGET, takes)
    own = {t.node: t.bytes_after for t in plan["prefill"].tensors if t.kind is TensorKind.WEIGHT}
    costs = {layer.name: layer.costs for layer in found.layers}
    assert own["q_proj"] * 2 == costs["q_proj"]["w2p16a16"] and own["k_proj"] * 2 == costs["k_proj"]["w4pa16"]
    mse = BASE.model_copy(update={"rules": [*BASE.rules, Rule(algorithm="mse")]})
    assert target_layers(bundle, mse, TARGET, takes, None).plans.keys() == plain.plans.keys()
    with pytest.raises(UsageError, match="'mse' is not for weights in w4pa16"):
        target_layers(bundle, mse, TARGET, takes, ["w4pa16"])
