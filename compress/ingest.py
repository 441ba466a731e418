"""Any supported source → ModelBundle."""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.bert.load import load_bert
from pocketport.compress.families.minicpmv.load import load_minicpmv
from pocketport.compress.onnx_import import load_onnx
from pocketport.errors import InputError, UsageError

REFERENCE = "reference"
FAMILIES: Mapping[str, Callable[[Path, str], ModelBundle]] = {"minicpmv": load_minicpmv, "bert": load_bert}


def ingest(source: str | Path, *, shapes: Mapping[str, Sequence[int]] | None = None) -> ModelBundle:
    """Open a model.

    Args:
        source: ``"reference"`` (the embedded model), a bundle's folder, a checkpoint's folder with ``config.json`` and
            safetensors, or an ``.onnx`` file.
        shapes: static shapes of an ONNX file's inputs, by input name, where the file leaves dimensions open.

    Raises:
        UsageError: there is no such source, or `shapes` does not fit it.
        InputError: the source is damaged, hostile, or of a family that is not known.
    """
    path = Path(str(resources.files("pocketport.compress.reference"))) if source == REFERENCE else Path(source)
    if path.is_file() and path.suffix == ".onnx":
        return load_onnx(path, shapes or {})
    if shapes:
        raise UsageError("only ONNX files take shapes", where="--shape", fix="leave it out: this source has its own")
    if not path.is_dir():
        raise UsageError(
            "no such model",
            where=str(source),
            fix="give 'reference', a checkpoint's folder, or an .onnx file",
        )
    if (path / "bundle.json").is_file():
        return ModelBundle.load(path)
    return _family(path)(path, REFERENCE if source == REFERENCE else path.resolve().name)


def _family(folder: Path) -> Callable[[Path, str], ModelBundle]:
    """The loader that config.json's model_type asks for."""
    path = folder / "config.json"
    try:
        kind = json.loads(path.read_text("utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"it names no model_type: {error!r}", where=str(path), fix="give a checkpoint's folder"
        ) from error
    if kind not in FAMILIES:
        raise InputError(
            f"the model family {kind!r} is not known",
            where=str(path),
            fix=f"known: {', '.join(FAMILIES)}; or export it to ONNX",
        )
    return FAMILIES[kind]
