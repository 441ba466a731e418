"""Rotations in the graph: against Kronecker products in plain numpy, and what they do to outliers that are rounded."""

import numpy as np
import onnx_ir as ir
import pytest
from small_models import bundle_of, cnn_bundle, legality, outputs

from pocketport.calibration.capture import calibrate
from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.conditioning.condition import condition
from pocketport.compress.conditioning.hadamard import hadamard_factors
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import Conditioning, Recipe
from pocketport.errors import VerificationError

ROWS, WIDTH, INNER, OUT = 8, 32, 48, 16
Feeds = list[tuple[str, Arrays]]


def gated(*, transposed: bool = True, inner: int = INNER, also: bool = False) -> tuple[ModelBundle, Feeds]:
    """x [8, 32] → gate·up [8, inner], three channels of which are wide → y [8, 16]; `also`: a Softmax reads them too."""
    rng = np.random.default_rng(0)
    g = GraphBuilder("main")
    widths = np.ones(inner)
    widths[[3, 11, 20]] = 40

    def linear(x: ir.Value, path: str, array: np.ndarray) -> ir.Value:
        weight = g.weight(f"{path}.weight", np.asarray(array if transposed else array.T, np.float32, order="C"))
        return g.node("Gemm", [x, weight], path, transB=1) if transposed else g.node("MatMul", [x, weight], path)

    x = g.input("x", (ROWS, WIDTH))
    gate = linear(x, "gate", rng.standard_normal((inner, WIDTH)) * WIDTH**-0.5)
    up = linear(x, "up", rng.standard_normal((inner, WIDTH)) * widths[:, None] * WIDTH**-0.5)
    gate = g.node("Mul", [gate, g.node("Sigmoid", [gate], "sigmoid")], "silu")
    product = g.node("Mul", [gate, up], "product")
    g.output(linear(product, "down", rng.standard_normal((OUT, inner)) * inner**-0.5))
    if also:
        g.output(g.node("Softmax", [product], "softmax"))
    feeds = [("main", {"x": rng.standard_normal((ROWS, WIDTH)).astype(np.float32)}) for _ in range(12)]
    return bundle_of(main=g.finish()), feeds


def rotated(bundle: ModelBundle) -> ModelBundle:
    return condition(bundle, [Conditioning(rewrite="rotate_online")], lambda _: iter(()), chained=False)[0]


def weight(bundle: ModelBundle, name: str) -> np.ndarray:
    value = bundle["main"].graph.graph.initializers[name]
    assert value.const_value is not None
    return np.array(value.const_value.numpy(), np.float64)


@pytest.mark.parametrize(("size", "factors"), [(48, (4, 12)), (768, (24, 32)), (1536, (32, 48)), (18944, (128, 148))])
def test_factors_are_as_nearly_alike_as_they_can_be(size: int, factors: tuple[int, int]) -> None:
    found = hadamard_factors(size)
    assert found is not None and (len(found[0]), len(found[1])) == factors
    if size < 1000:
        whole = np.kron(*found)
        np.testing.assert_array_equal(whole @ whole.T, size * np.eye(size))
    assert hadamard_factors(2 * 3 * 5) is None


@pytest.mark.parametrize("transposed", [True, False])
def test_the_input_turns_by_a_kronecker_product_and_the_weight_takes_it_back(transposed: bool) -> None:
    bundle, feeds = gated(transposed=transposed)
    after = rotated(bundle)
    assert sqnr_db(outputs(bundle, feeds), outputs(after, feeds)) > 120
    factors = hadamard_factors(INNER)
    assert factors is not None
    q = np.kron(*factors) / np.sqrt(INNER)
    np.testing.assert_allclose(
        outputs(after, feeds, "product.hadamard"), outputs(bundle, feeds, "product") @ q, rtol=1e-4, atol=1e-4
    )
    old, new = weight(bundle, "down.weight"), weight(after, "down.weight")
    np.testing.assert_allclose(new, old @ q if transposed else q.T @ old, atol=1e-6)
    for name in ("gate.weight", "up.weight"):
        np.testing.assert_array_equal(weight(after, name), weight(bundle, name))
    added = len(list(after["main"].graph.graph)) - len(list(bundle["main"].graph.graph))
    assert added == 4  # two Reshape, two MatMul
    assert all(v.shape is not None and v.dtype is not None for n in after["main"].graph.graph for v in n.outputs)


def test_it_is_exact_for_convolutional_models_too() -> None:
    """A MatMul behind something else than an activation function: nothing to change."""
    with pytest.raises(VerificationError, match="no place for it"):
        rotated(cnn_bundle()[0])


@pytest.mark.parametrize(
    ("options", "reason"), [({"inner": 36}, "no two Hadamard matrices are known for the 36"), ({"also": True}, "not only linear")]
)  # fmt: skip
def test_what_stands_in_the_way(options: dict[str, int], reason: str) -> None:
    bundle, _ = gated(**options)  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match=reason):
        rotated(bundle)


def test_outliers_of_8_bit_inputs_are_spread_before_they_are_rounded() -> None:
    bundle, feeds = gated()
    expected = outputs(bundle, feeds)

    def quantized(model: ModelBundle) -> float:
        recipe = Recipe.model_validate({"name": "r", "rules": [{"scheme": "w8ca8", "algorithm": "rtn"}]})
        chip = legality(integer_ops=["Gemm", "MatMul"], online_rotations=True)
        plan = make_plan(model, recipe, "small", chip)
        statistics = calibrate({"main": model["main"].graph}, feeds)
        return sqnr_db(expected, outputs(apply_plan(model, plan, statistics)[0], feeds))

    assert quantized(rotated(bundle)) > quantized(bundle) + 3
