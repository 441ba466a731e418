"""Offline constructions, with random weights, of models that phones were measured with: shapes decide latency, values don't.

The names are those of ``snapdragon_models.csv``, which says how close each construction is to what the device ran.
"""

from latency_models.base import Construction
from latency_models.classification import CLASSIFICATION
from latency_models.compact import COMPACT
from latency_models.darknet import DARKNET
from latency_models.deformable import DEFORMABLE
from latency_models.detection import DETECTION
from latency_models.faces import FACES
from latency_models.gaze import GAZE
from latency_models.generation import GENERATION
from latency_models.keypoints import KEYPOINTS
from latency_models.mediapipe import MEDIAPIPE
from latency_models.openvocabulary import OPEN_VOCABULARY
from latency_models.pixelwise import PIXELWISE
from latency_models.promptable import PROMPTABLE
from latency_models.proposals import PROPOSALS
from latency_models.realtime import REALTIME
from latency_models.reidentification import REIDENTIFICATION
from latency_models.restoration import RESTORATION
from latency_models.segmentation import SEGMENTATION
from latency_models.text import TEXT
from latency_models.tracking import TRACKING
from latency_models.transformer import TRANSFORMER
from latency_models.yolov5face import YOLOV5FACE
from latency_models.yolov6 import YOLOV6
from latency_models.yolov9 import YOLOV9
from latency_models.yolov10 import YOLOV10

CONSTRUCTIONS: dict[str, Construction] = {
    **CLASSIFICATION, **REIDENTIFICATION, **TRANSFORMER, **RESTORATION, **DETECTION, **DARKNET, **YOLOV10,
    **COMPACT, **SEGMENTATION, **PROMPTABLE, **TEXT, **GENERATION, **TRACKING, **OPEN_VOCABULARY,
    **DEFORMABLE, **REALTIME, **MEDIAPIPE, **FACES, **PIXELWISE,
    **GAZE, **PROPOSALS, **YOLOV5FACE, **YOLOV6, **YOLOV9, **KEYPOINTS,
}  # fmt: skip

__all__ = ["CONSTRUCTIONS", "Construction"]
