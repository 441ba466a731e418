"""Drawn rows are rows of the data, from all of it, and never more than a bound."""

import numpy as np
import pytest

from pocketport.calibration.drawn_rows import BLOCKS, MOST_ROWS, VALUES, DrawnRows, drawn_rows


@pytest.mark.parametrize(
    ("shape", "axis"), [((1, 3, 40, 50), 1), ((128, 384), 1), ((2, 7, 5000), 2), ((1, 6, 1, 1), 1)]
)
@pytest.mark.parametrize("samples", [1, 20, 150])
def test_rows_are_of_the_data_and_bounded(shape: tuple[int, ...], axis: int, samples: int) -> None:
    drawn = DrawnRows()
    data = [np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i in range(samples)]
    for sample, value in enumerate(data):
        drawn.add(drawn_rows(value, axis, sample))
    rows, channels = drawn.rows(), shape[axis]
    assert rows.shape[1] == channels and len(rows) <= BLOCKS * MOST_ROWS
    assert rows.size <= max(VALUES, BLOCKS * channels)
    known = [{row.tobytes() for row in np.moveaxis(value, axis, -1).reshape(-1, channels)} for value in data]
    found = [next(i for i, those in enumerate(known) if row.tobytes() in those) for row in rows]
    assert len(set(found)) >= min(samples, BLOCKS // 2) and found == sorted(found)


def test_other_positions_in_every_sample() -> None:
    drawn = DrawnRows()
    ramp = np.arange(5000, dtype=np.float32).reshape(5000, 1)
    for sample in range(10):
        drawn.add(drawn_rows(ramp, 1, sample))
    assert len(np.unique(drawn.rows())) > 8 * MOST_ROWS
