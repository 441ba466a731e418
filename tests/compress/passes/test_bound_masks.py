import numpy as np
import pytest

from pocketport.compress.graph import constant
from pocketport.compress.passes.bound_masks import MASKED
from pocketport.compress.passes.simplify import simplify

from .graphs import computed, ops, parsed

LOWEST = float(np.finfo(np.float32).min)
RNG = np.random.default_rng(0)
SCORES = 4 * RNG.normal(size=(2, 3, 6, 6)).astype(np.float32)
MASK = np.array([[1, 1, 1, 1, 0, 1], [1, 0, 0, 0, 0, 0]])
FORMS = {
    "a bias of the mask": "b = Where(m, zero, low) s = Add(x, b) p = Softmax(s)",
    "a choice": "s = Where(m, x, low) p = Softmax(s)",
    "a choice, turned": "n = Not(m) s = Where(n, low, x) p = Softmax(s)",
    "a product": "f = Cast<to = 1>(m) n = Sub(one, f) b = Mul(n, low) s = Add(x, b) p = Softmax(s)",
    "scaled behind the mask": "b = Where(m, zero, low) s = Add(x, b) t = Mul(s, half) p = Softmax(t)",
    "guarded against rows of NaN": "b = Where(m, zero, low) s = Add(x, b) q = Softmax(s) g = IsNaN(q) p = Where(g, zero, q)",
    "two masks": "b = Where(m, zero, low) s = Add(x, b) t = Add(s, b) p = Softmax(t)",
}  # fmt: skip


def attention(form: str, low: float) -> str:
    written = "-inf" if np.isinf(low) else repr(low)
    return f"""zero = Constant<value_float = 0.0>() one = Constant<value_float = 1.0>() half = Constant<value_float = 0.5>()
        low = Constant<value_float = {written}>() axes = Constant<value = int64[2] {{1, 2}}>()
        w = Unsqueeze(mask, axes) m = Cast<to = 9>(w) {form} y = MatMul(p, x)"""


@pytest.mark.parametrize("low", [-np.inf, LOWEST, -1e4])
@pytest.mark.parametrize("form", FORMS)
def test_masks_before_a_softmax_are_finite_sums(form: str, low: float) -> None:
    model = parsed("float[2,3,6,6] x, int64[2,6] mask", attention(FORMS[form], low))
    simple = simplify(model)
    assert not {"Where", "IsNaN", "Not", "And"} & set(ops(simple))
    numbers = [array for v in simple.graph.initializers.values() if (array := constant(v)) is not None]
    assert min(array.min() for array in numbers) >= MASKED / 0.5
    feeds = {"x": SCORES, "mask": MASK}
    expected = computed(model, feeds)
    if not (np.isinf(low) and form == "a product"):  # 0·∞: the original gives NaN
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(computed(simple, feeds), expected, rtol=1e-5, atol=1e-6)


def test_a_row_without_a_visible_score_sees_all() -> None:
    model = parsed("float[2,3,6,6] x, int64[2,6] mask", attention(FORMS["guarded against rows of NaN"], -np.inf))
    feeds = {"x": SCORES, "mask": MASK * [[1], [0]]}
    found, seen = computed(simplify(model), feeds), computed(model, {**feeds, "mask": np.ones_like(MASK)})
    np.testing.assert_allclose(found[1], seen[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[0], computed(model, feeds)[0], rtol=1e-5, atol=1e-6)


def test_constants_that_others_read_keep_their_numbers() -> None:
    body = """low = Constant<value_float = -5000.0>() zero = Constant<value_float = 0.0>() m = Cast<to = 9>(mask)
        b = Where(m, zero, low) s = Add(x, b) p = Softmax(s) t = Add(x, low) y = Add(p, t)"""
    model = parsed("float[6,6] x, int64[6,6] mask", body)
    simple = simplify(model)
    feeds = {"x": SCORES[0, 0], "mask": np.tril(np.ones((6, 6), np.int64))}
    np.testing.assert_allclose(computed(simple, feeds), computed(model, feeds), rtol=1e-6)


def test_scores_that_are_an_output_too_are_not_changed() -> None:
    body = """low = Constant<value_float = -5000.0>() zero = Constant<value_float = 0.0>() m = Cast<to = 9>(mask)
        b = Where(m, zero, low) y = Add(x, b) p = Softmax(y)"""
    model = parsed("float[6,6] x, int64[6,6] mask", body, "float y, float p")
    feeds = {"x": SCORES[0, 0], "mask": np.tril(np.ones((6, 6), np.int64))}
    np.testing.assert_array_equal(computed(simplify(model), feeds), computed(model, feeds))
