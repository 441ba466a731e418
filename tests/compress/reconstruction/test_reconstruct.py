"""Pivots that are rounded on samples: they err less, onnxruntime agrees, the bytes do not depend on threads."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from roundings import as_proto, stored
from small_models import block_bundle, block_feeds, bundle_of, cached_bundle, legality

from pocketport.calibration.capture import calibrate
from pocketport.calibration.encodings import EncodingTable
from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.graph import save_graph
from pocketport.compress.pivot.apply import apply_component, apply_plan
from pocketport.compress.planning.plan import Plan, make_plan
from pocketport.compress.recipe import Recipe
from pocketport.compress.reconstruction.chains import Chains, PivotConstants
from pocketport.compress.reconstruction.segments import layer_segments
from pocketport.errors import UsageError

ALGORITHMS = {
    "adaround": {"iterations": 300, "rows": 64},
    "brecq": {"iterations": 150, "samples": 2},
    "gptq": {"propagation": 0.5, "sweeps": 2},
    "sequential_mse": {},
}
DEFAULTS = {"main": "w8a16", "prefill": "w8a16", "decode": "w8a16", "head": "w8a16"}


def separable_bundle() -> tuple[ModelBundle, list]:
    """A strided stem, two depthwise separable convolutions with a shortcut, pooling and a linear layer."""
    g, rng = GraphBuilder("main"), np.random.default_rng(0)

    def conv(x: ir.Value, name: str, *shape: int, **attributes: object) -> ir.Value:
        w = rng.standard_normal(shape) * np.prod(shape[1:]) ** -0.5 + 0.05
        bias = g.weight(f"{name}.bias", rng.standard_normal(shape[0]).astype(np.float32) * 0.1)
        return g.node("Conv", [x, g.weight(f"{name}.weight", w.astype(np.float32)), bias], name, **attributes)

    x = g.input("pixels", (1, 3, 12, 12))
    x = g.node("HardSwish", [conv(x, "stem", 8, 3, 3, 3, pads=[1] * 4, strides=[2, 2])], "stem.act")
    y = g.node("HardSwish", [conv(x, "depthwise", 8, 1, 3, 3, pads=[1] * 4, group=8)], "depthwise.act")
    x = g.node("Add", [conv(y, "pointwise", 8, 8, 1, 1), x], "sum")
    x = g.node("Relu", [conv(x, "wide", 16, 8, 1, 1)], "wide.act")
    x = g.reshape(g.node("GlobalAveragePool", [x], "pool"), (1, 16), "flat")
    w = rng.standard_normal((16, 5)).astype(np.float32)
    g.output(g.node("Gemm", [x, g.weight("fc.weight", w), g.weight("fc.bias", np.ones(5, np.float32))], "fc"))
    images = [rng.random((1, 3, 12, 12)).astype(np.float32) for _ in range(12)]
    return bundle_of(main=g.finish()), [("main", {"pixels": image}) for image in images]


def planned(bundle: ModelBundle, scheme: str, algorithm: str | None, **changes: object) -> Plan:
    rule: dict = {"scheme": scheme}
    if algorithm is not None:
        rule |= {"algorithm": algorithm, "algorithm_options": ALGORITHMS.get(algorithm, {})}
    recipe = Recipe.model_validate({"name": "t", "rules": [rule]})
    return make_plan(bundle, recipe, "x/y", legality(defaults=DEFAULTS, **changes))


def quantized(
    source: tuple[ModelBundle, list], scheme: str, algorithm: str | None, **changes: object
) -> tuple[ModelBundle, EncodingTable]:
    bundle, feeds = source
    plan = planned(bundle, scheme, algorithm, **changes)
    statistics = calibrate({c.name: c.graph for c in bundle}, feeds, hessians=plan.hessians(), only=plan.selection())
    return apply_plan(bundle, plan, statistics, samples=lambda: feeds)


def output_db(
    bundle: ModelBundle, pivot: ModelBundle, feeds: Iterable[tuple[str, dict]], component: str = "main"
) -> float:
    """Of the first output, over all samples."""
    runs = [OrtExecutor(b[component].graph) for b in (bundle, pivot)]
    name = runs[0].outputs[0]
    return sqnr_db(*(np.concatenate([r.run(f)[name].ravel() for c, f in feeds if c == component]) for r in runs))


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
@pytest.mark.parametrize(
    ("make", "scheme", "changes"),
    [
        (separable_bundle, "w4a8", {}),
        (separable_bundle, "w4cfp32", {}),
        (separable_bundle, "w4a8", {"integer_ops": ["Conv", "Gemm"], "scaled_inputs": True}),
        (block_bundle, "w4b16a16", {"norm_scale_dtype": "uint8", "norm_bias_dtype": "int32"}),
    ],
)
def test_outputs_err_less_than_with_nearest_integers(make, scheme: str, changes: dict, algorithm: str) -> None:
    source = make()
    bundle, feeds = source
    plain, _ = quantized(source, scheme, "rtn", **changes)
    pivot, table = quantized(source, scheme, algorithm, **changes)
    assert output_db(bundle, pivot, feeds) > output_db(bundle, plain, feeds) + 1.0
    for key, encoding in table.encodings.items():
        integers = pivot["main"].graph.graph.initializers.get(f"{key.partition('/')[2]}/q")
        if integers is not None and integers.const_value is not None:
            low, high = encoding.bounds
            numbers = integers.const_value.numpy().astype(np.int64)
            assert low <= numbers.min() and numbers.max() <= high


def test_the_table_says_what_the_file_says(tmp_path: Path) -> None:
    pivot, table = quantized(separable_bundle(), "w4a8", "gptq")
    proto = as_proto(pivot["main"].graph, tmp_path)
    for name in ("depthwise.weight", "fc.weight", "depthwise.bias", "fc.bias"):
        integers = pivot["main"].graph.graph.initializers[f"{name}/q"].const_value
        assert integers is not None
        values = table[f"main/{name}"].dequantize(integers.numpy().astype(np.int32))
        np.testing.assert_allclose(stored(proto, name), values, rtol=1e-6)
    product = float(table["main/depthwise.act"].scale) * table["main/pointwise.weight"].scale
    np.testing.assert_allclose(table["main/pointwise.bias"].scale, product, rtol=1e-6)


@pytest.mark.parametrize(("make", "scheme"), [(separable_bundle, "w4a8"), (block_bundle, "w8a8")])
def test_the_rounded_chain_is_the_pivot(make, scheme: str, tmp_path: Path) -> None:
    bundle, feeds = make()
    pivot, table = quantized((bundle, feeds), scheme, None)
    graph = pivot["main"].graph
    encodings = {key.removeprefix("main/"): e for key, e in table.encodings.items()}
    cpu = torch.device("cpu")
    with Activations(tmp_path / "spill", 0) as activations:
        constants = PivotConstants(graph, encodings, cpu)
        chains = Chains(bundle["main"].graph, constants, encodings, (f for _, f in feeds), activations, cpu)
        last = {}
        for segment in (segments := layer_segments(bundle["main"].graph, list(bundle["main"].graph.graph)[-1:])):
            chains.advance_exact(segment)
            if segment is segments[-1]:
                values = [chains.values(segment, s, exact=False) for s in range(chains.count)]
                for own in values:
                    chains.run(segment.nodes, own)
                last = {n: [own[n] for own in values] for n in segment.gives}
            chains.advance(segment)
        assert not any(activations.names(s) for s in range(len(feeds)))
    executor = OrtExecutor(graph)
    name = executor.outputs[0]
    found = np.stack([v.numpy() for v in last[name]])
    wanted = np.stack([executor.run(f)[name] for _, f in feeds])
    assert sqnr_db(wanted, found) > 45  # sums in another order may move a value by a step


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_threads_do_not_change_a_byte(algorithm: str, tmp_path: Path) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            pivot, table = quantized(separable_bundle(), "w4a8", algorithm)
            assert torch.get_num_threads() == threads
            save_graph(pivot["main"].graph, tmp_path / f"{threads}.onnx")
            table.save(tmp_path / f"{threads}.npz")
            files = sorted(p for p in tmp_path.iterdir() if p.name.startswith(f"{threads}."))
            found.append([p.read_bytes().replace(f"{threads}.data".encode(), b"x.data") for p in files])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_components_that_share_a_weight_share_its_integers() -> None:
    source = cached_bundle()
    pivot, _ = quantized(source, "w4a16", "gptq")
    names = [n for n in pivot["prefill"].graph.graph.initializers if n.endswith("_proj.weight/q")]
    assert names
    for name in names:
        first, second = (pivot[c].graph.graph.initializers[name].const_value for c in ("prefill", "decode"))
        assert first is not None and second is not None and np.array_equal(first.numpy(), second.numpy())
    plain, _ = quantized(source, "w4a16", "rtn")
    for component in ("prefill", "decode"):
        assert output_db(source[0], pivot, source[1], component) > output_db(source[0], plain, source[1], component) + 1


def test_without_samples_the_error_says_so() -> None:
    bundle, feeds = separable_bundle()
    plan = planned(bundle, "w4a8", "adaround")
    statistics = calibrate({"main": bundle["main"].graph}, feeds)
    with pytest.raises(UsageError, match="adaround rounds on samples"):
        apply_plan(bundle, plan, statistics)
    with pytest.raises(UsageError, match="adaround rounds on samples"):
        apply_component(bundle, plan, statistics, "main", {})
    with pytest.raises(UsageError, match="no calibration samples"):
        apply_plan(bundle, plan, statistics, samples=list)


def test_one_component_alone_is_rounded_as_with_all() -> None:
    bundle, feeds = separable_bundle()
    plan = planned(bundle, "w4a8", "adaround")
    statistics = calibrate({"main": bundle["main"].graph}, feeds)
    whole, _ = apply_plan(bundle, plan, statistics, samples=lambda: feeds)
    alone = apply_component(bundle, plan, statistics, "main", {}, samples=lambda: feeds)
    for name, value in whole["main"].graph.graph.initializers.items():
        same = alone.graph.initializers[name].const_value
        assert same is not None and value.const_value is not None
        np.testing.assert_array_equal(same.numpy(), value.const_value.numpy())


def test_a_transposed_convolution_is_left_to_mse() -> None:
    g = GraphBuilder("main")
    w = np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32)
    g.output(g.node("ConvTranspose", [g.input("x", (1, 4, 5, 5)), g.weight("w", w)], "up", strides=[2, 2]))
    plan = planned(bundle_of(main=g.finish()), "w4a8", "brecq")
    weight = next(t for t in plan["main"].tensors if t.tensor == "w")
    assert (weight.algorithm, weight.options) == ("mse", {}) and "brecq is for linear layers" in weight.why
    assert not plan.on_samples


def test_scales_that_are_shares_of_one_another_are_not_chosen_freely() -> None:
    blocks = {"4": {"dtype": "int4", "granularities": ["b"], "blocks": [16], "block_scale_levels": 16}}
    for algorithm, wanted in (("sequential_mse", "mse"), ("adaround", "adaround")):
        plan = planned(block_bundle()[0], "w4b16a16", algorithm, weights={**legality().weights, **blocks})
        weight = next(t for t in plan["main"].tensors if t.tensor == "q_proj.weight")
        assert weight.algorithm == wanted and ("freely" in weight.why) == (wanted == "mse")


@pytest.mark.parametrize(
    ("algorithm", "options", "match"),
    [
        ("adaround", {"iteration": 10}, "no option 'iteration'"),
        ("adaround", {"iterations": 0}, "out of range"),
        ("gptq", {"sweeps": 1, "propagation": 2}, "out of range"),
        ("brecq", {"samples": -1}, "out of range"),
    ],
)
def test_options_are_checked_when_planning(algorithm: str, options: dict, match: str) -> None:
    recipe = Recipe.model_validate(
        {"name": "t", "rules": [{"scheme": "w4a8", "algorithm": algorithm, "algorithm_options": options}]}
    )
    with pytest.raises(UsageError, match=match) as caught:
        make_plan(separable_bundle()[0], recipe, "x/y", legality())
    assert caught.value.fix


def test_weights_with_more_than_two_dimensions_of_padding_stay_whole() -> None:
    bundle, _ = block_bundle()
    feeds = [("main", block_feeds(np.random.default_rng(5)))]
    pivot, _ = quantized((bundle, feeds), "w4a16", "sequential_mse")
    assert output_db(bundle, pivot, feeds) > 5
