"""Low-rank corrections: the optimum by its closed form, the pivot in onnxruntime, what is planned, counted and refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from roundings import as_proto, run, stored
from small_models import ROWS, VOCAB, WIDTH, block_bundle, bundle_of, cached_bundle, legality

from pocketport.calibration.capture import calibrate
from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.graph import constant
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.pivot.low_rank import low_rank
from pocketport.compress.planning.legality import Legality
from pocketport.compress.planning.plan import Plan, TensorKind, make_plan
from pocketport.compress.recipe import Recipe
from pocketport.errors import UsageError

Source = Callable[[], tuple[ModelBundle, list]]
DEFAULTS = dict.fromkeys(("main", "prefill", "decode", "head"), "w8cfp32")


def planned(bundle: ModelBundle, allowed: Legality | None = None, **rule: object) -> Plan:
    recipe = Recipe.model_validate({"name": "t", "rules": [{"scheme": "w4cfp32", "low_rank": 2, **rule}]})
    return make_plan(bundle, recipe, "x/y", allowed or legality(defaults=DEFAULTS, low_rank=True))


def pivot_of(source: tuple[ModelBundle, list], **rule: object) -> tuple[ModelBundle, Plan]:
    bundle, feeds = source
    plan = planned(bundle, **rule)
    statistics = calibrate({c.name: c.graph for c in bundle}, feeds, hessians=plan.hessians())
    return apply_plan(bundle, plan, statistics)[0], plan


def product_bundle() -> tuple[ModelBundle, list[tuple[str, dict[str, np.ndarray]]]]:
    """A convolution, and rows [1, 16, 32] times a weight [K, N]."""
    rng = np.random.default_rng(0)
    g = GraphBuilder("main")
    x = g.input("pixels", (1, 8, 4, 4))
    kernel = rng.standard_normal((32, 8, 1, 1)).astype(np.float32)
    x = g.node("Relu", [g.node("Conv", [x, g.weight("conv.weight", kernel)], "conv")], "relu")
    x = g.reshape(g.transpose(x, (0, 2, 3, 1), "nhwc"), (1, 16, 32), "rows")
    x = g.node(
        "MatMul", [x, g.weight("fc.weight", rng.standard_normal((32, 24)).astype(np.float32))], "fc", output="scores"
    )
    g.output(x)
    feeds = [("main", {"pixels": rng.standard_normal((1, 8, 4, 4)).astype(np.float32)}) for _ in range(4)]
    return bundle_of(main=g.finish()), feeds


def by_closed_form(error: np.ndarray, moment: np.ndarray, rank: int) -> np.ndarray:
    """QERA's theorem 1 as it is written there: truncate the singular values of E·R^½, then divide by R^½."""
    values, vectors = np.linalg.eigh(moment)
    root = vectors * np.sqrt(values) @ vectors.T
    u, s, v = np.linalg.svd(error @ root, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank] @ np.linalg.inv(root)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
@pytest.mark.parametrize("kind", ["full", "diagonal", "none"])
def test_no_product_of_the_rank_leaves_less(shape: tuple[int, int], kind: str) -> None:
    rng = np.random.default_rng(0)
    error = rng.standard_normal(shape).astype(np.float32)
    x = rng.standard_normal((200, shape[1])) @ rng.standard_normal((shape[1], shape[1]))
    moment = {"full": x.T @ x, "diagonal": np.diag((x**2).sum(axis=0)), "none": np.eye(shape[1])}[kind]
    given = {"full": moment, "diagonal": np.diag(moment), "none": None}[kind]

    def left(product: np.ndarray) -> float:
        rest = error - product
        return float(np.trace(rest @ moment @ rest.T))

    for rank in (1, 5):
        found = low_rank(error, given, rank)
        assert found.up.shape == (shape[0], rank) and found.down.shape == (rank, shape[1])
        least = left(by_closed_form(error.astype(np.float64), moment, rank))
        assert left(found.up @ found.down) == pytest.approx(least, rel=1e-3)
    whole = low_rank(error, given, min(shape))
    np.testing.assert_allclose(whole.up @ whole.down, error, atol=1e-4)


