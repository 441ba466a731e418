"""Slicing against the paper's formula (arXiv 2408.01800, eq. 2-3), worked out here independently."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from pocketport.compress.families.minicpmv.config import SliceConfig
from pocketport.compress.families.minicpmv.slicing import (
    best_grid,
    find_best_resize,
    max_patches,
    pack_views,
    plan_slices,
    position_ids,
    sincos_positions,
    slice_image,
    to_patches,
)

SMALL = SliceConfig(max_slice_nums=4, scale_resolution=112, patch_size=14)
PUBLISHED = SliceConfig(max_slice_nums=9, scale_resolution=448, patch_size=14)


@pytest.mark.parametrize(
    ("size", "config", "grid"),
    [
        # N = ceil(1344 * 896 / 448²) = 6; 5, 6, 7 slices: log(1.5) is met exactly by 3 x 2.
        ((1344, 896), PUBLISHED, (3, 2)),
        # N = 4; 3, 4, 5 slices: the square is met by 2 x 2.
        ((896, 896), PUBLISHED, (2, 2)),
        # N = 9 (capped); 8, 9 slices: ratio 2 is met by 4 x 2.
        ((2000, 1000), PUBLISHED, (4, 2)),
        # N = 2; 2, 3 slices (1 is left out): |log 4/3| to 2 x 1 is 0.405, to 1 x 2 is 0.98.
        ((160, 120), SMALL, (2, 1)),
        # N = 2; ratio 1/3 is met by 1 x 3.
        ((80, 240), SMALL, (1, 3)),
        # N = 4; 3, 4 slices (5 is above the limit): ratio 4 is met by 4 x 1.
        ((448, 112), SMALL, (4, 1)),
        ((112, 112), SMALL, None),
        ((224, 56), SMALL, None),
        ((1, 1), SMALL, None),
    ],
)
def test_grid_table(size: tuple[int, int], config: SliceConfig, grid: tuple[int, int] | None) -> None:
    assert best_grid(size, config) == grid


@pytest.mark.parametrize("config", [SMALL, PUBLISHED])
def test_grid_has_the_best_score(config: SliceConfig) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        width = int(rng.integers(40, 8 * config.scale_resolution))
        height = max(1, int(width * math.exp(rng.uniform(-1, 1) * math.log(4))))
        count = min(math.ceil(Fraction(width * height, config.scale_resolution**2)), config.max_slice_nums)
        grid = best_grid((width, height), config)
        if count == 1:
            assert grid is None
            continue
        scores = {
            (m, n): -abs(math.log(width / height) - math.log(m / n))
            for m in range(1, count + 2)
            for n in range(1, count + 2)
            if abs(m * n - count) <= 1 and 1 < m * n <= config.max_slice_nums
        }
        assert grid in scores
        assert scores[grid] == max(scores.values())


def test_resize_keeps_aspect_and_area() -> None:
    assert find_best_resize((448, 448), PUBLISHED, allow_upscale=True) == (448, 448)
    assert find_best_resize((100, 50), PUBLISHED) == (98, 56)  # small: only rounded to whole patches
    width, height = find_best_resize((100, 50), PUBLISHED, allow_upscale=True)
    assert (width, height) == (630, 322)  # 448 * sqrt(2) = 633.6 and 316.8, to whole patches


def test_slices_tile_the_refined_image() -> None:
    image = Image.effect_noise((300, 170), 60).convert("RGB")
    views, grid = slice_image(image, SMALL)
    plan = plan_slices(image.size, SMALL)
    assert grid == plan.grid
    assert grid is not None and plan.refined is not None
    assert [v.size for v in views] == plan.sizes
    refined = np.asarray(image.resize(plan.refined, Image.Resampling.BICUBIC))
    rows = [
        np.concatenate([np.asarray(v) for v in views[1 + r * grid[0] : 1 + (r + 1) * grid[0]]], axis=1)
        for r in range(grid[1])
    ]
    assert np.array_equal(np.concatenate(rows, axis=0), refined)


def test_strip_is_the_published_unfold() -> None:
    view = Image.effect_noise((56, 42), 80).convert("RGB")
    strip, target = to_patches(view, 14)
    pixels = torch.tensor(np.asarray(view, dtype=np.float32) / 255).permute(2, 0, 1)
    pixels = (pixels - 0.5) / 0.5
    patches = torch.nn.functional.unfold(pixels[None], (14, 14), stride=(14, 14))
    patches = patches.reshape(3, 14, 14, -1).permute(0, 1, 3, 2).reshape(3, 14, -1)
    assert target == (3, 4)
    torch.testing.assert_close(torch.from_numpy(strip), patches)


@pytest.mark.parametrize("buckets", [24, 70])
def test_position_ids_are_bucketized_as_published(buckets: int) -> None:
    boundaries = torch.arange(1 / buckets, 1.0, 1 / buckets)
    for count in range(1, buckets + 1):
        expected = torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / count), boundaries, right=True)
        rows = position_ids((count, 1), buckets) // buckets
        # Exactly on a boundary torch's vectorized arange rounds either way; the reference's table (24) has no such case.
        settled = [i for i in range(count) if buckets == 24 or (i * buckets) % count]
        assert rows[settled].tolist() == expected[settled].tolist(), count
        assert rows.tolist() == [int(Fraction(i, count) * buckets) for i in range(count)]
        assert position_ids((1, count), buckets).tolist() == rows.tolist()
    grid = position_ids((5, 7), buckets).reshape(5, 7)
    columns, rows = position_ids((1, 7), buckets), position_ids((5, 1), buckets)
    assert (grid == rows[:, None] + columns[None]).all()


def test_sincos_positions() -> None:
    table = sincos_positions(8, (2, 3)).reshape(2, 3, 8)
    omega = np.asarray([1.0, 0.01])
    expected = [*np.sin(2 * omega), *np.cos(2 * omega), *np.sin(1 * omega), *np.cos(1 * omega)]
    np.testing.assert_allclose(table[1, 2], expected, rtol=1e-6)  # row 1, column 2: the column comes first


def test_max_patches_bounds_every_size() -> None:
    limit = max_patches(SMALL)
    rng = np.random.default_rng(1)
    for _ in range(2000):
        width = int(rng.integers(1, 2000))
        height = int(rng.integers(math.ceil(width / 4), width * 4 + 1))
        for view in plan_slices((width, height), SMALL).sizes:
            assert (view[0] // 14) * (view[1] // 14) <= limit


def test_pack_views_pads() -> None:
    views = [Image.new("RGB", size, "white") for size in ((112, 112), (56, 210))]
    batch = pack_views(views, patch_size=14, buckets=24, dim=16, length=72)
    assert batch.strip.shape == (2, 3, 14, 72 * 14)
    assert batch.valid.sum(1).tolist() == [64, 60]
    assert not batch.strip[1, :, :, 60 * 14 :].any()
    with pytest.raises(ValueError):
        pack_views(views, patch_size=14, buckets=24, dim=16, length=61)
