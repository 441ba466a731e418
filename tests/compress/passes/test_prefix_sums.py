import numpy as np
import pytest

from pocketport.compress.passes.simplify import simplify

from .graphs import computed, ops, parsed


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (3, 16), (2, 37)])
def test_running_sums_of_integers_are_additions(shape: tuple[int, int], axis: int) -> None:
    body = f"axis = Constant<value = int64 {{{axis}}}>() s = CumSum(x, axis) y = Cast<to = 1>(s)"
    model = parsed(f"int64[{shape[0]},{shape[1]}] x", body)
    simple = simplify(model)
    assert not {"CumSum"} & set(ops(simple))
    feeds = {"x": np.random.default_rng(0).integers(-9, 9, shape)}
    np.testing.assert_array_equal(computed(simple, feeds), computed(model, feeds))


@pytest.mark.parametrize("attribute", ["exclusive", "reverse"])
def test_other_sums_stay(attribute: str) -> None:
    body = f"axis = Constant<value = int64 {{0}}>() s = CumSum<{attribute} = 1>(x, axis) y = Cast<to = 1>(s)"
    model = parsed("int64[5] x", body)
    assert ops(simplify(model))["CumSum"] == 1
