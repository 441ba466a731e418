"""Rendered text: the reference task's images, seeded and deterministic.

Sample `index` of a source depends only on its seed, split, style and the index. The two splits share
neither a typeface nor an answer: every text belongs to exactly one of them, by its hash.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pocketport.calibration.sources.text_content import random_lines

PROMPT = "Read the text."
Split = Literal["train", "held_out"]
HELD_OUT_FONTS = (
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "cmss10.ttf",
)
TRAIN_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSansMono-BoldOblique.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
    "STIXGeneralBolIta.ttf",
    "cmr10.ttf",
    "cmb10.ttf",
    "cmtt10.ttf",
)
HELD_OUT_SHARE = 8
"""One text in this many belongs to the held-out split."""
SLICE_AREA = 112.0**2
MIN_OVERVIEW_PX = 14.0
"""Smallest font size as drawn and in the overview: a slice's edge may cut through a line."""


@dataclass(frozen=True)
class Style:
    """How hard the images are.

    Attributes:
        sliced: share of images larger than one slice.
        stacked: share of the smaller images with more than one line.
        max_chars: longest answer.
        max_angle: rotation in degrees, either way.
        grain: 1 for the full blur and noise, 0 for none.
        min_px, max_px: font size in pixels in the view that shows the text largest.
    """

    sliced: float = 0.3
    stacked: float = 0.2
    max_chars: int = 14
    max_angle: float = 6.0
    grain: float = 1.0
    min_px: float = 16.0
    max_px: float = 38.0


@dataclass(frozen=True)
class Sample:
    """One image with its question and answer.

    Attributes:
        image: RGB.
        answer: the exact text, lines joined by a newline.
        centres: pixel coordinates (x, y) of the centre of every character of `answer`, ``[len(answer), 2]``.
        font: file name of the typeface.
    """

    image: Image.Image
    prompt: str
    answer: str
    centres: NDArray[np.float32]
    font: str


def split_of(text: str) -> Split:
    """The only split that may show `text`."""
    digest = hashlib.sha256(text.encode()).digest()
    return "held_out" if digest[0] % HELD_OUT_SHARE == 0 else "train"


def font_paths(split: Split) -> tuple[Path, ...]:
    """The split's typefaces, from the files that matplotlib ships."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return tuple(folder / name for name in (TRAIN_FONTS if split == "train" else HELD_OUT_FONTS))


@cache
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


class RenderedText:
    """An endless, indexable source of samples.

    Args:
        seed: everything random follows from it and the index.
        fonts: the split, which also decides which texts are allowed.
        style: how hard the images are.
        extra_fonts: more typefaces for training; never used by the held-out split.
    """

    def __init__(
        self, seed: int, fonts: Split = "train", style: Style | None = None, extra_fonts: tuple[Path, ...] = ()
    ) -> None:
        self.seed = seed
        self.split: Split = fonts
        self.style = style or Style()
        self.fonts = font_paths(fonts) + (extra_fonts if fonts == "train" else ())

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, any non-negative integer."""
        rng = np.random.default_rng([self.seed, index])
        sliced = bool(rng.random() < self.style.sliced)
        while True:
            lines = random_lines(rng, self.style.max_chars, 0.55 if sliced else self.style.stacked)
            if split_of("\n".join(lines)) != self.split:
                continue
            sample = self._render(rng, lines, sliced)
            if sample is not None:
                return sample

    def take(self, count: int, start: int = 0) -> Iterator[Sample]:
        """`count` samples from `start` on."""
        for index in range(start, start + count):
            yield self[index]

    def _render(self, rng: np.random.Generator, lines: list[str], sliced: bool) -> Sample | None:
        """Lay out and draw `lines`; None if they would be too small or too large to be read fairly."""
        style = self.style
        path = self.fonts[int(rng.integers(len(self.fonts)))]
        gap, pitch = float(rng.uniform(0.27, 0.42)), float(rng.uniform(1.08, 1.45))
        angle = float(np.clip(rng.normal(0, 0.5), -1, 1)) * style.max_angle
        if rng.random() < 0.35:
            angle = 0.0
        width, _ = _measure(_font(path, 48), lines, gap * 48)
        text_w, text_h = width / 48, 1.1 + (len(lines) - 1) * pitch
        cos, sin = math.cos(math.radians(angle)), abs(math.sin(math.radians(angle)))
        box_w, box_h = text_w * cos + text_h * sin, text_w * sin + text_h * cos
        area = float(rng.uniform(1.05, 5.0) if sliced else rng.uniform(0.4, 1.0))
        for attempt in range(6):
            slack = 1.0 - attempt / 6
            canvas_w = box_w + 0.3 + float(rng.exponential(0.9)) * slack
            canvas_h = box_h + 0.2 + float(rng.exponential(0.6)) * slack
            if rng.random() < 0.35 * slack:
                aspect = math.exp(rng.uniform(-1, 1) * math.log(4))
                canvas_w, canvas_h = max(canvas_w, canvas_h * aspect), max(canvas_h, canvas_w / aspect)
            canvas_w, canvas_h = max(canvas_w, canvas_h / 3.95), max(canvas_h, canvas_w / 3.95)
            em = math.sqrt(area * SLICE_AREA / (canvas_w * canvas_h))
            seen = em * math.sqrt(min(max(area, 1.0), 4.0) / area)
            overview = em * min(1.0, area**-0.5)
            if style.min_px <= seen <= style.max_px and min(em, overview) >= MIN_OVERVIEW_PX:
                break
        else:
            return None
        size = (max(round(canvas_w * em), 1), max(round(canvas_h * em), 1))
        if max(size) > 4 * min(size):
            return None
        spare = ((size[0] - box_w * em) / 2 - 2, (size[1] - box_h * em) / 2 - 2)
        shift = [float(rng.uniform(-1, 1)) * max(s, 0.0) for s in spare]
        left = bool(rng.random() < 0.5)
        mask, centres = _draw_text(_font(path, max(round(em), 6)), lines, size, shift, angle, gap, pitch, left)
        image = _paint(rng, mask, em, style.grain)
        return Sample(image, PROMPT, "\n".join(lines), centres, path.name)