@pytest.mark.parametrize("source", [block_bundle, product_bundle])
def test_onnxruntime_adds_the_correction(source: Source, tmp_path: Path) -> None:
    """The pivot gives what the float graph gives with Ŵ + up·down in the place of W, and less error than without."""
    bundle, feeds = source()
    pivot, plan = pivot_of((bundle, feeds))
    plain, _ = pivot_of((bundle, feeds), low_rank=0)
    proto = as_proto(pivot["main"].graph, tmp_path)
    float_graph = bundle["main"].graph
    corrected = {t.tensor: t for t in plan["main"].tensors if t.rank}
    assert corrected and all(t.op in ("Gemm", "MatMul") for t in corrected.values())
    replaced = as_proto(float_graph, tmp_path)
    for tensor in (t for t in plan["main"].tensors if t.kind in (TensorKind.WEIGHT, TensorKind.TABLE)):
        value = stored(proto, tensor.tensor)
        if tensor.rank:
            down, up = stored(proto, f"{tensor.tensor}/down"), stored(proto, f"{tensor.tensor}/up")
            value = value + (up @ down if tensor.channel_axis == 0 else down @ up)
        initializer = next(i for i in replaced.graph.initializer if i.name == tensor.tensor)
        initializer.ClearField("float_data")
        initializer.ClearField("external_data")
        initializer.data_location = 0
        initializer.raw_data = np.ascontiguousarray(value, np.float32).tobytes()
    truth, ours, expected = (
        run(as_proto(float_graph, tmp_path), feeds[0][1]),
        run(proto, feeds[0][1]),
        run(replaced, feeds[0][1]),
    )
    assert list(ours) == list(truth)
    for name in truth:
        np.testing.assert_allclose(ours[name], expected[name], atol=2e-5)
    last = "logits" if "logits" in truth else "scores"
    without = run(as_proto(plain["main"].graph, tmp_path), feeds[0][1])
    assert sqnr_db(truth[last], ours[last]) > sqnr_db(truth[last], without[last])


def test_components_with_common_weights_have_common_corrections() -> None:
    pivot, _ = pivot_of(cached_bundle())
    for name in ("gate_proj.weight", "lm_head.weight"):
        for part in ("down", "up"):
            first, second = (
                np.asarray(constant(pivot[c].graph.graph.initializers[f"{name}/{part}/q"]))
                for c in ("prefill", "decode")
            )
            np.testing.assert_array_equal(first, second)


def test_bytes_are_counted() -> None:
    bundle, _ = block_bundle()
    plans = {t.tensor: t for t in planned(bundle)["main"].tensors}
    plain = {t.tensor: t for t in planned(bundle, low_rank=0)["main"].tensors}
    more = plans["lm_head.weight"].bytes_after - plain["lm_head.weight"].bytes_after
    assert more == 2 * (VOCAB + WIDTH) + (VOCAB + 2) * (4 + 1)  # bytes of both matrices, their scales and zero points
    assert planned(bundle).hessians()["main"] == planned(bundle, algorithm="mse").hessians()["main"]


def test_layers_without_a_place_for_it_say_so() -> None:
    plans = {t.tensor: t for t in planned(product_bundle()[0])["main"].tensors}
    assert plans["conv.weight"].rank == 0 and "for linear layers" in plans["conv.weight"].why
    assert plans["fc.weight"].rank == 2
    small = {t.tensor: t for t in planned(product_bundle()[0], low_rank=20)["main"].tensors}
    assert small["fc.weight"].rank == 0 and "larger than float16" in small["fc.weight"].why
    g = GraphBuilder("main")
    x = g.input("x", (ROWS, WIDTH))
    w = g.weight("w", np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32))
    g.output(g.node("Gemm", [g.node("Gemm", [x, w], "a", transB=1), w], "b", transB=1, output="y"))
    (shared,) = (t for t in planned(bundle_of(main=g.finish()))["main"].tensors if t.kind is TensorKind.WEIGHT)
    assert shared.rank == 0 and "several layers share it" in shared.why


def test_who_takes_none_refuses() -> None:
    bundle, _ = block_bundle()
    with pytest.raises(UsageError, match="no low-rank correction"):
        planned(bundle, legality(defaults=DEFAULTS))
    with pytest.raises(UsageError, match="goes on rounding on samples"):
        planned(bundle, algorithm="gptq", algorithm_options={"sweeps": 1})


def test_integer_inputs_keep_their_correction(tmp_path: Path) -> None:
    """Where products alone are integers the branch reads the rounded input."""
    bundle, feeds = block_bundle()
    allowed = legality(defaults=DEFAULTS, low_rank=True, scaled_inputs=True, integer_ops=["Gemm", "MatMul"])
    results = {}
    for rank in (0, 4):
        recipe = Recipe.model_validate({"name": "t", "rules": [{"scheme": "w4a8", "low_rank": rank}]})
        plan = make_plan(bundle, recipe, "x/y", allowed)
        statistics = calibrate({"main": bundle["main"].graph}, feeds, hessians=plan.hessians(), only=plan.selection())
        pivot, _ = apply_plan(bundle, plan, statistics)
        results[rank] = run(as_proto(pivot["main"].graph, tmp_path), feeds[0][1])["logits"]
    truth = run(as_proto(bundle["main"].graph, tmp_path), feeds[0][1])["logits"]
    assert sqnr_db(truth, results[4]) > sqnr_db(truth, results[0]) + 0.5


def test_a_graph_output_keeps_its_name_and_readers_read_the_sum() -> None:
    pivot, _ = pivot_of(block_bundle())
    graph: ir.Graph = pivot["main"].graph.graph
    total = graph.outputs[0].producer()
    assert graph.outputs[0].name == "logits" and total is not None and total.op_type == "Add"
    assert [v.name for v in total.inputs if v is not None] == ["logits/rounded", "logits/by_up"]
