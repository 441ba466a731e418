"""The tasks that compare with float."""

import numpy as np
import pytest

from pocketport.tasks.agreement import Agreement
from pocketport.tasks.ctc_recognition import decode_greedy, line_to_tensor, rendered_line
from pocketport.tasks.segmentation import Segmentation


def test_pixel_iou() -> None:
    ours, reference = np.array([0.9, 0.4, 0.1, 0.31]), np.array([0.8, 0.2, 0.1, 0.9])
    assert Segmentation.score(ours, reference) == pytest.approx(2 / 3)
    assert Segmentation.score(np.zeros(4), np.zeros(4)) == 1.0
    assert Segmentation.score(ours, np.zeros(4)) == 0.0


def test_cosine() -> None:
    assert Agreement.score(np.array([3.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(0.5**0.5)
    assert Agreement.score(np.zeros(2), np.zeros(2)) == 1.0


def test_greedy_ctc() -> None:
    best = [0, 1, 1, 0, 1, 2, 2, 0]
    assert decode_greedy(np.eye(3)[best], ["a", "b"]) == "aab"


def test_rendered_lines_are_reproducible_and_fit_the_model() -> None:
    image, text = rendered_line(7)
    again, same = rendered_line(7)
    assert text == same and np.array_equal(np.asarray(image), np.asarray(again)) and 0 < len(text) <= 16
    tensor = line_to_tensor(image, 48, 320)
    assert tensor.shape == (1, 3, 48, 320) and np.abs(tensor).max() <= 1.0
