"""Any supported source → ModelBundle."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.registry import Lengths, family_of
from pocketport.compress.onnx_import import load_onnx
from pocketport.compress.sources.open import open_source
from pocketport.errors import UsageError

REFERENCE = "reference"


def path_of(source: str | Path) -> Path:
    """Where a source lies: ``"reference"`` is the embedded model's folder."""
    return Path(str(resources.files("pocketport.compress.reference"))) if source == REFERENCE else Path(source)


def ingest(
    source: str | Path, *, shapes: Mapping[str, Sequence[int]] | None = None, lengths: Lengths | None = None
) -> ModelBundle:
    """Open a model; no weight of a checkpoint is read.

    Args:
        source: ``"reference"`` (the embedded model), a bundle's folder, a checkpoint (folder or GGUF file), or an
            ``.onnx`` file.
        shapes: static shapes of an ONNX file's inputs, by input name, where the file leaves dimensions open.
        lengths: static lengths of a checkpoint's graphs; None: the family's defaults.

    Raises:
        UsageError: there is no such source, or `shapes` does not fit it.
        InputError: the source is damaged, hostile, or of a family that is not known.
    """
    path = path_of(source)
    if path.is_file() and path.suffix == ".onnx":
        return load_onnx(path, shapes or {})
    if shapes:
        raise UsageError("only ONNX files take shapes", where="--shape", fix="leave it out: this source has its own")
    if not path.exists():
        raise UsageError(
            "no such model",
            where=str(source),
            fix="give 'reference', a checkpoint's folder, a .gguf or an .onnx file",
        )
    if (path / "bundle.json").is_file():
        return ModelBundle.load(path)
    opened = open_source(path)
    return family_of(opened).load(
        opened, REFERENCE if source == REFERENCE else path.resolve().name, lengths or Lengths()
    )
