"""The reference task's generator: deterministic, split honestly, within its declared bounds."""

import numpy as np
import pytest

from pocketport.calibration.sources.rendered_text import (
    HELD_OUT_FONTS,
    TRAIN_FONTS,
    RenderedText,
    Split,
    font_paths,
    split_of,
)


@pytest.fixture(scope="module", params=["train", "held_out"])
def source(request: pytest.FixtureRequest) -> RenderedText:
    return RenderedText(7, request.param)


def test_same_seed_and_index_give_the_same_pixels() -> None:
    first, again, other = RenderedText(3, "held_out"), RenderedText(3, "held_out"), RenderedText(4, "held_out")
    for index in (0, 17, 5):
        a, b = first[index], again[index]
        assert a.answer == b.answer
        assert np.array_equal(np.asarray(a.image), np.asarray(b.image))
    assert [s.answer for s in first.take(5)] != [s.answer for s in other.take(5)]


def test_samples_are_within_bounds(source: RenderedText) -> None:
    samples = list(source.take(120))
    for sample in samples:
        width, height = sample.image.size
        assert 0.25 <= width / height <= 4.0
        assert 1 <= len(sample.answer) <= source.style.max_chars
        assert sample.centres.shape == (len(sample.answer), 2)
        assert (sample.centres >= 0).all() and (sample.centres < (width, height)).all()
        assert split_of(sample.answer) == source.split
        assert sample.answer == sample.answer.strip()
    areas = np.asarray([s.image.width * s.image.height for s in samples]) / 112**2
    assert 0.2 < np.mean(areas > 1) < 0.5
    assert areas.min() < 0.7 and areas.max() > 4
    assert len({s.font for s in samples}) > 4
    assert any("\n" in s.answer for s in samples) and any(" " in s.answer for s in samples)


def test_ink_is_where_the_centres_say() -> None:
    """Around every letter's centre the image varies: something is drawn there."""
    for sample in RenderedText(11, "held_out").take(30):
        grey = np.asarray(sample.image.convert("L"), dtype=np.float32)
        for char, (x, y) in zip(sample.answer, sample.centres, strict=True):
            if char.isalnum():
                box = grey[max(int(y) - 16, 0) : int(y) + 17, max(int(x) - 16, 0) : int(x) + 17]
                assert np.ptp(box) > 20, (sample.answer, char)


def test_splits_share_no_font_and_no_text() -> None:
    assert not set(TRAIN_FONTS) & set(HELD_OUT_FONTS)
    splits: tuple[Split, Split] = ("train", "held_out")
    texts = [{s.answer for s in RenderedText(1, split).take(150)} for split in splits]
    assert not texts[0] & texts[1]


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_font_has_every_character(split: Split) -> None:
    from matplotlib.ft2font import FT2Font

    needed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:-/$%#&!?()")
    for path in font_paths(split):
        missing = needed - {chr(code) for code in FT2Font(str(path)).get_charmap()}
        assert not missing, (path.name, missing)
