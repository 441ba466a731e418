"""Offline constructions, with random weights, of models that phones were measured with: shapes decide latency, values don't.

The names are those of ``snapdragon_models.csv``, which says how close each construction is to what the device ran.
"""

from latency_models.base import Construction
from latency_models.classification import CLASSIFICATION
from latency_models.detection import DETECTION
from latency_models.restoration import RESTORATION
from latency_models.segmentation import SEGMENTATION
from latency_models.transformer import TRANSFORMER

CONSTRUCTIONS: dict[str, Construction] = {**CLASSIFICATION, **TRANSFORMER, **RESTORATION, **DETECTION, **SEGMENTATION}

__all__ = ["CONSTRUCTIONS", "Construction"]
