"""Recognising one rendered line of text with a CTC model (PP-OCR's recogniser and its kin)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pocketport.calibration.sources.rendered_text import Split, font_paths
from pocketport.calibration.sources.text_content import random_line
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Executor
from pocketport.compress.graph import shape_of
from pocketport.errors import UsageError
from pocketport.tasks.base import Answer

SEED = 30_000
SIZE = 2000
FONT_PIXELS = 40
MARGIN = 6
LONGEST = 16


def decode_greedy(probabilities: NDArray[np.floating], alphabet: Sequence[str]) -> str:
    """CTC greedy decoding (Graves et al. 2006): best class a step, repeats merged, blanks (class 0) dropped.

    Args:
        probabilities: [T, classes], any monotone score.
        alphabet: class 1… → character.
    """
    best = probabilities.argmax(axis=-1)
    kept = best[np.concatenate(([True], best[1:] != best[:-1]))]
    return "".join(alphabet[k - 1] for k in kept if k > 0)


def line_to_tensor(image: Image.Image, height: int, width: int) -> NDArray[np.float32]:
    """RGB line → float32 [1, 3, height, width] in [−1, 1]: aspect kept, the right padded with 0 (PP-OCR's way)."""
    scaled = image.convert("RGB").resize(
        (max(1, min(width, round(image.width * height / image.height))), height), Image.Resampling.BILINEAR
    )
    pixels = np.asarray(scaled, np.float32)[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1.0
    tensor = np.zeros((1, 3, height, width), np.float32)
    tensor[0, :, :, : pixels.shape[2]] = pixels
    return tensor


def rendered_line(index: int, fonts: Split = "held_out") -> tuple[Image.Image, str]:
    """Sample `index`: one dark line on a light ground, in a typeface of the split, and its text."""
    rng = np.random.default_rng([SEED, index])
    text = random_line(rng, LONGEST)
    paths = font_paths(fonts)
    font = ImageFont.truetype(str(paths[int(rng.integers(len(paths)))]), FONT_PIXELS)
    left, top, right, bottom = font.getbbox(text)
    size = (int(right - left) + 2 * MARGIN, int(bottom - top) + 2 * MARGIN)
    ground, ink = rng.integers(200, 256, 3), rng.integers(0, 90, 3)
    image = Image.new("RGB", size, tuple(int(v) for v in ground))
    ImageDraw.Draw(image).text((MARGIN - left, MARGIN - top), text, fill=tuple(int(v) for v in ink), font=font)
    return image, text


class CtcRecognition:
    """Exact match on single rendered lines; the alphabet is read from the ONNX file's ``character`` metadata."""

    name = "ctc-recognition"
    metric = "exact_match"

    def __init__(self, bundle: ModelBundle) -> None:
        graph = bundle["main"].graph
        characters = graph.metadata_props.get("character") or bundle.config.get("metadata", {}).get("character")
        if not characters:
            raise UsageError(
                "the model carries no alphabet (metadata key `character`)",
                where=bundle.name,
                fix="use `--task agreement` for this model",
            )
        self._alphabet = [*characters.splitlines(), " "]
        (graph_input,) = graph.graph.inputs
        self._input = str(graph_input.name)
        self._height, self._width = shape_of(graph_input)[2:]
        self._output = str(graph.graph.outputs[0].name)
        self.fingerprint = f"ctc-recognition/{SEED}"

    def __len__(self) -> int:
        return SIZE

    def feeds(self, index: int) -> tuple[dict[str, NDArray[np.float32]], str]:
        """The model's input for one sample, and the text that it shows."""
        image, text = rendered_line(index)
        return {self._input: line_to_tensor(image, self._height, self._width)}, text

    def evaluate(
        self, executors: Mapping[str, Executor], count: int, progress: Callable[[int], None] | None = None
    ) -> Sequence[Answer]:
        """Greedy recognition of the first `count` lines."""
        answers = []
        for index in range(min(count, SIZE)):
            feeds, expected = self.feeds(index)
            text = decode_greedy(np.asarray(executors["main"].run(feeds)[self._output])[0], self._alphabet).strip()
            answers.append(Answer(index, float(text == expected), expected, text))
            if progress:
                progress(index + 1)
        return answers
