"""Models as people export them today, through ingestion, the parity gate and every target's check: a table for docs/porting.md.

    python benchmarks/foreign_exports.py [--only NAME …] [--docs]

Small transformers models with random weights, exported by torch's two exporters (``dynamo=True``, the default, and ``dynamo=False``) with
static shapes. Of each file: SQNR of our float graph against onnxruntime on the file as it came, and what each target refuses.
"""

import argparse
import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers
from docs_section import replace_section

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.graph import hollowed
from pocketport.compress.ingest import ingest
from pocketport.compress.parity import check_parity
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import load_recipe
from pocketport.diagnostics import Severity
from pocketport.errors import PocketportError
from pocketport.targets.contract import Target
from pocketport.targets.registry import backend_for

TARGETS = ("qualcomm/sm8650", "apple/a17-pro", "mediatek/mt6989", "x86/avx2")
EXPORTERS = {
    "dynamo": {"dynamo": True, "external_data": True, "verbose": False},
    "legacy": {"dynamo": False, "opset_version": 17},
}
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 64}  # fmt: skip
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32, "patch_size": 8}  # fmt: skip
GROUPED = {**TEXT, "num_key_value_heads": 2}
WINDOWS = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}


@dataclass(frozen=True)
class Model:
    """A class of transformers, its configuration and what it is given; text where `pixels` is 0."""

    architecture: str
    config: str
    settings: Mapping[str, Any]
    pixels: int = 0
    attention: str | None = None


MODELS = {
    "BERT": Model("BertModel", "BertConfig", TEXT), "BERT, eager": Model("BertModel", "BertConfig", TEXT, attention="eager"),
    "RoBERTa": Model("RobertaForSequenceClassification", "RobertaConfig", TEXT), "MPNet": Model("MPNetModel", "MPNetConfig", TEXT),
    "DeBERTa-v2": Model("DebertaV2Model", "DebertaV2Config", {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "T5 encoder": Model("T5EncoderModel", "T5Config", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}),
    "CLIP text": Model("CLIPTextModelWithProjection", "CLIPTextConfig", {**TEXT, "projection_dim": 16, "eos_token_id": 99}),
    "GPT-2": Model("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 64, "use_cache": False}),
    "Llama": Model("LlamaForCausalLM", "LlamaConfig", {**GROUPED, "use_cache": False}),
    "Gemma 3": Model("Gemma3ForCausalLM", "Gemma3TextConfig", {**GROUPED, "head_dim": 8, "sliding_window": 8, "use_cache": False}),
    "ViT": Model("ViTForImageClassification", "ViTConfig", VISION, 32), "DINOv2": Model("Dinov2Model", "Dinov2Config", VISION, 32),
    "SigLIP vision": Model("SiglipVisionModel", "SiglipVisionConfig", VISION, 32), "BEiT": Model("BeitModel", "BeitConfig", VISION, 32),
    "YOLOS": Model("YolosForObjectDetection", "YolosConfig", {**VISION, "image_size": [32, 32], "num_detection_tokens": 10}, 32),
    "Swin": Model("SwinForImageClassification", "SwinConfig", WINDOWS, 64), "Swin v2": Model("Swinv2Model", "Swinv2Config", WINDOWS, 64),
    "SegFormer": Model("SegformerForSemanticSegmentation", "SegformerConfig", {**STAGES, "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 32}, 64),
    "ConvNeXt V2": Model("ConvNextV2ForImageClassification", "ConvNextV2Config", STAGES, 64),
    "RegNet": Model("RegNetForImageClassification", "RegNetConfig", {**STAGES, "embedding_size": 8, "groups_width": 8}, 64),
}  # fmt: skip


class Exported(torch.nn.Module):
    """A model that takes tensors by place and gives its first output."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The first output."""
        first: torch.Tensor = self.model(**dict(zip(self.names, inputs, strict=True)))[0]
        return first


def export(model: Model, exporter: str, path: Path) -> None:
    """Write `path`, as whoever follows torch's documentation does."""
    torch.manual_seed(0)
    config = getattr(transformers, model.config)(**model.settings)
    chosen = {} if model.attention is None else {"attn_implementation": model.attention}
    made = getattr(transformers, model.architecture)._from_config(config, **chosen).eval().requires_grad_(False)
    if model.pixels:
        module, inputs = Exported(made, ("pixel_values",)), (torch.randn(1, 3, model.pixels, model.pixels),)
    else:
        names = ("input_ids", "attention_mask")
        module, inputs = Exported(made, names), (torch.randint(5, 99, (1, 16)), torch.ones(1, 16, dtype=torch.long))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, str(path), **EXPORTERS[exporter])


def refused(bundle: ModelBundle, target: str) -> str:
    """What a target does not take, ``✓`` where that is nothing and the default recipe plans it."""
    parsed = Target.parse(target)
    backend = backend_for(parsed)
    graph = bundle["main"].graph
    found = [d for d in backend.check("main", hollowed(graph), parsed) if d.severity is Severity.ERROR]
    make_plan(bundle, load_recipe("default"), target, backend.legality(parsed))
    return ", ".join(sorted({d.where.rpartition("op ")[2] for d in found})) or "✓"


def rows(names: list[str]) -> Iterator[str]:
    """Lines of the table."""
    for name in names:
        for exporter in EXPORTERS:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                export(MODELS[name], exporter, path)
                try:
                    bundle = ingest(path)
                    least = min(figure.sqnr_db for figure in check_parity(bundle, path).figures)
                    cells = [f"{least:.0f} dB" if least < 200 else "equal", *(refused(bundle, t) for t in TARGETS)]
                except PocketportError as error:
                    cells = [f"{error.where}: {error.why}", *("" for _ in TARGETS)]
            yield f"| {name} | {exporter} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table, and put it into docs/porting.md with ``--docs``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--docs", action="store_true")
    given = parser.parse_args()
    versions = ", ".join(f"{m.__name__} {m.__version__.partition('+')[0]}" for m in (torch, transformers, onnx))
    lines = [
        "| model | exporter | float | " + " | ".join(t.partition("/")[0] for t in TARGETS) + " |",
        "|---|---|" + "---|" * (1 + len(TARGETS)),
    ]
    for line in rows(given.only):
        print(line, flush=True)
        lines.append(line)
    if given.docs:
        text = "\n".join([f"With {versions}:", "", *lines])
        replace_section(Path(__file__).parents[1] / "docs" / "porting.md", "foreign exports", text)


if __name__ == "__main__":
    main()
