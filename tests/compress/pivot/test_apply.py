"""Pivots: they run in onnxruntime, are close to float, and have exactly the form that backends read."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import block_bundle, bundle_of, cached_bundle, cnn_bundle, legality

from pocketport.calibration.capture import calibrate
from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.diagnosis.compare import compare_graphs
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.graph import constant, save_graph
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import Recipe
from pocketport.errors import InputError, VerificationError

INT16 = {"16": {"dtype": "int16", "symmetric": True, "softmax": [1 / 32768, 0]}}
NORMS = {"norm_scale_dtype": "uint8", "norm_bias_dtype": "int32"}


def quantized(
    bundle_and_feeds: tuple[ModelBundle, list], scheme: str | None = None, **changes: object
) -> tuple[ModelBundle, list, object]:
    bundle, feeds = bundle_and_feeds
    rules = [{"scheme": scheme}] if scheme else []
    plan = make_plan(bundle, Recipe.model_validate({"name": "t", "rules": rules}), "x/y", legality(**changes))
    statistics = calibrate({c.name: c.graph for c in bundle}, feeds, hessians=plan.hessians())
    pivot, table = apply_plan(bundle, plan, statistics)
    return pivot, feeds, table


def worst_db(bundle: ModelBundle, pivot: ModelBundle, feeds: list) -> float:
    result = []
    for component in bundle:
        float_run, quantized_run = OrtExecutor(component.graph), OrtExecutor(pivot[component.name].graph)
        for name, values in feeds:
            if name == component.name:
                got = quantized_run.run(values)
                result += [sqnr_db(v, got[k]) for k, v in float_run.run(values).items()]
    return min(result)


@pytest.mark.parametrize(
    ("make", "scheme", "changes", "least"),
    [
        (block_bundle, None, NORMS, 38),
        (block_bundle, None, {"activations": INT16}, 38),
        (block_bundle, "w4a16", {}, 13),
        (block_bundle, "w4b16fp32", {}, 15),
        (block_bundle, "w8cfp32", {}, 38),
        (block_bundle, "w8tfp32", {}, 35),
        (block_bundle, "w8a8", {"float_ops": ["Softmax"]}, 27),
        (block_bundle, "w8a8", {"integer_ops": ["Gemm", "MatMul"]}, 29),
        (block_bundle, None, {"tables": {"dtype": "activation"}}, 38),
        (cnn_bundle, None, {}, 38),
        (cnn_bundle, "w8a8", {}, 25),
        (cnn_bundle, "w4a16", {}, 13),
        (cached_bundle, None, {}, 38),
    ],
)
def test_pivots_run_and_are_close_to_float(make: object, scheme: str | None, changes: dict, least: float) -> None:
    source = make()  # type: ignore[operator]
    pivot, feeds, _ = quantized(source, scheme, **changes)
    for component in pivot:
        onnx.checker.check_model(ir.to_proto(component.graph), full_check=True)
    assert worst_db(source[0], pivot, feeds) > least


def test_blocks_with_levels_reach_the_bias_too() -> None:
    weights = {"4": {"dtype": "int4", "granularities": ["b"], "blocks": [16], "block_scale_levels": 16}}
    source = block_bundle()
    pivot, feeds, table = quantized(source, None, weights=weights, defaults={"main": "w4b16a16"})
    scale = table["main/q_proj.weight"].scale  # type: ignore[index]
    unit = scale.max(axis=1, keepdims=True) / 16
    assert np.allclose(scale / unit, np.rint(scale / unit), atol=1e-4)
    assert np.allclose(table["main/q_proj.bias"].scale, table["main/norm"].scale * unit[:, 0])  # type: ignore[index]
    assert worst_db(source[0], pivot, feeds) > 13


def test_the_form_of_the_pivot() -> None:
    pivot, _, table = quantized(block_bundle(), **NORMS)
    graph = pivot["main"].graph.graph
    for node in graph:
        if node.op_type == "QuantizeLinear":
            (dequantizer,) = [n for n, _ in node.outputs[0].uses()]
            assert dequantizer.op_type == "DequantizeLinear" and list(node.inputs[1:]) == list(dequantizer.inputs[1:])
            assert node.inputs[1].shape.rank() == 0
        elif node.op_type != "DequantizeLinear":
            assert all(
                v.producer() is not None and v.producer().op_type == "DequantizeLinear"
                for v in node.inputs if v is not None and v.dtype == ir.DataType.FLOAT
            )  # fmt: skip
    assert [v.name for v in graph.outputs] == ["logits", "present_key"]
    assert graph.outputs[0].producer().op_type == "DequantizeLinear"
    bias, x, w = (table[f"main/{n}"] for n in ("q_proj.bias", "norm", "q_proj.weight"))  # type: ignore[index]
    assert bias.dtype == "int32" and np.allclose(bias.scale, x.scale * w.scale)
    assert not any(
        v.const_value.dtype == ir.DataType.FLOAT and v.shape.rank() == 2 for v in graph.initializers.values()
    )


def test_int4_is_packed_two_to_the_byte(tmp_path: Path) -> None:
    pivot, _, _ = quantized(block_bundle(), "w4cfp32")
    save_graph(pivot["main"].graph, tmp_path / "main.onnx")
    model = onnx.load(tmp_path / "main.onnx")
    stored = {i.name: i for i in model.graph.initializer}["q_proj.weight/q"]
    assert stored.data_type == onnx.TensorProto.INT4 and len(stored.raw_data) == 32 * 32 // 2
    integers = constant(pivot["main"].graph.graph.initializers["q_proj.weight/q"])
    assert np.array_equal(onnx.numpy_helper.to_array(stored).astype(int), np.asarray(integers).astype(int))
    low = np.frombuffer(stored.raw_data, np.uint8) & 15
    assert np.array_equal((low ^ 8).astype(int) - 8, np.asarray(integers).astype(int).ravel()[::2])


def test_shared_weights_and_caches_are_the_same_in_both_components() -> None:
    defaults = {"prefill": "w4a16", "decode": "w4a16", "head": "w8a16"}
    pivot, _, table = quantized(cached_bundle(), defaults=defaults)
    for name in ("q_proj.weight/q", "k_proj.weight/q", "k_proj.weight/scale"):
        first, second = (np.asarray(constant(pivot[c].graph.graph.initializers[name])) for c in ("prefill", "decode"))
        assert np.array_equal(first, second)
    keys = [table[n] for n in ("prefill/present_key", "decode/past_key", "decode/keys", "decode/present_key")]  # type: ignore[index]
    assert len({(float(k.scale), int(k.zero_point)) for k in keys}) == 1


def test_same_input_same_bytes_and_the_source_is_untouched(tmp_path: Path) -> None:
    digests = []
    for run in ("one", "two"):
        source = block_bundle()
        before = ir.to_proto(source[0]["main"].graph).SerializeToString()
        pivot, _, table = quantized(source, "w4a16")
        assert ir.to_proto(source[0]["main"].graph).SerializeToString() == before
        pivot.save(tmp_path / run)
        table.save(tmp_path / run / "encodings.npz")  # type: ignore[attr-defined]
        files = sorted(p for p in (tmp_path / run).rglob("*") if p.is_file())
        digests.append([hashlib.sha256(p.read_bytes()).hexdigest() for p in files])
    assert digests[0] == digests[1]


def test_a_bias_too_large_for_int32_widens_its_weights() -> None:
    bundle, feeds = block_bundle()
    bias = bundle["main"].graph.graph.initializers["q_proj.bias"]
    weight = bundle["main"].graph.graph.initializers["q_proj.weight"]
    values, weights = constant(bias).copy(), constant(weight).copy()
    values[0], weights[0] = 5.0, 1e-9
    bias.const_value, weight.const_value = ir.Tensor(values), ir.Tensor(weights)
    pivot, _, table = quantized((bundle, feeds))
    stored = np.asarray(constant(pivot["main"].graph.graph.initializers["q_proj.bias/q"]))
    assert stored[0] * table["main/q_proj.bias"].scale[0] == pytest.approx(5.0, rel=1e-4)  # type: ignore[index]
    assert worst_db(bundle, pivot, feeds) > 38


def test_missing_calibration_and_a_second_quantization_are_errors() -> None:
    bundle, feeds = cached_bundle()
    plan = make_plan(bundle, Recipe(name="t"), "x/y", legality())
    statistics = calibrate({c.name: c.graph for c in bundle}, feeds[:3])
    with pytest.raises(InputError, match="calibration saw no values"):
        apply_plan(bundle, plan, statistics)
    bundle, feeds = block_bundle()
    plan = make_plan(bundle, Recipe(name="t"), "x/y", legality())
    pivot, _ = apply_plan(bundle, plan, calibrate({"main": bundle["main"].graph}, feeds))
    with pytest.raises((VerificationError, InputError)):
        apply_plan(pivot, plan, calibrate({"main": bundle["main"].graph}, feeds))


def test_nothing_to_quantize_is_an_error_unless_float_was_asked_for() -> None:
    g = GraphBuilder("main")
    g.output(g.node("Tanh", [g.input("x", (2, 2))], "tanh", output="y"))
    bundle, feeds = bundle_of(main=g.finish()), [("main", {"x": np.ones((2, 2), np.float32)})]
    statistics = calibrate({"main": bundle["main"].graph}, feeds)
    for scheme, fails in (("w8cfp32", True), ("float", False)):
        plan = make_plan(bundle, Recipe.model_validate({"name": "t", "rules": [{"scheme": scheme}]}), "x/y", legality())
        if fails:
            with pytest.raises(VerificationError, match="would change nothing"):
                apply_plan(bundle, plan, statistics)
        else:
            assert len(apply_plan(bundle, plan, statistics)[1]) == 0


def test_gptq_without_its_hessian_names_the_tensor() -> None:
    bundle, feeds = block_bundle()
    plan = make_plan(bundle, Recipe.model_validate({"name": "t", "rules": [{"scheme": "w4cfp32"}]}), "x/y", legality())
    with pytest.raises(InputError) as caught:
        apply_plan(bundle, plan, calibrate({"main": bundle["main"].graph}, feeds))
    assert caught.value.where == "tensor q_proj.weight"


@pytest.mark.parametrize("observer", ["min_max", "mse"])
def test_a_plans_selection_is_all_that_it_needs(observer: str) -> None:
    for bundle, feeds in (block_bundle(), cnn_bundle()):
        recipe = Recipe.model_validate({"name": "t", "rules": [{"scheme": "w8a8", "observer": observer}]})
        plan = make_plan(bundle, recipe, "x/y", legality())
        graphs = {"main": bundle["main"].graph}
        whole, chosen = calibrate(graphs, feeds), calibrate(graphs, feeds, only=plan.selection())
        assert len(chosen.histograms) <= len(whole.histograms)
        assert any(h.total for h in chosen.histograms.values()) == (observer == "mse")
        (_, expected), (_, table) = (apply_plan(bundle, plan, seen) for seen in (whole, chosen))
        assert set(table) == set(expected)
        for name in table:
            np.testing.assert_allclose(
                table[name].scale, expected[name].scale, rtol=1e-2 if observer == "mse" else 1e-5
            )


def test_an_observer_that_needs_counts_says_so() -> None:
    bundle, feeds = cnn_bundle()
    graphs = {"main": bundle["main"].graph}
    extremes, counts = (
        make_plan(bundle, Recipe.model_validate({"name": "t", "rules": [{"observer": name}]}), "x/y", legality())
        for name in ("min_max", "entropy")
    )
    with pytest.raises(InputError, match="counted none of its values, which entropy needs"):
        apply_plan(bundle, counts, calibrate(graphs, feeds, only=extremes.selection()))


def test_progress_counts_the_tensors() -> None:
    bundle, feeds = cnn_bundle()
    plan = make_plan(bundle, Recipe(name="t"), "x/y", legality())
    seen: list[int] = []
    apply_plan(bundle, plan, calibrate({"main": bundle["main"].graph}, feeds), progress=seen.append)
    assert seen == list(range(1, sum(t.quantized for t in plan["main"].tensors) + 1))


def test_comparison_finds_the_damaged_layer() -> None:
    source = block_bundle()
    rules = [{"scheme": "w8cfp32"}, {"name": "o_proj", "scheme": "w4cfp32", "algorithm": "rtn"}]
    plan = make_plan(source[0], Recipe.model_validate({"name": "t", "rules": rules}), "x/y", legality())
    statistics = calibrate({"main": source[0]["main"].graph}, source[1])
    pivot, _ = apply_plan(source[0], plan, statistics)
    found = compare_graphs(source[0]["main"].graph, pivot["main"].graph, [f for _, f in source[1]])
    by_name = {c.tensor: c for c in found}
    assert min(found, key=lambda c: c.local_db).tensor == "o_proj"
    assert by_name["residual"].local_db == 200.0 and by_name["residual"].cumulative_db < 60
    assert [c.tensor for c in found][:2] == ["embed", "norm"] and "k.heads" not in by_name


def test_cumulative_error_is_that_of_the_outputs() -> None:
    source = block_bundle()
    pivot, feeds, _ = quantized(source, **NORMS)
    (logits,) = [
        c for c in compare_graphs(source[0]["main"].graph, pivot["main"].graph, [feeds[0][1]]) if c.tensor == "logits"
    ]
    runs = [OrtExecutor(b["main"].graph).run(feeds[0][1])["logits"] for b in (source[0], pivot)]
    assert logits.cumulative_db == pytest.approx(sqnr_db(*runs), abs=0.01)


def test_pointwise_convolutions_are_rounded_like_linear_layers() -> None:
    """GPTQ with the Hessian of a 1×1 convolution's channels gives the integers of the linear layer on its pixels."""
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((6, 8)).astype(np.float32)
    x = [
        rng.standard_normal((1, 8, 3, 5)).astype(np.float32) @ rng.standard_normal((5, 5)).astype(np.float32)
        for _ in range(4)
    ]
    integers = []
    for convolution in (True, False):
        g = GraphBuilder("main")
        if convolution:
            h = g.node(
                "Conv", [g.input("x", (1, 8, 3, 5)), g.weight("w", weight.reshape(6, 8, 1, 1))], "layer", output="y"
            )
        else:
            h = g.node("Gemm", [g.input("x", (15, 8)), g.weight("w", weight)], "layer", transB=1, output="y")
        g.output(h)
        feeds = [("main", {"x": v if convolution else v.reshape(8, 15).T.copy()}) for v in x]
        pivot, _, _ = quantized((bundle_of(main=g.finish()), feeds), "w4a16")
        integers.append(np.asarray(constant(pivot["main"].graph.graph.initializers["w/q"]), np.int32).reshape(6, 8))
    assert (integers[0] == integers[1]).mean() > 0.97  # ties of float32 sums in another order
    nearest = np.rint(weight / (np.abs(weight).max(axis=1, keepdims=True) / 7))
    assert (integers[0] != nearest).any()
