import numpy as np
import pytest

from pocketport.compress.conditioning.hadamard import hadamard_matrix, orthogonal


@pytest.mark.parametrize(
    "size", [1, 2, 4, 8, 12, 20, 24, 28, 36, 40, 44, 60, 64, 76, 108, 128, 192, 256, 384, 576, 640, 768, 896, 1152]
)
def test_rows_are_signs_and_orthogonal(size: int) -> None:
    matrix = hadamard_matrix(size)
    assert matrix is not None and (np.abs(matrix) == 1).all()
    np.testing.assert_array_equal(matrix @ matrix.T, size * np.eye(size))


@pytest.mark.parametrize("size", [3, 6, 10, 18, 92])
def test_sizes_without_one_are_rotated_all_the_same(size: int) -> None:
    """Odd sizes have none; 92 has one that these constructions do not reach."""
    assert hadamard_matrix(size) is None
    matrix = orthogonal(size, 0)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)


def test_seeds() -> None:
    first, again, other = (orthogonal(64, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_allclose(np.abs(first), 1 / 8)
    dense = orthogonal(64, 1, hadamard=False)
    np.testing.assert_allclose(dense @ dense.T, np.eye(64), atol=1e-12)
    assert not np.allclose(np.abs(dense), 1 / 8)
