import json

import numpy as np
import pytest
from small_models import block_bundle, bundle_of, cached_bundle, cnn_bundle, legality

from pocketport.compress.builder import GraphBuilder
from pocketport.compress.planning.plan import ComponentPlan, Plan, TensorKind, TensorPlan, make_plan
from pocketport.compress.recipe import Recipe
from pocketport.errors import InputError, UsageError


def recipe(*rules: dict[str, object]) -> Recipe:
    return Recipe.model_validate({"name": "test", "rules": list(rules)})


def tensors(plan: ComponentPlan) -> dict[str, TensorPlan]:
    return {t.tensor: t for t in plan.tensors}


def test_roles_of_the_tensors() -> None:
    bundle, _ = block_bundle()
    plan = make_plan(bundle, recipe(), "x/y", legality(norm_scale_dtype="uint8", norm_bias_dtype="int32"))
    t = tensors(plan["main"])
    assert (t["embed.weight"].kind, t["embed.weight"].dtype, t["embed.weight"].axis) == (TensorKind.TABLE, "int8", 0)
    assert (t["q_proj.weight"].kind, t["q_proj.weight"].axis, t["q_proj.weight"].algorithm) == (
        TensorKind.WEIGHT,
        0,
        "mse",
    )
    assert (t["q_proj.bias"].dtype, t["q_proj.bias"].partner) == ("int32", "q_proj.weight")
    assert (t["norm.weight"].dtype, t["norm.bias"].dtype, t["norm.bias"].algorithm) == ("uint8", "int32", "product")
    assert (t["attention_scale"].kind, t["attention_scale"].dtype) == (TensorKind.CONSTANT, "uint16")
    assert "input_ids" not in t and t["attention_bias"].dtype == "uint16"
    assert (t["weights"].algorithm, t["weights"].fixed) == ("min_max", None)  # a Softmax: seldom near 1
    assert t["sigmoid"].fixed == (0.0, 1.0)
    assert all(x.why for x in plan["main"].tensors)


def test_moved_data_shares_the_encoding_of_its_source() -> None:
    bundle, _ = block_bundle()
    t = tensors(make_plan(bundle, recipe(), "x/y", legality())["main"])
    assert {t[n].group for n in ("k_proj", "k.split", "k.heads", "k.transposed", "present_key")} == {"main/k_proj"}
    assert t["q.scale"].group == t["q.heads"].group != t["q_proj"].group


def test_a_softmax_rule_fixes_its_encoding() -> None:
    activations = {"16": {"dtype": "int16", "symmetric": True, "softmax": [1 / 32768, 0]}}
    t = tensors(make_plan(block_bundle()[0], recipe(), "x/y", legality(activations=activations))["main"])
    assert (t["weights"].algorithm, t["weights"].fixed) == ("fixed", (1 / 32768, 0))


def test_float_ops_take_what_only_feeds_them_along() -> None:
    rules = legality(defaults={"main": "w8a8"}, float_ops=["Softmax"])
    t = tensors(make_plan(block_bundle()[0], recipe(), "x/y", rules)["main"])
    floats = {n for n, x in t.items() if x.kind is TensorKind.ACTIVATION and not x.quantized}
    assert floats == {"attention_bias", "scores", "masked_scores", "weights", "v_proj", "v.split", "v.heads"}
    assert t["k.heads"].dtype == t["q.heads"].dtype == t["context"].dtype == "uint8"
    assert t["scores"].why == "Softmax stays float on x/y"


def test_integer_ops_limit_what_is_quantized() -> None:
    rules = legality(defaults={"main": "w8a8"}, integer_ops=["Gemm", "MatMul"])
    t = tensors(make_plan(block_bundle()[0], recipe(), "x/y", rules)["main"])
    quantized = {n for n, x in t.items() if x.kind is TensorKind.ACTIVATION and x.quantized}
    assert quantized == {
        "norm", "q.scale", "q.split", "q.heads", "k_proj", "k.split", "k.heads", "k.transposed", "v_proj", "v.split",
        "v.heads", "weights", "context", "context.rows", "context.merged", "residual", "silu",
    }  # fmt: skip
    assert not t["attention_scale"].quantized and t["q_proj.bias"].dtype == "int32"


def test_clamps_are_fused_and_generic_weights_have_their_axes() -> None:
    t = tensors(make_plan(cnn_bundle()[0], recipe(), "x/y", legality())["main"])
    assert not t["conv"].quantized and not t["depthwise"].quantized and "fused" in t["conv"].why
    assert t["relu"].quantized and t["relu6"].group == t["pool"].group == t["rows"].group
    assert (t["conv.weight"].axis, t["depthwise.weight"].axis, t["fc.weight"].axis) == (0, 0, 1)
    assert (t["fc.bias"].kind, t["fc.bias"].dtype) == (TensorKind.CONSTANT, "uint16")
    assert not t["six"].quantized


def test_a_shortcut_before_a_relu_adds_integers() -> None:
    """A residual block: the sum is quantized behind the clamp, so both of its operands must be integers before it."""
    g = GraphBuilder("main")
    x, w = g.input("pixels", (1, 4, 8, 8)), np.ones((4, 4, 1, 1), np.float32)
    left = g.node("Relu", [g.node("Conv", [x, g.weight("first.weight", w)], "first")], "relu")
    right = g.node("Conv", [left, g.weight("second.weight", w)], "second")
    x = g.node("Relu", [g.node("Add", [right, left], "sum")], "clamped")
    g.output(g.node("Conv", [x, g.weight("third.weight", w)], "third", output="features"))
    t = tensors(make_plan(bundle_of(main=g.finish()), recipe(), "x/y", legality())["main"])
    assert {n for n, x in t.items() if not x.quantized} == {"first", "sum"}
    assert t["sum"].why == "fused: Relu clamps it"


