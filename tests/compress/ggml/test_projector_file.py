"""The table of positions that llama.cpp indexes by its own rule, against the published rule."""

import numpy as np
import pytest

from pocketport.compress.families.minicpmv.slicing import position_ids
from pocketport.compress.ggml.projector_file import BUCKETS, position_table, table_rows


@pytest.mark.parametrize("buckets", [24, 27, 32, 70])
def test_views_find_their_own_positions_in_the_larger_table(buckets: int) -> None:
    table = np.arange(buckets**2 * 2, dtype=np.float32).reshape(-1, 2)
    large = position_table(table, buckets)
    exact = table_rows(buckets)[1]
    assert large.shape == (BUCKETS**2, 2) and exact >= 9
    for target in [(rows, columns) for rows in range(1, exact + 1) for columns in (1, exact // 2, exact)]:
        np.testing.assert_array_equal(large[position_ids(target, BUCKETS)], table[position_ids(target, buckets)])
    if buckets != BUCKETS:
        sides = [(exact + 1, 1), (1, exact + 1)]
        assert any(
            (large[position_ids(t, BUCKETS)] != table[position_ids(t, buckets)]).any() for t in sides
        )  # exact is the most that can be said
