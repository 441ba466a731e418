import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pocketport.calibration.encodings import Encoding
from pocketport.targets.apple.weights import compress, pack


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=40))
def test_packing_keeps_every_nibble_in_order(values: list[int]) -> None:
    packed = pack(np.array(values), 4)
    assert packed.nbytes == (len(values) + 1) // 2
    nibbles = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[: len(values)]
    assert np.where(nibbles > 7, nibbles.astype(int) - 16, nibbles).tolist() == values


@given(st.sampled_from([(None, 0), (0, 0), (1, 0), (1, 4), (0, 3)]), st.integers(0, 2**32 - 1))
def test_compressed_weights_mean_what_their_encoding_says(layout: tuple[int | None, int], seed: int) -> None:
    axis, block = layout
    rng = np.random.default_rng(seed)
    integers = rng.integers(-128, 128, (6, 8)).astype(np.int8)
    shape = (
        ()
        if axis is None
        else tuple(n // block if d == axis else n for d, n in enumerate((6, 8)))
        if block
        else ((6, 8)[axis],)
    )
    scale = rng.uniform(0.01, 1, shape).astype(np.float32)
    zero_point = rng.integers(-5, 5, shape)
    expected = Encoding("int8", scale, zero_point.astype(np.int32), axis, block).dequantize(integers)
    weight = compress(integers, "int8", scale, zero_point.astype(np.int8), axis or 0, block)
    np.testing.assert_array_equal(weight.dense(), expected)
    np.testing.assert_array_equal(weight.transposed((1, 0)).dense(), expected.T)