def test_weight_only_schemes_leave_activations_biases_and_norms_float() -> None:
    rules = recipe({"scheme": "w4b32fp32"})
    plan = make_plan(block_bundle()[0], rules, "x/y", legality(norm_scale_dtype="uint8"))
    t = tensors(plan["main"])
    kinds = {x.kind for x in t.values() if x.quantized}
    assert kinds == {TensorKind.WEIGHT, TensorKind.TABLE}
    assert (t["q_proj.weight"].axis, t["q_proj.weight"].block, t["q_proj.weight"].algorithm) == (1, 32, "gptq")
    assert plan.hessians() == {"main": ["context.merged", "norm", "residual", "silu"]}


def test_last_matching_rule_wins_and_head_has_its_own_default() -> None:
    rules = legality(defaults={"prefill": "w4a16", "decode": "w4a16", "head": "w8a16"})
    t = tensors(
        make_plan(cached_bundle()[0], recipe({"name": "q_proj", "scheme": "w8a16", "algorithm": "rtn"}), "x/y", rules)[
            "prefill"
        ]
    )
    assert (t["lm_head.weight"].dtype, t["k_proj.weight"].dtype) == ("int8", "int4")
    assert (t["q_proj.weight"].dtype, t["q_proj.weight"].algorithm, t["q_proj.weight"].why) == (
        "int8",
        "rtn",
        "recipe rule 1",
    )


def test_keys_share_one_group_across_components() -> None:
    plan = make_plan(cached_bundle()[0], recipe(), "x/y", legality())
    groups = {
        tensors(plan[c])[n].group for c, n in (("prefill", "k_proj"), ("decode", "past_key"), ("decode", "k_proj"))
    }
    assert len(groups) == 1
    assert tensors(plan["decode"])["keys"].group in groups  # the Concat of past and present moves them only


@pytest.mark.parametrize(
    ("scheme", "why"),
    [
        ("w2a16", "no 2-bit weights"),
        ("w8b32a16", "only with t/c granularity"),
        ("w4b8a16", "blocks only of 16, 32"),
        ("w8cfp16", "no fp16 activations"),
    ],
)
def test_illegal_schemes_are_errors_that_say_what_is_legal(scheme: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(block_bundle()[0], recipe({"name": "q_proj", "scheme": scheme}), "x/y", legality(float_bits=[32]))
    assert why in caught.value.why and "q_proj" in caught.value.where and "w4b of 16/32" in caught.value.fix


@pytest.mark.parametrize("algorithm", ["hqq", "importance"])
def test_algorithms_of_checkpoint_formats_are_refused_before_anything_is_calibrated(algorithm: str) -> None:
    with pytest.raises(UsageError, match="is not for weights in w8a16"):
        make_plan(block_bundle()[0], recipe({"name": "q_proj", "algorithm": algorithm}), "x/y", legality())


def test_a_fallback_is_taken_only_by_name() -> None:
    rules = recipe({"name": "q_proj", "scheme": "w2a16", "fallback": ["w4ta16", "w4a16"]})
    t = tensors(make_plan(block_bundle()[0], rules, "x/y", legality())["main"])
    assert t["q_proj.weight"].dtype == "int4" and "fallback: it takes no 2-bit weights" in t["q_proj.weight"].why


def test_blocks_must_divide_the_input_and_integers_must_happen() -> None:
    with pytest.raises(UsageError, match="does not divide into blocks of 16"):
        make_plan(cnn_bundle()[0], recipe({"scheme": "w4b16a16"}), "x/y", legality())
    every = ["Gemm", "MatMul", "Gather", "Add", "Mul", "LayerNormalization", "Softmax", "Sigmoid", "Reshape"]
    with pytest.raises(UsageError, match="16-bit activations, but none can be"):
        make_plan(block_bundle()[0], recipe(), "x/y", legality(float_ops=every))


def test_a_legality_that_contradicts_itself_is_an_input_error() -> None:
    with pytest.raises(InputError, match="contradicts it"):
        make_plan(block_bundle()[0], recipe(), "x/y", legality(defaults={"main": "w3a16"}))
    with pytest.raises(InputError, match="no default scheme for 'main'"):
        make_plan(block_bundle()[0], recipe(), "x/y", legality(defaults={"vision": "w8a16"}))


def test_bytes_are_those_of_the_format() -> None:
    rules = recipe({"scheme": "w4b32fp32"})
    weight = tensors(make_plan(block_bundle()[0], rules, "x/y", legality())["main"])["q_proj.weight"]
    assert (weight.bytes_before, weight.bytes_after) == (32 * 32 * 4, 32 * 32 // 2 + 32 * 4 + 16)


def test_plans_round_trip_through_json() -> None:
    plan = make_plan(cached_bundle()[0], recipe(), "x/y", legality())
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with pytest.raises(InputError, match="not a plan"):
        Plan.from_json({"target": "x"})
