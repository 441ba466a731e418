import numpy as np
import pytest

from pocketport.compress.passes.simplify import simplify

from .graphs import computed, ops, parsed

X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32) * 3
HEAD = """last = Constant<value = int64[1] {-1}>() two = Constant<value_float = 2.0>() one = Constant<value_float = 1.0>()
    epsilon = Constant<value_float = 0.01>() power = Constant<value_float = -0.5>()
    gamma = Constant<value_floats = [1.0, 2.0, -3.0, 0.5, 1.0, 1.0, 0.25, 4.0]>()"""
FORMS = {
    "divided": "q = Mul(x, x) m = ReduceMean(q, last) e = Add(m, epsilon) r = Sqrt(e) n = Div(x, r) y = Mul(gamma, n)",
    "by the reciprocal": "q = Pow(x, two) m = ReduceMean(q, last) e = Add(m, epsilon) r = Sqrt(e) i = Reciprocal(r) n = Mul(x, i) y = Mul(n, gamma)",
    "by one over it": "q = Mul(x, x) m = ReduceMean(q, last) e = Add(epsilon, m) r = Sqrt(e) i = Div(one, r) n = Mul(i, x) y = Mul(n, gamma)",
    "by a power": "q = Mul(x, x) m = ReduceMean(q, last) e = Add(m, epsilon) i = Pow(e, power) n = Mul(x, i) y = Mul(n, gamma)",
    "without a gain": "q = Mul(x, x) m = ReduceMean(q, last) e = Add(m, epsilon) r = Sqrt(e) n = Div(x, r) y = Neg(n)",
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_spelled_out_norms_are_one_op(form: str) -> None:
    model = parsed("float[2,5,8] x", f"{HEAD} {FORMS[form]}")
    simple = simplify(model)
    assert ops(simple)["RMSNormalization"] == 1 and not {"Sqrt", "ReduceMean", "Div"} & set(ops(simple))
    np.testing.assert_allclose(computed(simple, {"x": X}), computed(model, {"x": X}), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "q = Mul(x, x) m = ReduceMean(q, last) e = Add(m, epsilon) r = Sqrt(e) y = Div(r, x)",
        "q = Mul(x, gamma) m = ReduceMean(q, last) e = Add(m, epsilon) r = Sqrt(e) y = Div(x, r)",
    ],
)
def test_other_quotients_stay(body: str) -> None:
    assert ops(simplify(parsed("float[2,5,8] x", f"{HEAD} {body}")))["RMSNormalization"] == 0
