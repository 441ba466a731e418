"""Local and cumulative SQNR against onnxruntime's own roundings; ranges, clipping and levels against plain counting."""

from pathlib import Path

import numpy as np
import pytest
from roundings import as_proto, quantized, rounded, run, stored, with_constants
from small_models import block_bundle, cnn_bundle, summed

from pocketport.calibration.encodings import encoding_for_range
from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.diagnosis.tensors import FloatProbe, fit, fits, tensor_errors


def joined(runs: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    return np.concatenate([np.asarray(r[name], np.float64).ravel() for r in runs])


@pytest.mark.parametrize(("make", "scheme"), [(block_bundle, "w8a8"), (cnn_bundle, "w4ca8")])
def test_local_and_cumulative_are_those_of_onnxruntime(make, scheme: str, tmp_path: Path) -> None:
    source = make()
    bundle, pivot, plan, table = quantized(source, scheme)
    graph, feeds = bundle["main"].graph, [f for _, f in source[1]]
    probe = FloatProbe(graph, pivot["main"].graph, plan["main"], table)
    found = {e.plan.tensor: e for e in tensor_errors(probe, pivot["main"].graph, feeds)}
    proto, quantized_proto = as_proto(graph, tmp_path), as_proto(pivot["main"].graph, tmp_path)
    activations = [n for n, e in found.items() if e.plan.kind == "activation"]
    weights = [n for n, e in found.items() if e.plan.kind == "weight"]
    assert len(activations) > 4 and len(weights) > 2
    inputs = {i.name for i in proto.graph.input}
    floats = [{**f, **run(proto, f, [n for n in activations if n not in inputs])} for f in feeds]
    for name in activations:
        after = [{name: rounded(quantized_proto, name, f[name])} for f in floats]
        expected = sqnr_db(joined(floats, name), joined(after, name))
        assert found[name].local_db == pytest.approx(min(expected, 200.0), abs=0.05), name
        if name not in inputs:
            ends = {o.name for o in quantized_proto.graph.output}
            restored = name if name in ends else f"{name}/dq"
            pivots = [{name: run(quantized_proto, f, [restored])[restored]} for f in feeds]
            expected = sqnr_db(joined(floats, name), joined(pivots, name))
            assert found[name].cumulative_db == pytest.approx(min(expected, 200.0), abs=0.05), name
    kept = {i.name for i in quantized_proto.graph.initializer}
    for name in weights:
        node = next(n for n in proto.graph.node if name in n.input)
        bias = [n for n in node.input[2:] if f"{n}/q" in kept]
        edited = with_constants(proto, {n: stored(quantized_proto, n) for n in (name, *bias)})
        other = [n for n in node.input[2:] if n in kept]  # a float bias may have taken something back
        arrays = {i.name: i for i in quantized_proto.graph.initializer}
        for tensor in edited.graph.initializer:
            if tensor.name in other:
                tensor.CopyFrom(arrays[tensor.name])
        result = node.output[0]
        before = [run(proto, f, [result]) for f in feeds]
        # Nothing in front of the node is rounded, so that only its own constants differ.
        after = [run(edited, f, [result]) for f in feeds]
        expected = sqnr_db(joined(before, result), joined(after, result))
        assert found[name].local_db == pytest.approx(expected, abs=0.05), name


def test_weights_of_a_sum_are_judged_by_the_sum(tmp_path: Path) -> None:
    source = summed(parts=True)
    bundle, pivot, plan, table = quantized(source, "w4cfp32")
    graph, feeds = bundle["main"].graph, [f for _, f in source[1][:4]]
    probe = FloatProbe(graph, pivot["main"].graph, plan["main"], table)
    found = {e.plan.tensor: e for e in tensor_errors(probe, pivot["main"].graph, feeds)}
    assert found.keys() == {"w.0", *(f"spread.{p}" for p in range(3))}
    proto, quantized_proto = as_proto(graph, tmp_path), as_proto(pivot["main"].graph, tmp_path)
    edited = with_constants(proto, {f"w.{p}": stored(quantized_proto, f"w.{p}") for p in range(3)})
    floats, alone, pivots = ([{"y": run(p, f)["y"]} for f in feeds] for p in (proto, edited, quantized_proto))
    assert found["w.0"].local_db == pytest.approx(sqnr_db(joined(floats, "y"), joined(alone, "y")), abs=0.05)
    assert found["w.0"].cumulative_db == pytest.approx(sqnr_db(joined(floats, "y"), joined(pivots, "y")), abs=0.05)


def test_a_fit_counts_what_is_cut_off_and_which_levels_are_used() -> None:
    encoding = encoding_for_range(-1.0, 1.0, "int8", symmetric=True)
    values = np.array([-3.0, -1.0, 0.0, 0.5, 0.5, 1.003, 2.0, 8.0], np.float32)  # 1.003 rounds to the last level
    found = fit(values, encoding.quantize(values), encoding)
    assert found.clipped == 3 / 8
    assert (found.low, found.high) == (-3.0, 8.0)
    assert found.chosen_high == pytest.approx(1.0) and found.chosen_low == pytest.approx(-128 / 127)
    # -128, -127, 0, 64 and 127 (0.5 / (1 / 127) = 63.5 goes to the even 64)
    assert (found.levels, found.of_levels) == (5, 256)
    assert found.before.sum() == found.after.sum() == 8
    assert found.before[-1] == 1 and found.after[-1] == 0


def test_fits_of_a_run() -> None:
    source = block_bundle()
    bundle, pivot, plan, table = quantized(source, "w8a8")
    feeds = [f for _, f in source[1]]
    probe = FloatProbe(bundle["main"].graph, pivot["main"].graph, plan["main"], table)
    plans = [t for t in plan["main"].tensors if t.tensor in ("residual", "attention_bias", "o_proj.weight")]
    found = fits(probe, plans, feeds)
    assert (found["attention_bias"].low, found["attention_bias"].high) == (-100.0, 0.0)
    assert found["attention_bias"].levels == 2 and found["attention_bias"].clipped == 0.0
    weight = probe.real("o_proj.weight")
    assert found["o_proj.weight"].high == pytest.approx(float(weight.max()))
    assert found["o_proj.weight"].before.sum() == weight.size
    assert found["residual"].before.sum() == 4 * 8 * 32
