"""Stage 1: source → ModelBundle, and the parity gate that it must pass before anything is quantized."""

import json
from importlib import resources
from pathlib import Path

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.importers.onnx_folder import onnx_files
from pocketport.compress.ingest import REFERENCE, leave
from pocketport.compress.ingest import ingest as ingest_source
from pocketport.compress.parity import check_parity
from pocketport.errors import UsageError
from pocketport.files import sha256_files, write_json
from pocketport.stages.context import Context
from pocketport.store import StageResult

CODE = ("compress", "calibration")
CHECKPOINT_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".gguf"}
PACKAGES = ("onnx-ir", "onnx", "onnxruntime", "torch")


def ingest(context: Context) -> StageResult:
    """The bundle's directory.

    Raises:
        UsageError: there is no such source.
    """
    request = context.request
    context.progress.start("ingest", f"ingest {request.source}", None)
    inputs = {
        "source": source_digest(request.source),
        "name": Path(request.source).name,
        "shapes": request.shapes,
    }

    def produce(directory: Path) -> None:
        leave(ingest_source(request.source, shapes=request.shapes), request.source, directory / "bundle")

    return context.record("ingest", context.store.run("ingest", inputs, produce, code=CODE, packages=PACKAGES))


def source_digest(source: str) -> str:
    """Hash of a source's bytes (of a folder: its weights, configuration and tokenizer files).

    Raises:
        UsageError: there is no such source.
    """
    path = Path(str(resources.files("pocketport.compress.reference"))) if source == REFERENCE else Path(source)
    if path.is_file():
        return sha256_files([path, *_external_data(path)])
    if not path.is_dir():
        raise UsageError(
            "no such model", where=source, fix="give `reference`, a checkpoint's folder, a .gguf or an .onnx file"
        )
    files = [p for p in path.iterdir() if p.suffix in CHECKPOINT_SUFFIXES]
    exported = onnx_files(path).values()
    return sha256_files([*files, *exported, *(data for p in exported for data in _external_data(p))])


def _external_data(path: Path) -> list[Path]:
    """Data files that exporters put beside an ONNX file; the tokenizer that may lie beside a GGUF file."""
    beside = ("tokenizer.json",) if path.suffix == ".gguf" else (path.name, f"{path.stem}.data")
    return [p for p in path.parent.iterdir() if p.is_file() and p != path and p.name.startswith(beside)]


def parity(context: Context, ingested: StageResult) -> StageResult:
    """``parity.json``: the float graphs against the model they were made from; VerificationError when they differ."""
    context.progress.start("parity", "parity gate: float graphs against the original", None)
    inputs = {"bundle": ingested.digest, "source": source_digest(context.request.source)}

    def produce(directory: Path) -> None:
        bundle = load_bundle(ingested)
        write_json(directory / "parity.json", check_parity(bundle, context.request.source).to_json())

    return context.record("parity", context.store.run("parity", inputs, produce, code=CODE, packages=PACKAGES))


def load_bundle(ingested: StageResult) -> ModelBundle:
    """Open what `ingest` made."""
    return ingest_source(ingested.path / "bundle")


def load_parity(result: StageResult) -> dict[str, object]:
    """Read what `parity` found."""
    document: dict[str, object] = json.loads((result.path / "parity.json").read_text(encoding="utf-8"))
    return document
