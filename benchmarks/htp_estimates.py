"""The HTP compiler's own estimates of models that were measured on phones, for ``fit_roofline.py``.

    python benchmarks/htp_estimates.py [MODEL ...]

Builds each model with random weights (shapes decide latency, values don't), quantizes it as the toolkit does (three
random samples), lowers it for the sm8650 and asks the compiler for its estimate. New rows go to
``benchmarks/data/htp_estimates.csv``; rows that are there are not made again. Needs the extras ``qualcomm`` and ``test``.
"""

import argparse
import csv
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers as hf

TABLE = Path(__file__).parent / "data" / "htp_estimates.csv"
COLUMNS = ("model", "precision", "sa8255p_us", "toolchain")
TARGET = "qualcomm/sm8650"
SECONDS = 600


def _image(side: int) -> tuple[torch.Tensor, ...]:
    return (torch.zeros(1, 3, side, side),)


def _text(length: int) -> tuple[torch.Tensor, ...]:
    return (torch.zeros(1, length, dtype=torch.int32), torch.ones(1, length))


def _resnet(depths: list[int], kind: str = "bottleneck") -> hf.PreTrainedModel:
    widths = [256, 512, 1024, 2048] if kind == "bottleneck" else [64, 128, 256, 512]
    config = hf.ResNetConfig(depths=depths, layer_type=kind, hidden_sizes=widths, num_labels=1000)
    return hf.ResNetForImageClassification(config)


def _regnet() -> hf.PreTrainedModel:
    config = hf.RegNetConfig(
        depths=[2, 6, 15, 2], hidden_sizes=[96, 192, 432, 1008], groups_width=48, layer_type="x", num_labels=1000
    )
    return hf.RegNetForImageClassification(config)


def _minilm() -> hf.PreTrainedModel:
    return hf.BertModel(
        hf.BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    )


def _efficientnet(width: float, depth: float, size: int) -> hf.PreTrainedModel:
    config = hf.EfficientNetConfig(
        width_coefficient=width, depth_coefficient=depth, image_size=size, hidden_dim=int(1280 * width), num_labels=1000
    )
    return hf.EfficientNetForImageClassification(config)


# model → how to build it, its input, the precisions that phones were measured at
MODELS: Mapping[str, tuple[Callable[[], hf.PreTrainedModel], tuple[torch.Tensor, ...], tuple[str, ...]]] = {
    "resnet18": (lambda: _resnet([2, 2, 2, 2], "basic"), _image(224), ("float", "w8a8")),
    "resnet50": (lambda: _resnet([3, 4, 6, 3]), _image(224), ("float", "w8a8")),
    "resnet101": (lambda: _resnet([3, 4, 23, 3]), _image(224), ("float", "w8a8")),
    "regnet": (_regnet, _image(224), ("float", "w8a8")),
    "mobilenet_v2": (lambda: hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config(num_labels=1000)), _image(224), ("float", "w8a8", "w8a16")),
    "convnext_tiny": (lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(num_labels=1000)), _image(224), ("float", "w8a8", "w8a16")),
    "vit": (lambda: hf.ViTForImageClassification(hf.ViTConfig(num_labels=1000)), _image(224), ("float", "w8a8", "w8a16")),
    "mobile_vit": (lambda: hf.MobileViTForImageClassification(hf.MobileViTConfig(num_labels=1000)), _image(256), ("float", "w8a16")),
    "levit": (lambda: hf.LevitForImageClassification(hf.LevitConfig(num_labels=1000)), _image(224), ("float", "w8a16")),
    "efficientnet_b0": (lambda: _efficientnet(1.0, 1.0, 224), _image(224), ("float",)),
    "efficientnet_b4": (lambda: _efficientnet(1.4, 1.8, 380), _image(380), ("float", "w8a16")),
    "minilm_v2": (_minilm, _text(128), ("float",)),
    "distil_bert_base_uncased_hf": (lambda: hf.DistilBertForMaskedLM(hf.DistilBertConfig()), _text(384), ("float", "w8a16")),
    "bert_base_uncased_hf": (lambda: hf.BertForMaskedLM(hf.BertConfig()), _text(384), ("float", "w8a16")),
    "siglip2:image_encoder": (lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig()), _image(224), ("float", "w8a16")),
    "trocr:encoder": (
        lambda: hf.DeiTModel(hf.DeiTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, image_size=384)), _image(384), ("float",),
    ),
}  # fmt: skip


