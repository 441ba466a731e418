"""Every rewrite against its paper's formula in plain numpy, on small graphs."""

import numpy as np
import onnx_ir as ir
import pytest
from small_models import ROWS, WIDTH, block, block_feeds, bundle_of, cnn_bundle, legality, outputs

from pocketport.calibration.capture import calibrate
from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.conditioning import REWRITES, make_rewrite
from pocketport.compress.conditioning.condition import condition
from pocketport.compress.conditioning.statistics import SAMPLE_ROWS, observe
from pocketport.compress.executors.ort_executor import Arrays, OrtExecutor
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import Conditioning, Recipe, RewriteName
from pocketport.errors import UsageError, VerificationError

Feeds = list[tuple[str, Arrays]]


def conditioned(bundle: ModelBundle, feeds: Feeds, rewrite: str, **options: float | str) -> ModelBundle:
    steps = [Conditioning.model_validate({"rewrite": rewrite, "options": options})]
    return condition(bundle, steps, lambda _: iter(feeds), chained=False)[0]


def weight(bundle: ModelBundle, name: str) -> np.ndarray:
    value = bundle["main"].graph.graph.initializers[name]
    assert value.const_value is not None
    return np.array(value.const_value.numpy())


def gated(rng: np.random.Generator, gains: np.ndarray) -> tuple[ModelBundle, Feeds]:
    """Norm, gated MLP with SiLU: x [8, 32] → y [8, 16]. What the gain makes large, the weights make small again."""
    columns = 1 / np.maximum(np.abs(gains), 1)
    g = GraphBuilder("main")

    def linear(x: ir.Value, path: str, n: int, k: int) -> ir.Value:
        array = (rng.standard_normal((n, k)) * k**-0.5 * (columns if k == WIDTH else 1)).astype(np.float32)
        return g.node("Gemm", [x, g.weight(f"{path}.weight", array)], path, transB=1)

    x = g.input("x", (ROWS, WIDTH))
    h = g.node("RMSNormalization", [x, g.weight("norm.weight", gains.astype(np.float32))], "norm", axis=-1)
    gate, up = linear(h, "gate", 64, WIDTH), linear(h, "up", 64, WIDTH)
    gate = g.node("Mul", [gate, g.node("Sigmoid", [gate], "sigmoid")], "silu")
    g.output(linear(g.node("Mul", [gate, up], "gated"), "down", 16, 64))
    feeds = [("main", {"x": rng.standard_normal((ROWS, WIDTH)).astype(np.float32)}) for _ in range(12)]
    return bundle_of(main=g.finish()), feeds


def outlying() -> tuple[ModelBundle, Feeds]:
    """Three channels a hundred times the others."""
    rng = np.random.default_rng(0)
    gains = rng.uniform(0.8, 1.2, WIDTH)
    gains[[3, 11, 20]] *= 100
    return gated(rng, gains)


