"""Palettes from the plan to the pivot: planned, refused, run by onnxruntime, counted, and told by `debug` and `compare`."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roundings import as_proto, quantized, run
from small_models import ROWS, WIDTH, block_bundle, bundle_of, cached_bundle, cnn_bundle, legality

from pocketport.calibration.capture import calibrate
from pocketport.calibration.encodings import EncodingTable, Palette
from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.diagnosis.remedies import remedies
from pocketport.compress.diagnosis.switches import switches_of
from pocketport.compress.diagnosis.tensors import FloatProbe, fits, tensor_errors
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.graph import constant, load_graph, save_graph
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.pivot.palettes import stored_palette, stored_palettes
from pocketport.compress.pivot.qdq import QdqWriter
from pocketport.compress.planning.legality import Legality
from pocketport.compress.planning.plan import Plan, TensorKind, make_plan
from pocketport.compress.recipe import Recipe
from pocketport.debugging.comparison import encoding_changes
from pocketport.errors import InputError, UsageError
from pocketport.formats import FORMATS, format_named
from pocketport.profiles.cost import component_cost
from pocketport.targets.contract import Target
from pocketport.targets.example import backend as example

PALETTES = {"bits": [1, 2, 3, 4, 6, 8]}


def with_palettes(**changes: object) -> Legality:
    return legality(palettes=PALETTES, **changes)


def planned(bundle: ModelBundle, scheme: str, allowed: Legality | None = None, **rule: object) -> Plan:
    recipe = Recipe.model_validate({"name": "t", "rules": [{"scheme": scheme, **rule}]})
    return make_plan(bundle, recipe, "x/y", allowed or with_palettes())


def pivot_of(source: tuple[ModelBundle, list], scheme: str, **rule: object) -> tuple[ModelBundle, EncodingTable, Plan]:
    bundle, feeds = source
    plan = planned(bundle, scheme, **rule)
    statistics = calibrate({c.name: c.graph for c in bundle}, feeds, hessians=plan.hessians())
    return *apply_plan(bundle, plan, statistics), plan


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 4, 6, 8]), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.booleans(),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_onnxruntime_looks_up_what_the_palette_says(
    bits: int, groups: int, group: int, columns: int, turned: bool, seed: int
) -> None:
    """Every width and grouping, along both dimensions: the same graph with the dense weight gives the same numbers."""
    rng = np.random.default_rng(seed)
    shape = (columns, groups * group) if turned else (groups * group, columns)
    table = np.sort(rng.standard_normal((groups, 1 << bits)).astype(np.float16), axis=1).astype(np.float32)
    indices, palette = rng.integers(0, 1 << bits, shape), Palette(table, int(turned))
    g = GraphBuilder("main")
    weight = g.weight("w", np.zeros(shape, np.float32))
    g.output(g.node("Add", [weight, g.input("x", shape)], "sum", output="y"))
    model = g.finish()
    QdqWriter(model).palette(model.graph.initializers["w"], indices, palette)
    model.graph.sort()
    expected = np.empty(shape, np.float32)
    for place in np.ndindex(*shape):  # by the definition
        expected[place] = table[place[int(turned)] // group, indices[place]]
    np.testing.assert_array_equal(palette.dequantize(indices), expected)
    np.testing.assert_array_equal(OrtExecutor(model).run({"x": np.zeros(shape, np.float32)})["y"], expected)
    (found,) = stored_palettes(model.graph).values()
    assert found.bits == bits and found.groups == groups
    np.testing.assert_array_equal(np.asarray(constant(found.indices)).astype(int), indices)
    np.testing.assert_array_equal(found.palette().dequantize(indices), expected)


@pytest.mark.parametrize(
    ("make", "scheme", "least"),
    [
        (block_bundle, "w4p8fp32", 15), (block_bundle, "w3pfp32", 9), (block_bundle, "w6pfp32", 26), (block_bundle, "w2p1fp32", 5),
        (block_bundle, "w4pa8", 13), (cnn_bundle, "w4pa16", 13), (cached_bundle, "w4p4fp32", 14),
    ],
)  # fmt: skip
def test_pivots_run_and_are_close_to_float(make: object, scheme: str, least: float) -> None:
    source = make()  # type: ignore[operator]
    pivot, table, plan = pivot_of(source, scheme)
    for component in pivot:
        onnx.checker.check_model(ir.to_proto(component.graph), full_check=True)
        weights = [t for t in plan[component.name].tensors if t.granularity == "p"]
        assert len(stored_palettes(component.graph.graph)) == len(weights) > 0
        assert {f"{component.name}/{t.tensor}" for t in weights} <= set(table.palettes)
    runs = [
        (OrtExecutor(source[0][name].graph).run(values), OrtExecutor(pivot[name].graph).run(values))
        for name, values in source[1]
    ]
    assert min(sqnr_db(real, got[key]) for floats, got in runs for key, real in floats.items()) > least


def test_shared_weights_have_one_palette() -> None:
    pivot, table, _ = pivot_of(cached_bundle(), "w4p8fp32")
    for part in ("q", "table", "offset"):
        first, second = (pivot[c].graph.graph.initializers[f"q_proj.weight/{part}"] for c in ("prefill", "decode"))
        np.testing.assert_array_equal(np.asarray(constant(first)), np.asarray(constant(second)))
    name = "q_proj.weight"
    np.testing.assert_array_equal(table.palettes[f"prefill/{name}"].table, table.palettes[f"decode/{name}"].table)


def test_the_plan_says_how_and_counts_packed_bytes() -> None:
    bundle, _ = block_bundle()
    plan = {t.tensor: t for t in planned(bundle, "w3p8fp16")["main"].tensors}
    weight = plan["q_proj.weight"]
    assert (weight.dtype, weight.bits, weight.granularity, weight.block) == ("uint3", 3, "p", 8)
    assert (weight.algorithm, weight.channel_axis) == ("gptq", 0)
    assert weight.bytes_after == WIDTH * WIDTH * 3 // 8 + WIDTH // 8 * 8 * 2
    assert plan["embed.weight"].dtype == "int8"  # tables that are looked up have their own format
    assert {t.tensor: t.algorithm for t in planned(bundle, "w6pfp16")["main"].tensors}["q_proj.weight"] == "kmeans"
    bias = {t.tensor: t for t in planned(bundle, "w4pa8")["main"].tensors}["q_proj.bias"]
    assert not bias.quantized and "palette" in bias.why
    assert Plan.from_json(planned(bundle, "w3p8fp16").to_json()) == planned(bundle, "w3p8fp16")


def test_a_palette_larger_than_the_weight_is_left_out() -> None:
    plan = {t.tensor: t for t in planned(cnn_bundle()[0], "w8pa8")["main"].tensors}
    assert plan["conv.weight"].dtype == "float" and "larger than float16" in plan["conv.weight"].why
    assert plan["conv.bias"].dtype == "float"


@pytest.mark.parametrize(
    ("scheme", "allowed", "why"),
    [
        ("w4pfp16", legality(), "it takes no palettes"),
        ("w4pfp16", legality(palettes={"bits": [2]}), "it takes no palettes of 4 bits"),
        ("w4p8fp16", legality(palettes={"bits": [4], "grouped": False}), "one palette a weight only"),
        ("w4p24fp16", with_palettes(), "do not divide into groups of 24"),
    ],
)
def test_what_a_target_does_not_take_is_refused_with_the_reason(scheme: str, allowed: Legality, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        planned(block_bundle()[0], scheme, allowed)
    assert caught.value.fix


@pytest.mark.parametrize(("scheme", "algorithm"), [("w4pfp16", "mse"), ("w4cfp16", "kmeans"), ("w4pfp16", "hqq")])
def test_an_algorithm_for_other_weights_is_refused(scheme: str, algorithm: str) -> None:
    with pytest.raises(UsageError, match="is not for weights in"):
        planned(block_bundle()[0], scheme, algorithm=algorithm)


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"gguf"}))  # gguf chooses with the whole model in view
def test_checkpoint_formats_have_no_place_for_them(name: str) -> None:
    form, variant = format_named(name)
    with pytest.raises(UsageError) as caught:
        form.choose("a.q_proj.weight", (64, 1536), "prefill", "linear", variant, "w4p16fp16")
    assert "w4p16fp16" in str(caught.value) and caught.value.fix


def test_weights_beyond_float16_are_refused_by_name() -> None:
    g = GraphBuilder("main")
    big = np.full((8, WIDTH), 1e5, np.float32)
    g.output(g.node("Gemm", [g.input("x", (ROWS, WIDTH)), g.weight("big", big)], "y", transB=1, output="out"))
    bundle = bundle_of(main=g.finish())
    with pytest.raises(InputError, match="palettes hold float16") as caught:
        pivot_of((bundle, [("main", {"x": np.ones((ROWS, WIDTH), np.float32)})]), "w2pfp32", algorithm="kmeans")
    assert "big" in caught.value.where


def test_a_target_without_palettes_says_so_about_a_pivot_that_has_them() -> None:
    pivot, _, _ = pivot_of(block_bundle(), "w4p8fp32")
    found = [
        d for d in example.check("main", pivot["main"].graph, Target("example", "one")) if d.code.endswith("palettes")
    ]
    assert len(found) == 1 and "6 weight(s): " in found[0].where and found[0].fix


def test_files_and_tables_come_back(tmp_path: Path) -> None:
    pivot, table, _ = pivot_of(block_bundle(), "w4p8fp32")
    save_graph(pivot["main"].graph, tmp_path / "main.onnx")
    table.save(tmp_path / "encodings.npz")
    again, read = load_graph(tmp_path / "main.onnx"), EncodingTable.load(tmp_path / "encodings.npz")
    weights = {str(p.indices.name).removesuffix("/q"): p for p in stored_palettes(again.graph).values()}
    assert set(read.palettes) == {f"main/{name}" for name in weights}
    for name, stored in weights.items():
        np.testing.assert_array_equal(stored.palette().table, read.palettes[f"main/{name}"].table)
        np.testing.assert_array_equal(read.constant(f"main/{name}").table, table.palettes[f"main/{name}"].table)  # type: ignore[union-attr]
    assert set(read.encodings) == set(table.encodings)


def test_a_device_stores_packed_indices_and_tables() -> None:
    g = GraphBuilder("main")
    weight = g.weight("w", np.zeros((16, 32), np.float32))
    g.output(g.node("Gemm", [g.input("x", (4, 32)), weight], "y", transB=1, output="out"))
    model = g.finish()
    before = component_cost(model)
    palette = Palette(np.arange(16, dtype=np.float32).reshape(2, 8), 0)
    QdqWriter(model).palette(model.graph.initializers["w"], np.zeros((16, 32), np.int32), palette)
    model.graph.sort()
    after = component_cost(model)
    size = 16 * 32 * 3 // 8 + 2 * 8 * 2
    assert (after.weight_bytes, after.streamed_bytes) == (size, size)
    assert (after.parameters, after.macs, after.ops) == (before.parameters, before.macs, before.ops) == (512, 2048, 1)


def test_what_only_looks_like_a_palette_is_none() -> None:
    """A table of embeddings, tables that do not begin at even distances, indices that are computed."""
    g = GraphBuilder("main")
    table = g.weight("table", np.zeros(8, np.float32))
    ids = g.input("ids", (3,), ir.DataType.INT32)
    g.output(g.node("Gather", [table, ids], "looked.up", axis=0, output="a"))
    stored = g.weight("stored", np.zeros((2, 3), np.uint8))
    index = g.node("Cast", [stored], "index", to=ir.DataType.INT32.value)
    uneven = g.node("Add", [index, g.weight("starts", np.array([[0], [3]], np.int32))], "uneven")
    g.output(g.node("Gather", [table, uneven], "uneven.look", axis=0, output="b"))
    model = g.finish()
    assert stored_palettes(model.graph) == {} and stored_palette(None) is None


def test_debug_measures_and_counts_palettes(tmp_path: Path) -> None:
    source = block_bundle()
    bundle, pivot, plan, table = quantized(source, "w3p8fp32", palettes=PALETTES)
    graph, feeds = bundle["main"].graph, [f for _, f in source[1]]
    probe = FloatProbe(graph, pivot["main"].graph, plan["main"], table)
    found = {e.plan.tensor: e for e in tensor_errors(probe, pivot["main"].graph, feeds)}
    proto, pivot_proto = as_proto(graph, tmp_path), as_proto(pivot["main"].graph, tmp_path)
    for name in ("q_proj.weight", "gate_proj.weight"):
        node = next(n for n in proto.graph.node if name in n.input)
        x = np.concatenate([run(proto, f, [node.input[0]])[node.input[0]] for f in feeds])
        real = probe.real(name)
        read = run(pivot_proto, feeds[0], [f"{name}/dq"])[f"{name}/dq"]
        bias = np.asarray(constant(graph.graph.initializers[node.input[2]])) if len(node.input) > 2 else 0.0
        kept = 0.0 if len(node.input) < 3 else np.asarray(probe.rounded(node.input[2]))
        signal, noise = x @ real.T + bias, x @ (real - read).T + (bias - kept)
        expected = 10 * np.log10(np.square(signal).sum() / np.square(noise).sum())
        assert found[name].local_db == pytest.approx(expected, abs=0.05)
    fit = fits(probe, [t for t in plan["main"].tensors if t.tensor == "q_proj.weight"], feeds)["q_proj.weight"]
    assert (fit.of_levels, fit.levels) == (8, 8) and 0 < fit.clipped < 0.2
    assert fit.before.sum() == fit.after.sum() == WIDTH * WIDTH


def test_remedies_are_other_palettes() -> None:
    bundle, _ = block_bundle()
    plan = planned(bundle, "w3pfp32", algorithm="kmeans")
    switch = next(s for s in switches_of(plan["main"]) if s.leader.tensor == "o_proj.weight")
    assert switch.leader.kind is TensorKind.WEIGHT
    named = {r.name: r.rules[0] for r in remedies("main", switch, with_palettes(), columns=WIDTH)}
    assert {
        "algorithm gptq",
        "palettes of 16 channels",
        "palettes of 1 channels",
        "4-bit palette",
        "8-bit weight",
    } <= set(named)
    assert not any("blocks" in name or name == "algorithm mse" for name in named)
    assert named["palettes of 16 channels"].scheme == "w3p16fp32" and named["4-bit palette"].scheme == "w4pfp32"
    assert named["8-bit weight"].scheme == "w8cfp32"
    for rule in named.values():
        make_plan(bundle, Recipe(name="t", rules=[rule]), "x/y", with_palettes())


def test_compare_tells_tables_apart() -> None:
    table = np.array([[-1.0, 0.0, 0.5, 1.0]], np.float32)
    first = EncodingTable(
        palettes={"m/same": Palette(table, 0), "m/wider": Palette(table, 0), "m/gone": Palette(table, 0)}
    )
    second = EncodingTable(palettes={"m/same": Palette(table, 0), "m/wider": Palette(table * 2, 0)})
    changes, same = encoding_changes(first, second)
    assert same == 1 and len(changes) == 1
    assert (changes[0].tensor, changes[0].range_b, changes[0].octaves) == ("m/wider", (-2.0, 2.0), 1.0)
