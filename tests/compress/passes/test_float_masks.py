from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketport.compress.passes.simplify import simplify

from .graphs import computed, ops, parsed

INPUTS = "int64[2,1,5] a, int64[2,4,1] b, bool[4,5] c, float[2,4,5] x"
LEAVES = {
    "equal": "Equal(a, b)", "greater": "Greater(a, b)", "less": "Less(b, a)", "at least": "GreaterOrEqual(a, b)",
    "at most": "LessOrEqual(a, b)", "is it 3": "Equal(a, three)", "is it more than 3": "Greater(b, three)",
    "is it anything": "Cast<to = 9>(a)", "given": "Identity(c)",
}  # fmt: skip
GONE = {"Where", "And", "Or", "Not", "Xor", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"}
RNG = np.random.default_rng(0)
FEEDS = {
    "a": np.array([[[0, 3, -2, 7, 250001]], [[3, 3, 1, 0, -5]]]), "b": RNG.integers(-3, 8, (2, 4, 1)),
    "c": RNG.integers(0, 2, (4, 5)).astype(bool), "x": RNG.normal(size=(2, 4, 5)).astype(np.float32),
}  # fmt: skip


class Logic:
    """Statements of a random boolean expression, the last of which defines the value `name`."""

    def __init__(self, draw: Callable[[st.SearchStrategy[str]], str], depth: int) -> None:
        self.lines = ["three = Constant<value = int64[1] {3}>()"]
        self._draw = draw
        self.name = self._expression(depth)

    def _expression(self, depth: int) -> str:
        op = self._draw(st.sampled_from(["leaf", "Not", "And", "Or", "Xor", "Equal"])) if depth else "leaf"
        if op == "leaf":
            text = LEAVES[self._draw(st.sampled_from(sorted(LEAVES)))]
        else:
            operands = 1 if op == "Not" else 2
            text = f"{op}({', '.join(self._expression(depth - 1) for _ in range(operands))})"
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name


@st.composite
def logic(draw: Callable[[st.SearchStrategy[str]], str]) -> Logic:
    return Logic(draw, depth=3)


def both(body: str, inputs: str = INPUTS) -> tuple[ir.Model, NDArray[np.generic], NDArray[np.generic]]:
    """The simplified graph, and what it and the original compute, which must be the same bit for bit."""
    model = parsed(inputs, body)
    simple = simplify(model)
    feeds = {str(v.name): FEEDS[str(v.name)] for v in model.graph.inputs}
    expected, found = computed(model, feeds), computed(simple, feeds)
    np.testing.assert_array_equal(found, expected)
    return simple, expected, found


@settings(max_examples=25, deadline=None)
@given(
    expression=logic(),
    branches=st.sampled_from(["x, zero", "zero, x", "x, square", "two, zero", "zero, two", "one, zero"]),
)
def test_any_logic_of_integers_is_arithmetic(expression: Logic, branches: str) -> None:
    body = f"""{" ".join(expression.lines)}
        zero = Constant<value_float = 0.0>() one = Constant<value_float = 1.0>() two = Constant<value_float = 2.0>()
        square = Mul(x, x)
        blended = Where({expression.name}, {branches})
        y = Add(blended, x)"""
    simple, _, _ = both(body)
    assert not GONE & set(ops(simple))


@pytest.mark.parametrize("dtype", [1, 6, 7])
def test_a_mask_as_a_number(dtype: int) -> None:
    simple, _, _ = both(f"m = Less(a, b) n = Cast<to = {dtype}>(m) f = Cast<to = 1>(n) y = Mul(f, x)")
    assert not GONE & set(ops(simple))


def test_masks_are_moved_as_numbers() -> None:
    body = """wide = Constant<value = int64[3] {2, 4, 5}>() front = Constant<value = int64[1] {0}>()
        rows = Constant<value = int64[2] {3, 1}>()
        m = Cast<to = 9>(b) e = Expand(m, wide) t = Transpose<perm = [0, 2, 1]>(e) g = Gather<axis = 1>(t, rows)
        j = Concat<axis = 1>(g, g) k = Not(j) s = Transpose<perm = [0, 2, 1]>(k)
        zero = Constant<value_float = 0.0>() small = Constant<value_float = -2.0>() w = Where(s, zero, small)
        y = ReduceSum(w, front)"""
    simple, _, _ = both(body, "int64[2,4,1] b")
    assert not GONE & set(ops(simple))


def test_choices_by_comparisons_of_floats_stay() -> None:
    """A comparison of floats has no exact arithmetic, and its branches may be infinite where they are not chosen."""
    simple, _, found = both(
        "zero = Constant<value_float = 0.0>() m = Greater(x, zero) l = Log(x) y = Where(m, l, zero)", "float[2,4,5] x"
    )
    assert ops(simple)["Where"] == 1 and np.isfinite(found).all()


def test_an_infinite_constant_is_not_multiplied() -> None:
    simple, _, _ = both("low = Constant<value_float = -inf>() m = Less(a, b) y = Where(m, x, low)")
    assert ops(simple)["Where"] == 1


def test_a_zero_branch_of_the_results_shape_is_kept() -> None:
    body = """zeros = Constant<value = float[4,5] {0,0,0,0,0, 0,0,0,0,0, 0,0,0,0,0, 0,0,0,0,0}>()
        two = Constant<value_float = 2.0>() m = Cast<to = 9>(a) y = Where(m, two, zeros)"""
    simple, expected, _ = both(body, "int64[2,1,5] a")
    assert expected.shape == (2, 4, 5) and not GONE & set(ops(simple))