def rows() -> Iterator[dict[str, str]]:
    if TABLE.exists():
        with TABLE.open(encoding="utf-8") as stream:
            yield from csv.DictReader(stream)


class _First(torch.nn.Module):
    """A model that returns its first output alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.model(*inputs)[0]


def export(name: str, path: Path) -> None:
    build, inputs, _ = MODELS[name]
    torch.manual_seed(0)
    model = build()
    model.set_attn_implementation("eager") if hasattr(model, "set_attn_implementation") else None
    torch.onnx.export(_First(model.eval()), inputs, path, dynamo=True, opset_version=21, verbose=False)


def estimate(name: str, precision: str) -> float:
    """Microseconds by the compiler's model of the SA8255P."""
    from pocketport.calibration.capture import calibrate
    from pocketport.compress.apply import apply_plan
    from pocketport.compress.ingest import ingest
    from pocketport.compress.plan import make_plan
    from pocketport.compress.recipe import Recipe, Rule
    from pocketport.targets.contract import CompileRequest, Target
    from pocketport.targets.registry import backend_for

    target = Target.parse(TARGET)
    backend = backend_for(target)
    with TemporaryDirectory() as folder:
        work = Path(folder)
        export(name, work / "model.onnx")
        bundle = ingest(work / "model.onnx")
        component = next(iter(bundle))
        if precision != "float":
            recipe = Recipe(name="estimate", rules=[Rule(scheme=precision, fallback=["float"], algorithm="rtn")])
            plan = make_plan(bundle, recipe, TARGET, backend.legality(target))
            statistics = calibrate({component.name: component.graph}, samples(name, component))
            bundle, _ = apply_plan(bundle, plan, statistics)
        bundle.save(work / "pivot")
        request = CompileRequest(component.name, work / "pivot" / f"{component.name}.onnx", target, work, work)
        return float(backend.estimate(request, backend.lower(request))["sa8255p_us"])


def samples(name: str, component: Any) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Three random feeds."""
    noise = np.random.default_rng(0)
    names = [str(v.name) for v in component.graph.graph.inputs]
    for _ in range(3):
        values = [i.numpy() if i.ndim == 2 else noise.standard_normal(i.shape, np.float32) for i in MODELS[name][1]]
        yield component.name, dict(zip(names, values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print("estimate", estimate(*arguments.one.split("/")))
        return
    known = {(r["model"], r["precision"]) for r in rows()}
    TABLE.parent.mkdir(exist_ok=True)
    for name in arguments.models:
        for precision in MODELS[name][2]:
            if (name, precision) in known:
                continue
            # A process each: the vendor's library keeps state and may crash.
            command = [sys.executable, __file__, "--one", f"{name}/{precision}"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
            last = done.stdout.strip().splitlines()[-1:] or [""]
            if not last[0].startswith("estimate "):
                print(f"{name} {precision}: {(done.stderr.strip().splitlines() or ['no output'])[-1][:300]}")
                continue
            row = {
                "model": name,
                "precision": precision,
                "sa8255p_us": last[0].split()[1],
                "toolchain": f"onnxruntime-qnn {version('onnxruntime-qnn')}",
            }
            new = not TABLE.exists()
            with TABLE.open("a", encoding="utf-8", newline="") as stream:
                writer = csv.DictWriter(stream, COLUMNS)
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(name, precision, row["sa8255p_us"])


if __name__ == "__main__":
    main()
