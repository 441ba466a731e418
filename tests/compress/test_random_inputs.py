import numpy as np
import onnx_ir as ir
import pytest

from pocketport.compress.random_inputs import random_input


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL])
def test_masks_leave_every_row_a_token(dtype: ir.DataType) -> None:
    value = ir.Value(name="x", shape=ir.Shape((64, 32)), type=ir.TensorType(dtype))
    found = random_input(value, np.random.default_rng(0))
    assert found.shape == (64, 32) and found.dtype == dtype.numpy()
    if dtype is not ir.DataType.FLOAT:
        assert set(np.unique(found)) == {0, 1} and found[:, 0].all() and 0.8 < found.mean() < 0.95
