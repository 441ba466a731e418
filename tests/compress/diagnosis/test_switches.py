"""Switches: all on is the pivot, all off is float, one alone is what onnxruntime makes of that one rounding."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from roundings import Samples, as_proto, quantized, run, stored, with_constants
from small_models import block_bundle, cached_bundle, cnn_bundle, summed

from pocketport.calibration.capture import calibrate
from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.diagnosis.samples import least_db, noise_db
from pocketport.compress.diagnosis.switches import SwitchedGraph, influences, switches_of
from pocketport.compress.pivot.apply import float_graph

NORMS = {"norm_scale_dtype": "uint8", "norm_bias_dtype": "int32"}


@pytest.mark.parametrize(
    ("make", "scheme", "changes"),
    [
        (block_bundle, "w8a8", NORMS),
        (block_bundle, "w4b16a16", {}),
        (cnn_bundle, "w8a8", {}),
        (cnn_bundle, "w4ca8", {"integer_ops": ["Conv", "MatMul"]}),
        (cached_bundle, "w8a8", {}),
    ],
)
def test_all_on_is_the_pivot_and_all_off_is_float(make, scheme: str, changes: dict, tmp_path: Path) -> None:
    bundle, pivot, plan, _ = quantized(make(), scheme, **changes)
    for component in bundle:
        feeds = [f for name, f in make()[1] if name == component.name]
        graph = SwitchedGraph(component.graph, pivot[component.name].graph, plan[component.name])
        samples = Samples(component.graph, feeds, tmp_path)
        assert least_db(graph.noise(samples, ())) == 200.0
        against_pivot = Samples(pivot[component.name].graph, feeds, tmp_path)
        assert least_db(graph.noise(against_pivot, range(len(graph.switches)))) == 200.0
        switched = [t.tensor for s in graph.switches for t in s.tensors]
        assert sorted(switched) == sorted(t.tensor for t in plan[component.name].tensors if t.quantized)


def test_one_alone_is_that_rounding_in_onnxruntime(tmp_path: Path) -> None:
    source = block_bundle()
    bundle, pivot, plan, _ = quantized(source, "w8a8")
    graph, feeds = bundle["main"].graph, [f for _, f in source[1]]
    samples = Samples(graph, feeds, tmp_path)
    switched = SwitchedGraph(graph, pivot["main"].graph, plan["main"])
    index = next(i for i, s in enumerate(switched.switches) if s.leader.tensor == "o_proj.weight")
    assert [t.tensor for t in switched.switches[index].tensors] == ["o_proj.weight", "o_proj.bias"]
    proto, quantized_proto = as_proto(graph, tmp_path), as_proto(pivot["main"].graph, tmp_path)
    names = ("o_proj.weight", "o_proj.bias")
    edited = with_constants(proto, {n: stored(quantized_proto, n).astype(np.float32) for n in names})
    got = [run(edited, f) for f in feeds]
    noise = switched.noise(samples, [index])
    for key in samples.outputs[0]:
        expected = sqnr_db(samples.used(samples.outputs, key), samples.used(got, key))
        assert noise_db(noise[key]) == pytest.approx(min(expected, 200.0), abs=0.01), key
    found = influences(switched, samples)
    assert found.worst == "logits" and found.alone[index] == noise["logits"]


def test_a_bias_that_took_something_back_goes_along_with_its_weight(tmp_path: Path) -> None:
    source = cnn_bundle()
    bundle, pivot, plan, _ = quantized(source, "w4cfp32")
    graph, feeds = bundle["main"].graph, [f for _, f in source[1]]
    before, after = (
        ir.convenience.get_const_tensor(g.graph.initializers["conv.bias"]) for g in (graph, pivot["main"].graph)
    )
    assert before is not None and after is not None and not np.array_equal(before.numpy(), after.numpy())
    switched = SwitchedGraph(graph, pivot["main"].graph, plan["main"])
    samples = Samples(graph, feeds, tmp_path)
    others = [i for i, s in enumerate(switched.switches) if s.leader.tensor != "conv.weight"]
    quantized_proto, proto = as_proto(pivot["main"].graph, tmp_path), as_proto(graph, tmp_path)
    kept = [t.tensor for t in plan["main"].tensors if t.quantized and t.tensor != "conv.weight"]
    edited = with_constants(proto, {name: stored(quantized_proto, name) for name in kept})
    got = [run(edited, f) for f in feeds]
    expected = sqnr_db(samples.used(samples.outputs, "probabilities"), samples.used(got, "probabilities"))
    assert least_db(switched.noise(samples, others)) == pytest.approx(expected, abs=0.01)


def test_inputs_that_are_scaled_are_so_in_float_too(tmp_path: Path) -> None:
    source = block_bundle()
    changes = {"scaled_inputs": True, "integer_ops": ["Gemm", "MatMul"]}
    bundle, pivot, plan, _ = quantized(source, "w8a8", **changes)
    assert any(t.scaled for t in plan["main"].tensors)
    statistics = calibrate({"main": bundle["main"].graph}, source[1], hessians=plan.hessians())
    graph, feeds = float_graph(bundle, plan, statistics, "main"), [f for _, f in source[1]]
    switched = SwitchedGraph(graph, pivot["main"].graph, plan["main"])
    assert least_db(switched.noise(Samples(bundle["main"].graph, feeds, tmp_path), ())) > 100.0
    against_pivot = Samples(pivot["main"].graph, feeds, tmp_path)
    assert least_db(switched.noise(against_pivot, range(len(switched.switches)))) == 200.0


def test_what_holds_the_same_data_is_one_switch() -> None:
    _, _, plan, _ = quantized(block_bundle(), "w8a8")
    names = [{t.tensor for t in s.tensors} for s in switches_of(plan["main"])]
    assert {"k_proj", "k.split", "k.heads", "k.transposed", "present_key"} <= next(n for n in names if "k_proj" in n)


def test_the_weights_of_a_sum_are_one_switch(tmp_path: Path) -> None:
    """One of them alone has in it what it makes up for of the others."""
    source = summed(parts=True)
    bundle, pivot, plan, _ = quantized(source, "w4cfp32")
    names = {f"w.{p}" for p in range(3)}
    switched = SwitchedGraph(bundle["main"].graph, pivot["main"].graph, plan["main"])
    (index,) = [i for i, s in enumerate(switched.switches) if names & set(s.weights)]
    assert set(switched.switches[index].weights) == names
    feeds = [f for _, f in source[1][:4]]
    proto, quantized_proto = (as_proto(b["main"].graph, tmp_path) for b in (bundle, pivot))
    edited = with_constants(proto, {n: stored(quantized_proto, n) for n in names})
    samples = Samples(bundle["main"].graph, feeds, tmp_path)
    got = [run(edited, f) for f in feeds]
    expected = sqnr_db(samples.used(samples.outputs, "y"), samples.used(got, "y"))
    assert noise_db(switched.noise(samples, [index])["y"]) == pytest.approx(expected, abs=0.01)
