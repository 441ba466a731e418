import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketport.compress.graph import shape_of
from pocketport.compress.passes.simplify import simplify

from .graphs import computed, ops, parsed


@pytest.mark.parametrize("batch", [1, 2])
def test_windows_are_turned_in_five_dimensions(batch: int) -> None:
    """As a Swin cuts its windows: six dimensions, of which some stay neighbours."""
    body = """parts = Constant<value = int64[6] {0, 2, 4, 3, 4, 5}>() windows = Constant<value = int64[3] {-1, 16, 5}>()
        p = Reshape(x, parts) t = Transpose<perm = [0, 1, 3, 2, 4, 5]>(p) r = Reshape(t, windows)
        y = Relu(r)"""
    model = parsed(f"float[{batch},8,12,5] x", body)
    simple = simplify(model)
    assert max(len(shape_of(v)) for node in simple.graph for v in node.outputs) <= 5
    assert ops(simple) == {"Reshape": 2, "Transpose": 1, "Relu": 1}
    x = np.random.default_rng(0).normal(size=(batch, 8, 12, 5)).astype(np.float32)
    np.testing.assert_array_equal(computed(simple, {"x": x}), computed(model, {"x": x}))


@settings(max_examples=20, deadline=None)
@given(perm=st.permutations(range(6)), shape=st.lists(st.integers(1, 3), min_size=6, max_size=6))
def test_any_order_of_any_dimensions(perm: list[int], shape: list[int]) -> None:
    body = f"t = Transpose<perm = {list(perm)}>(x) y = Relu(t)"
    model = parsed(f"float[{','.join(map(str, shape))}] x", body)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(computed(simplify(model), {"x": x}), computed(model, {"x": x}))
