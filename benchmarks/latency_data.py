"""Measured latencies of models whose graphs are known, and how predictions are scored against them."""

import csv
import gzip
import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pocketport.profiles.prediction.features import GraphFeatures

FEATURES = Path(__file__).parent / "data" / "latency_features.json.gz"
FAITHFUL = 1.5  # a construction counts when its ops are within this factor of what the device ran
PRECISIONS = ("float", "w8a8", "w8a16")
RUNTIMES = ("qnn_dlc", "qnn_context_binary", "onnx", "tflite")
# What these run is compiled like a DLC (median difference 0.7 %): measurements of models that were not measured as one. Voice AI's bundles hold
# context binaries (`qai_hub_models/common.py`).
LIKE_DLC = ("qnn_context_binary", "voice_ai")
# Constructions that the data's analysis has in another form or not at all: family, and ops of the exported graph, of which devices count
# 44 less (what stacks is one layer, not a reshape for each part; so is a shuffle of channels) to 24 more
# (batch normalizations, and rectifiers with a slope a channel, are one op here); of text models up to a third more (they reshape around linear
# layers). Transposes around convolutions of what has its channels last are not counted.
COUNTED = {
    "ddrnet23_slim": ("ddrnet", 153),
    "deepbox:vgg_3d_detection": ("vgg", 61),
    "deepbox:yolo_2d_detection": ("yolo", 329),
    "deeplab_xception": ("seg", 259),
    "detectron2_detection:proposal_generator": ("rcnn", 134),
    "edgetam:encoder": ("hybrid", 294),
    "edgetam:memory_encoder": ("perceiver", 276),
    "edgetam:video_decoder": ("sam", 813),
    "eyegaze": ("gaze", 470),
    "face_attrib_net": ("attributes", 157),
    "face_det_lite": ("face", 122),
    "facemap_3dmm": ("resnet", 53),
    "ffnet_122ns_lowres": ("ffnet", 348),
    "ffnet_40s": ("ffnet", 142),
    "ffnet_54s": ("ffnet", 177),
    "ffnet_78s": ("ffnet", 237),
    "ffnet_78s_lowres": ("ffnet", 236),
    "foot_track_net": ("face", 196),
    "gear_guard_net": ("yolo", 239),
    "gpunet": ("effnet", 77),
    "internimage": ("internimage", 1273),
    "lpdm": ("yolo", 253),
    "mediapipe_face:face_detector": ("blaze", 146),
    "mediapipe_face:face_landmark_detector": ("blaze", 100),
    "mediapipe_hand_gesture:canned_gesture_classifier": ("gestures", 95),
    "mediapipe_hand_gesture:hand_landmark_detector": ("mbnet", 95),
    "mediapipe_hand_gesture:palm_detector": ("blaze", 213),
    "mediapipe_pose:pose_detector": ("blaze", 143),
    "mediapipe_pose:pose_landmark_detector": ("blaze", 287),
    "mediapipe_selfie": ("mbnet", 136),
    "midas": ("midas", 200),
    "opus_mt_en_es:decoder": ("bert", 324),
    "opus_mt_en_es:encoder": ("bert", 230),
    "osnet": ("osnet", 390),
    "pidnet": ("ddrnet", 206),
    "rtmpose_body2d": ("rtmpose", 243),
    "salsanext": ("salsanext", 173),
    "sam2:decoder": ("sam", 774),
    "sam2:encoder": ("sam", 444),
    "sinet": ("sinet", 201),
    "stable_diffusion_v1_5:text_encoder": ("vit", 329),
    "stable_diffusion_v1_5:vae": ("diffusion", 167),
    "superpoint": ("vgg", 94),
    "xlsr": ("sr", 19),
    "yolo_world:detector": ("yolo", 355),
    "yoloe_seg": ("yolo", 433),
    "yolov3": ("yolo", 112),
    "yolov5_face": ("yolo", 414),
    "yolov6": ("yolo", 323),
    "yolov7": ("yolo", 197),
    "yolov9_det": ("yolo", 758),
}
# Device → times that it moved by between two rounds of measurements.
UNSTEADY = {"Dragonwing RB3 Gen 2 Vision Kit": 2.4}


