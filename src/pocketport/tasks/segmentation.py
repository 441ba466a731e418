"""Segmentation against the float model: which pixels a detector marks."""

import numpy as np
from numpy.typing import NDArray

from pocketport.tasks.agreement import Agreement

THRESHOLD = 0.3  # at which PP-OCR's detector, and DBNet before it (Liao et al. 2020), binarise their map


class Segmentation(Agreement):
    """Intersection over union of the pixels over `THRESHOLD` in a target's probability map and in float's."""

    name = "segmentation"
    metric = "pixel_iou"

    @staticmethod
    def score(ours: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
        """IoU of two maps with values in [0, 1]; 1 where neither marks anything."""
        marked, expected = ours > THRESHOLD, reference > THRESHOLD
        union = int((marked | expected).sum())
        return float((marked & expected).sum() / union) if union else 1.0
