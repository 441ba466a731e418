"""Any supported source → ModelBundle, and back from where it was left.

A bundle of a large checkpoint is left as a link: its graphs follow from the checkpoint alone, and float32 copies of its
weights would take twice its bytes, for every component that shares them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.registry import Lengths, family_named, family_of
from pocketport.compress.importers.onnx_folder import load_onnx_folder, onnx_files
from pocketport.compress.importers.onnx_import import load_onnx
from pocketport.compress.sources.open import open_source
from pocketport.errors import InputError, UsageError
from pocketport.files import atomic_directory, write_json

if TYPE_CHECKING:
    from torch.export import ExportedProgram

REFERENCE = "reference"
EXPORTED_SUFFIX = ".pt2"
LINK_NAME = "checkpoint.json"
LINKED_BYTES = 1 << 30  # of weights: a checkpoint that is larger is linked to, not copied


class Link(BaseModel):
    """``checkpoint.json``: the checkpoint that a bundle is opened from.

    Attributes:
        path: where it lies.
        sha256: hash of the checkpoint; another one is refused.
        lengths: the static lengths of the graphs.
    """

    model_config = ConfigDict(extra="forbid")

    schema_name: str = "pocketport.checkpoint-link/1"
    path: str
    sha256: str
    lengths: dict[str, int | None]


def path_of(source: str | Path) -> Path:
    """Where a source lies: ``"reference"`` is the embedded model's folder."""
    return Path(str(resources.files("pocketport.compress.reference"))) if source == REFERENCE else Path(source)


def ingest(
    source: "str | Path | ExportedProgram",
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    lengths: Lengths | None = None,
    keep_rows: bool = True,
) -> ModelBundle:
    """Open a model; no weight of a checkpoint is read.

    Args:
        source: ``"reference"`` (the embedded model), a bundle's folder (or link, see `leave`), a checkpoint (folder or
            GGUF file), an ``.onnx`` file, or a folder of them, a ``.pt2`` file or the program itself.
        shapes: static shapes of the inputs of ONNX and programs, where the files leave dimensions open: by input name, in a folder by
            ``component.input`` (see `load_onnx_folder`).
        lengths: static lengths of a checkpoint's graphs; None: the family's defaults.
        keep_rows: of ONNX and programs, whether what computes between linear layers does so on matrices, as Pocketport compiles it;
            False leaves it on the file's own sequences, as deployments whose latencies were measured have it.

    Raises:
        UsageError: there is no such source, or `shapes` does not fit it.
        InputError: the source is damaged, hostile, or of a family that is not known.
    """
    if not isinstance(source, str | Path) or Path(source).suffix == EXPORTED_SUFFIX:
        return _exported(source, shapes or {}, keep_rows)
    path = path_of(source)
    if path.is_file() and path.suffix == ".onnx":
        return load_onnx(path, shapes or {}, keep_rows=keep_rows)
    if onnx_files(path) and not (path / "bundle.json").is_file():
        return load_onnx_folder(path, shapes or {}, keep_rows=keep_rows)
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
    if (path / LINK_NAME).is_file():
        return _linked(path / LINK_NAME)
    opened = open_source(path)
    whole = path.resolve()
    name = REFERENCE if source == REFERENCE else whole.stem if path.is_file() else whole.name
    return family_of(opened).load(opened, name, lengths or Lengths())


def _exported(
    source: "str | Path | ExportedProgram", shapes: Mapping[str, Sequence[int]], keep_rows: bool
) -> ModelBundle:
    """A program of torch.export, of which only this function loads anything."""
    from pocketport.compress.importers.exported_program import load_exported

    if isinstance(source, str | Path) and not Path(source).is_file():
        raise UsageError("no such model", where=str(source), fix="check the path")
    return load_exported(Path(source) if isinstance(source, str | Path) else source, shapes, keep_rows=keep_rows)


def leave(bundle: ModelBundle, source: str | Path, directory: Path, lengths: Lengths | None = None) -> None:
    """Write what `ingest` gave for `source`, so that `ingest(directory)` gives it again.

    Args:
        bundle: what `ingest` gave.
        source: what it was given.
        directory: a bundle's folder, or for a large checkpoint a folder with a link to it.
        lengths: those that `ingest` was given.
    """
    if family_named(bundle.family) is None or weight_bytes(bundle) <= LINKED_BYTES:
        bundle.save(directory)
        return
    with atomic_directory(directory) as temporary:
        link = Link(path=str(path_of(source).resolve()), sha256=bundle.sha256, lengths=asdict(lengths or Lengths()))
        write_json(temporary / LINK_NAME, link.model_dump())


def weight_bytes(bundle: ModelBundle) -> int:
    """Bytes of all weights in the graphs' dtypes, those that components share counted once."""
    weights = {
        name: value.const_value.nbytes
        for component in bundle
        for name, value in component.graph.graph.initializers.items()
        if value.const_value is not None
    }
    return sum(weights.values())


def _linked(path: Path) -> ModelBundle:
    try:
        link = Link.model_validate_json(path.read_text("utf-8"))
        lengths = Lengths(**link.lengths)
    except (OSError, ValidationError, TypeError) as error:
        raise InputError(
            f"not a link to a checkpoint: {error}", where=str(path), fix="ingest the model again"
        ) from error
    bundle = ingest(link.path, lengths=lengths)
    if bundle.sha256 != link.sha256:
        raise InputError(
            f"the checkpoint {link.path} changed since it was ingested", where=str(path), fix="ingest the model again"
        )
    return bundle
