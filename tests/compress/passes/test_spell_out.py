import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from pocketport.compress.passes.simplify import simplify

from .graphs import computed, ops, parsed

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("equation", "first", "second"),
    [
        ("bhwc,hkc->bhwk", (2, 3, 4, 5), (3, 6, 5)), ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)), ("ij,kj->ki", (3, 4), (5, 4)),
        ("bhd,bnd->bhn", (2, 3, 4), (2, 5, 4)), ("abc,bcd->da", (2, 3, 4), (3, 4, 5)), ("i,i->", (4,), (4,)),
        ("...pd,...qd->...pq", (2, 3, 4, 5), (2, 3, 6, 5)), ("...i,ij->...j", (2, 3, 4), (4, 5)),
    ],
)  # fmt: skip
def test_products_are_products_of_matrices(equation: str, first: tuple[int, ...], second: tuple[int, ...]) -> None:
    node = helper.make_node("Einsum", ["x", "z"], ["e"], equation=equation)
    info = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", first), ("z", second), ("y", None))]
    graph = helper.make_graph([node, helper.make_node("Relu", ["e"], ["y"])], "g", info[:2], info[2:])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    simple = simplify(model)
    assert "Einsum" not in ops(simple) or equation.endswith(">")
    feeds = {n: RNG.normal(size=s).astype(np.float32) for n, s in (("x", first), ("z", second))}
    np.testing.assert_allclose(computed(simple, feeds), computed(model, feeds), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("equation", ["ii,ij->ij", "ij,jk->ijk", "...i,...j->...ij", "ij,jk,kl->il", "ij,jk"])
def test_other_sums_stay(equation: str) -> None:
    count = equation.count(",") + 1
    node = helper.make_node("Einsum", ["x"] * count, ["y"], equation=equation)
    info = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", (3, 3)), ("y", None))]
    graph = helper.make_graph([node], "g", info[:1], info[1:])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    assert ops(simplify(model)) == {"Einsum": 1}


@pytest.mark.parametrize(
    ("slopes", "expected"),
    [(np.array([0.25]), {"LeakyRelu"}), (np.linspace(0, 1, 6), {"Mul", "Max"}), (np.linspace(-1, 2, 6), {"Relu", "Min", "Mul", "Add"})],
)  # fmt: skip
def test_slopes_below_zero(slopes: np.ndarray, expected: set[str]) -> None:
    slope = numpy_helper.from_array(slopes.reshape(-1, 1, 1).astype(np.float32), "s")
    info = [helper.make_tensor_value_info(n, 1, (2, 6, 3, 4)) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("PRelu", ["x", "s"], ["y"])], "g", info[:1], info[1:], [slope])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    simple = simplify(model)
    assert set(ops(simple)) == expected
    x = RNG.normal(size=(2, 6, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(computed(simple, {"x": x}), computed(model, {"x": x}), rtol=1e-6)


@pytest.mark.parametrize(
    ("repeats", "expected"), [((3, 1, 1), {"Expand"}), ((1, 2, 1), {"Concat"}), ((2, 3, 2), {"Expand", "Concat"})]
)
def test_repeats(repeats: tuple[int, ...], expected: set[str]) -> None:
    listed = ", ".join(map(str, repeats))
    model = parsed("float[1,3,4] x", f"r = Constant<value = int64[3] {{{listed}}}>() t = Tile(x, r) y = Relu(t)")
    simple = simplify(model)
    assert set(ops(simple)) == {*expected, "Relu"}
    x = RNG.normal(size=(1, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(computed(simple, {"x": x}), computed(model, {"x": x}))