def test_the_recipe_knows_every_rewrite() -> None:
    assert set(RewriteName.__args__) == set(REWRITES)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smoothquant", {"alpha": 2}, "alpha is 2"), ("smoothquant", {"beta": 1}, "wrong options"), ("awq", {"bits": 1}, "bits 1"),
        ("equalize", {"rounds": 0}, "rounds 0"), ("fold_gain", {"limit": -1}, "limit is -1"), ("reorder", {"by": "size"}, "by is"),
    ],
)  # fmt: skip
def test_options_out_of_range(name: str, options: dict[str, float | str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_rewrite(name, options)
    with pytest.raises(UsageError, match="no rewrite"):
        make_rewrite("smothquant")


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_smoothquant(alpha: float) -> None:
    """Equation 4: s = max|X|^α / max|W|^(1−α), of all layers behind the norm together."""
    bundle, feeds = outlying()
    after = conditioned(bundle, feeds, "smoothquant", alpha=alpha)
    x = np.abs(outputs(bundle, feeds, "norm")).max(axis=(0, 1)).astype(np.float64)
    w = np.maximum(np.abs(weight(bundle, "gate.weight")).max(0), np.abs(weight(bundle, "up.weight")).max(0))
    s = x**alpha / w.astype(np.float64) ** (1 - alpha)
    np.testing.assert_allclose(weight(after, "norm.weight"), weight(bundle, "norm.weight") / s, rtol=1e-5)
    for name in ("gate.weight", "up.weight"):
        np.testing.assert_allclose(weight(after, name), weight(bundle, name) * s, rtol=1e-5)
    assert sqnr_db(outputs(bundle, feeds), outputs(after, feeds)) > 100
    smooth = np.abs(outputs(after, feeds, "norm")).max(axis=(0, 1))
    assert smooth.max() / np.median(smooth) < 0.3 * x.max() / np.median(x)


def test_smoothquant_and_folded_gains_help_8_bit_activations() -> None:
    bundle, feeds = outlying()
    expected = outputs(bundle, feeds)

    def quantized(model: ModelBundle) -> float:
        recipe = Recipe.model_validate(
            {"name": "r", "rules": [{"scheme": "w8a8", "algorithm": "rtn", "observer": "min_max"}]}
        )
        plan = make_plan(model, recipe, "small", legality())
        graphs = {component.name: component.graph for component in model}
        return sqnr_db(expected, outputs(apply_plan(model, plan, calibrate(graphs, feeds))[0], feeds))

    plain = quantized(bundle)
    assert quantized(conditioned(bundle, feeds, "smoothquant")) > plain + 3
    assert quantized(conditioned(bundle, feeds, "fold_gain")) > plain + 3


def rounded(w: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Symmetric round to nearest, a scale a group of columns."""
    groups = w.reshape(len(w), -1, group)
    scale = np.abs(groups).max(-1, keepdims=True) / (2 ** (bits - 1) - 1)
    return (np.clip(np.rint(groups / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale).reshape(w.shape)


def test_awq() -> None:
    """Section 3.2: s = mean|x|^α with the least ‖Q(W·s)·s⁻¹·x − W·x‖ over both layers, by brute force."""
    bundle, feeds = outlying()
    after = conditioned(bundle, feeds, "awq", bits=3, block=16, steps=10)
    x = outputs(bundle, feeds, "norm").reshape(-1, WIDTH).astype(np.float64)
    names = ("gate.weight", "up.weight")

    def error(s: np.ndarray) -> float:
        return sum(
            float(np.square(x @ (rounded(weight(bundle, n) * s, 3, 16) / s - weight(bundle, n)).T).sum()) for n in names
        )

    candidates = [np.abs(x).mean(0) ** a for a in np.arange(10) / 10]
    errors = [error(s) for s in candidates]
    s = candidates[int(np.argmin(errors))]
    assert min(errors) < 0.5 * errors[0]
    for name in names:
        ratio = weight(after, name) / weight(bundle, name) / s
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)  # but for a common factor
    assert sqnr_db(outputs(bundle, feeds), outputs(after, feeds)) > 100


def test_folding_gains() -> None:
    bundle, feeds = outlying()
    gains = weight(bundle, "norm.weight")
    whole = conditioned(bundle, feeds, "fold_gain")
    np.testing.assert_allclose(weight(whole, "norm.weight"), 1, rtol=1e-6)
    np.testing.assert_allclose(weight(whole, "up.weight"), weight(bundle, "up.weight") * gains, rtol=1e-5)
    partly = conditioned(bundle, feeds, "fold_gain", limit=2)
    limit = 2 * np.median(gains)
    np.testing.assert_allclose(weight(partly, "norm.weight"), np.minimum(gains, limit), rtol=1e-5)
    for after in (whole, partly):
        assert sqnr_db(outputs(bundle, feeds), outputs(after, feeds)) > 100


def test_negative_and_zero_gains_stay_what_they_are() -> None:
    gains = np.linspace(-2, 2, WIDTH)
    gains[7] = 0
    bundle, feeds = gated(np.random.default_rng(1), gains)
    after = conditioned(bundle, feeds, "fold_gain")
    np.testing.assert_allclose(weight(after, "norm.weight"), np.sign(gains), rtol=1e-6)
    assert sqnr_db(outputs(bundle, feeds), outputs(after, feeds)) > 100


def convolutions(rng: np.random.Generator) -> tuple[ModelBundle, Feeds]:
    """Conv, Relu, depthwise Conv, Relu, pool, Conv of two groups: ranges of channels far apart."""
    g = GraphBuilder("main")
    x = g.input("x", (1, 4, 8, 8))

    def conv(x: ir.Value, path: str, shape: tuple[int, ...], **attributes: object) -> ir.Value:
        array = rng.standard_normal(shape) * 10 ** rng.uniform(-1.5, 1.5, (shape[0], 1, 1, 1))
        parts = [array, rng.standard_normal(shape[0])]
        names = [f"{path}.weight", f"{path}.bias"]
        inputs = [x, *(g.weight(n, p.astype(np.float32)) for n, p in zip(names, parts, strict=True))]
        return g.node("Conv", inputs, path, kernel_shape=list(shape[2:]), **attributes)

    x = g.node("Relu", [conv(x, "first", (16, 4, 3, 3), pads=[1] * 4)], "relu1")
    x = g.node("Relu", [conv(x, "depthwise", (16, 1, 3, 3), group=16, pads=[1] * 4)], "relu2")
    x = g.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    g.output(conv(x, "last", (6, 8, 1, 1), group=2))
    feeds = [("main", {"x": rng.standard_normal((1, 4, 8, 8)).astype(np.float32)}) for _ in range(4)]
    return bundle_of(main=g.finish()), feeds


def test_equalizing() -> None:
    """Equation 9: behind it, both ranges of every channel are √(r₁·r₂); the product of the ranges stays."""
    bundle, feeds = convolutions(np.random.default_rng(0))
    after = conditioned(bundle, feeds, "equalize")
    assert sqnr_db(outputs(bundle, feeds), outputs(after, feeds)) > 100

    def ranges(model: ModelBundle) -> tuple[np.ndarray, ...]:
        last = np.abs(weight(model, "last.weight")).reshape(2, 3, 8).max(1).reshape(-1)  # two groups of 8 channels
        return (
            np.abs(weight(model, "first.weight")).max((1, 2, 3)), np.abs(weight(model, "depthwise.weight")).max((1, 2, 3)), last,
        )  # fmt: skip

    old, new = ranges(bundle), ranges(after)
    np.testing.assert_allclose(new[0], new[1], rtol=2e-2)
    np.testing.assert_allclose(new[1], new[2], rtol=2e-2)
    np.testing.assert_allclose(np.prod(new, axis=0), np.prod(old, axis=0), rtol=1e-4)
    np.testing.assert_allclose(new[0], np.cbrt(np.prod(old, axis=0)), rtol=2e-2)
    assert new[0].max() / new[0].min() < old[0].max() / old[0].min()


def test_one_pair_is_equalized_at_once() -> None:
    bundle, feeds = gated(np.random.default_rng(2), np.ones(WIDTH))
    after = conditioned(bundle, feeds, "equalize")
    first, second = (np.abs(weight(bundle, n)).max(axis) for n, axis in (("up.weight", 1), ("down.weight", 0)))
    s = np.sqrt(first.astype(np.float64) * second) / second
    np.testing.assert_allclose(weight(after, "up.weight"), weight(bundle, "up.weight") / s[:, None], rtol=1e-5)
    np.testing.assert_allclose(weight(after, "down.weight"), weight(bundle, "down.weight") * s, rtol=1e-5)


@pytest.mark.parametrize("by", ["range", "importance"])
def test_reordering(by: str) -> None:
    bundle, feeds = outlying()
    after = conditioned(bundle, feeds, "reorder", by=by)
    hidden = outputs(bundle, feeds, "gated").reshape(-1, 64).astype(np.float64)
    key = np.abs(weight(bundle, "down.weight")).max(0) if by == "range" else np.square(hidden).mean(0)
    order = np.argsort(key)
    np.testing.assert_array_equal(weight(after, "down.weight"), weight(bundle, "down.weight")[:, order])
    for name in ("gate.weight", "up.weight"):
        np.testing.assert_array_equal(weight(after, name), weight(bundle, name)[order])
    assert sqnr_db(outputs(bundle, feeds), outputs(after, feeds)) > 100


def test_ops_that_are_not_homogeneous_stop_a_scale() -> None:
    """Relu6 is a Clip: the pairs of small_models' network are left alone."""
    bundle, feeds = cnn_bundle()
    after = conditioned(bundle, feeds, "equalize")
    np.testing.assert_array_equal(weight(bundle, "fc.weight"), weight(after, "fc.weight"))
    assert not np.array_equal(weight(bundle, "conv.weight"), weight(after, "conv.weight"))
    assert sqnr_db(outputs(bundle, feeds), outputs(after, feeds)) > 100
    with pytest.raises(VerificationError, match="found nothing to change"):
        conditioned(bundle, feeds, "smoothquant")


def shared_layer() -> tuple[ModelBundle, Feeds]:
    """One weight behind two norms of different gains."""
    rng = np.random.default_rng(5)
    g = GraphBuilder("main")
    x = g.input("x", (ROWS, WIDTH))
    w = g.weight("shared.weight", (rng.standard_normal((WIDTH, WIDTH)) / 6).astype(np.float32))
    for i in range(2):
        gain = g.weight(f"norm{i}.weight", rng.uniform(0.5, 4, WIDTH).astype(np.float32))
        h = g.node("RMSNormalization", [x, gain], f"norm{i}", axis=-1)
        x = g.node("Gemm", [h, w], f"linear{i}", transB=1)
    g.output(x)
    return bundle_of(main=g.finish()), [("main", {"x": rng.standard_normal((ROWS, WIDTH)).astype(np.float32)})]


def test_a_shared_weight_gets_a_copy_for_each_use() -> None:
    bundle, feeds = shared_layer()
    after = conditioned(bundle, feeds, "fold_gain")
    assert sqnr_db(outputs(bundle, feeds), outputs(after, feeds)) > 100
    names = [node.inputs[1].name for node in after["main"].graph.graph if node.op_type == "Gemm"]  # type: ignore[union-attr]
    assert len(set(names)) == 2


def test_statistics_leave_padding_out_and_sample_evenly() -> None:
    rng = np.random.default_rng(0)
    feeds = [block_feeds(rng) for _ in range(160)]
    padding = 3
    for values in feeds:  # the last row may not attend to the first ones
        values["attention_bias"][:, :, :padding] = -100
    model = block()
    graph = model.clone()
    graph.graph.outputs[:] = [v for n in graph.graph for v in n.outputs if v.name == "norm"]
    executor = OrtExecutor(graph)
    rows = np.concatenate([executor.run(values)["norm"][padding:] for values in feeds])
    found = observe({"main": model}, (("main", f) for f in feeds), {"main": ["norm"]})["main/norm"]
    assert found.rows == len(rows) == 160 * (ROWS - padding)
    np.testing.assert_allclose(found.maximum, np.abs(rows).max(0))
    np.testing.assert_allclose(found.magnitude / found.rows, np.abs(rows).mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.squares / found.rows, np.square(rows).mean(0), rtol=1e-5)
    assert found.sample.shape == (SAMPLE_ROWS, WIDTH)
    kept = {tuple(row) for row in found.sample.tolist()}
    whole = [tuple(row) in kept for row in rows.tolist()]
    assert 0.4 < np.mean(whole[: len(whole) // 2]) / np.mean(whole[len(whole) // 2 :]) < 2.5


def test_a_component_that_no_sample_runs() -> None:
    with pytest.raises(UsageError, match="no calibration sample ran main/norm"):
        observe({"main": block()}, iter(()), {"main": ["norm"]})


def with_mean_values(seed: int = 0) -> tuple[ModelBundle, Feeds]:
    """A block whose values have a mean, larger than what they differ by."""
    bundle = bundle_of(main=block(weights=seed))
    bias = bundle["main"].graph.graph.initializers["v_proj.bias"]
    bias.const_value = ir.Tensor((np.linspace(-6, 6, WIDTH)).astype(np.float32), name=bias.name)
    rng = np.random.default_rng(seed)
    return bundle, [("main", block_feeds(rng)) for _ in range(12)]


def test_centered_values_have_no_mean_and_the_output_is_what_it_was() -> None:
    bundle, feeds = with_mean_values()
    after = conditioned(bundle, feeds, "center_values")
    before, values = (outputs(b, feeds, "v_proj").reshape(-1, WIDTH) for b in (bundle, after))
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(before - before.mean(0), values, atol=1e-4)
    moved = weight(bundle, "o_proj.bias") + weight(bundle, "o_proj.weight") @ before.mean(0)
    np.testing.assert_allclose(weight(after, "o_proj.bias"), moved, atol=1e-4)
    assert sqnr_db(outputs(bundle, feeds, "o_proj"), outputs(after, feeds, "o_proj")) > 100
    np.testing.assert_array_equal(weight(after, "v_proj.weight"), weight(bundle, "v_proj.weight"))


def test_centered_values_lose_less_where_probabilities_are_8_bits() -> None:
    bundle, feeds = with_mean_values()
    expected = outputs(bundle, feeds, "o_proj")
    recipe = Recipe.model_validate(
        {"name": "r", "rules": [{"scheme": "w8a8", "algorithm": "rtn", "observer": "min_max"}]}
    )

    def probabilities_rounded(model: ModelBundle) -> float:
        plan = make_plan(model, recipe, "small", legality(integer_ops=["MatMul"]))
        graphs = {component.name: component.graph for component in model}
        return sqnr_db(expected, outputs(apply_plan(model, plan, calibrate(graphs, feeds))[0], feeds, "o_proj"))

    assert probabilities_rounded(conditioned(bundle, feeds, "center_values")) > probabilities_rounded(bundle) + 3


def test_values_without_a_bias_or_in_a_cache_are_left_alone() -> None:
    bundle, feeds = with_mean_values()
    graph = bundle["main"].graph
    node = next(n for n in graph.graph if n.outputs[0].name == "o_proj")
    node.resize_inputs(2)
    with pytest.raises(VerificationError, match="o_proj has no constant bias"):
        conditioned(bundle, feeds, "center_values")
    other, _ = with_mean_values(1)
    values = next(v for n in other["main"].graph.graph for v in n.outputs if v.name == "v.split")
    other["main"].graph.graph.outputs.append(values)
    with pytest.raises(VerificationError, match="is the model's own input or output"):
        conditioned(other, feeds, "center_values")