def _measure(font: ImageFont.FreeTypeFont, lines: list[str], gap: float) -> tuple[float, list[float]]:
    """The widest line and every line's width in pixels, words set `gap` apart."""
    widths = [sum(font.getlength(w) for w in line.split(" ")) + gap * line.count(" ") for line in lines]
    return max(widths), widths


def _draw_text(
    font: ImageFont.FreeTypeFont,
    lines: list[str],
    size: tuple[int, int],
    shift: list[float],
    angle: float,
    gap: float,
    pitch: float,
    left: bool,
) -> tuple[Image.Image, NDArray[np.float32]]:
    """The ink (L, 255 where there is text) and each character's centre, newlines included."""
    em = float(font.size)
    mask = Image.new("L", size, 0)
    draw = ImageDraw.Draw(mask)
    widest, widths = _measure(font, lines, gap * em)
    height = em * (1.0 + (len(lines) - 1) * pitch)
    middle = (size[0] / 2 + shift[0], size[1] / 2 + shift[1])
    points: list[tuple[float, float]] = []
    for row, line in enumerate(lines):
        x = middle[0] - (widest if left else widths[row]) / 2
        baseline = middle[1] - height / 2 + em * (0.78 + row * pitch)
        if row:
            points.append(points[-1])
        for number, word in enumerate(line.split(" ")):
            if number:
                points.append((x + gap * em / 2, baseline - 0.3 * em))
                x += gap * em
            draw.text((x, baseline), word, fill=255, font=font, anchor="ls")
            edges = [font.getlength(word[:end]) for end in range(len(word) + 1)]
            points += [(x + (a + b) / 2, baseline - 0.3 * em) for a, b in pairwise(edges)]
            x += edges[-1]
    centres = np.asarray(points, dtype=np.float32)
    if angle:
        mask = mask.rotate(angle, Image.Resampling.BICUBIC, center=middle)
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        offset = centres - np.asarray(middle, dtype=np.float32)
        turned = np.stack([offset @ (cos, sin), offset @ (-sin, cos)], axis=1)
        centres = (turned + np.asarray(middle)).astype(np.float32)
    return mask, centres


def _paint(rng: np.random.Generator, mask: Image.Image, em: float, grain: float) -> Image.Image:
    """Colour the ink and the ground, then blur and add noise."""
    if rng.random() < 0.35 * grain:
        mask = mask.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.035 * min(em, 24)))))
    ground, ink = _colours(rng)
    alpha = np.asarray(mask, dtype=np.float32)[..., None] / 255.0
    if rng.random() < 0.25:
        other = np.clip(ground + rng.uniform(-0.18, 0.18, 3), 0, 1).astype(np.float32)
        ramp = np.linspace(0, 1, alpha.shape[1] if rng.random() < 0.5 else alpha.shape[0], dtype=np.float32)
        ramp = ramp[None, :, None] if len(ramp) == alpha.shape[1] else ramp[:, None, None]
        field = ground + (other - ground) * ramp
    else:
        field = ground[None, None]
    pixels = field * (1 - alpha) + ink * alpha
    if rng.random() < 0.4 * grain:
        noise = rng.standard_normal(pixels.shape[:2], dtype=np.float32)[..., None]
        pixels = pixels + noise * np.float32(rng.uniform(0.01, 0.06))
    return Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8), "RGB")


def _colours(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Ground and ink in 0 … 1, with a luminance contrast of at least 0.4."""
    weights = np.asarray([0.3, 0.59, 0.11])
    if rng.random() < 0.25:
        light, dark = np.ones(3), np.zeros(3)
        pair = (light, dark) if rng.random() < 0.7 else (dark, light)
        return pair[0].astype(np.float32), pair[1].astype(np.float32)
    while True:
        ground, ink = rng.random(3), rng.random(3)
        if rng.random() < 0.5:
            ground = 0.75 + 0.25 * ground
        if abs(float((ground - ink) @ weights)) >= 0.4:
            return ground.astype(np.float32), ink.astype(np.float32)