@dataclass(frozen=True)
class Sample:
    """One measured latency.

    Attributes:
        model: name of the construction; the same under every device, precision and runtime.
        family: models that must not be on both sides of a split.
        device: as the data name it.
        precision: of `PRECISIONS`.
        runtime: of `RUNTIMES`.
        ms: milliseconds.
    """

    model: str
    family: str
    device: str
    precision: str
    runtime: str
    ms: float


def read(path: Path) -> list[dict[str, str]]:
    """A CSV file's rows."""
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def load_features() -> dict[str, GraphFeatures]:
    """Model → features, from the committed cache."""
    document = json.loads(gzip.decompress(FEATURES.read_bytes()))
    return {name: GraphFeatures.from_json(entry, f"{FEATURES}, {name}") for name, entry in document.items()}


def faithful(data: Path) -> dict[str, str]:
    """Constructions that are close to what devices ran → their families."""
    found = {}
    for row in read(data / "snapdragon_models.csv"):
        if 1 / FAITHFUL <= float(row["ops_ratio"] or 1) <= FAITHFUL:
            found[row["model"]] = row["family"]
    layers = {
        name: float(row["l_total"] or 0)
        for row in sorted(read(data / "snapdragon_npu_latency.csv"), key=lambda row: row["precision"] == "float")
        for name in (row["model"], f"{row['model']}:{row['component']}")
    }
    for name, (family, ops) in COUNTED.items():
        if 1 / FAITHFUL <= ops / layers.get(name, math.inf) <= FAITHFUL:
            found[name] = family
    return found


def samples(data: Path, *, unsteady: bool = False) -> list[Sample]:
    """NPU latencies of the faithful constructions, on devices that are `UNSTEADY` or on all others; rows that repeat another device's are left out."""
    families = faithful(data)
    found: dict[tuple[str, str, str, str], list[float]] = {}
    for row in read(data / "snapdragon_npu_latency.csv"):
        name = row["model"] if row["model"] in families else f"{row['model']}:{row['component']}"
        known = name in families and row["precision"] in PRECISIONS and row["runtime"] in (*RUNTIMES, *LIKE_DLC)
        if known and row["unit"] == "NPU" and row["copy"] == "0" and (row["device"] in UNSTEADY) == unsteady:
            found.setdefault((name, row["device"], row["precision"], row["runtime"]), []).append(float(row["ms"]))
    for runtime in LIKE_DLC:
        for name, device, precision in [key[:3] for key in found if key[3] == runtime]:
            found.setdefault((name, device, precision, "qnn_dlc"), found[name, device, precision, runtime])
    found = {key: values for key, values in found.items() if key[3] in RUNTIMES}
    return [Sample(key[0], families[key[0]], *key[1:], ms=median(values)) for key, values in sorted(found.items())]


@dataclass(frozen=True)
class Score:
    """How predictions lie around measurements.

    Attributes:
        n: how many.
        median_ape: median absolute percentage error, as a share.
        p90_ape: its 90th percentile.
        spearman: rank correlation; NaN below three measurements.
        within_2x: share within a factor of two.
        coverage: share inside the interval; NaN where none was made.
    """

    n: int
    median_ape: float
    p90_ape: float
    spearman: float
    within_2x: float
    coverage: float


def score(predicted: NDArray[np.float64], measured: NDArray[np.float64], inside: ArrayLike) -> Score:
    """Score predictions against measurements, both in milliseconds."""
    error, ratio = np.abs(predicted / measured - 1), measured / predicted
    rho = spearman(predicted, measured) if len(measured) > 2 else math.nan
    within = float(np.mean((ratio > 0.5) & (ratio < 2)))
    return Score(
        len(measured),
        float(np.median(error)),
        float(np.quantile(error, 0.9)),
        rho,
        within,
        float(np.mean(np.asarray(inside))),
    )


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's rank correlation, ties averaged."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])
