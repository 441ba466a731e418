"""Open a checkpoint, in whatever format it was published."""

from pathlib import Path

from pocketport.compress.sources.folder import open_folder
from pocketport.compress.sources.source import Source
from pocketport.errors import UsageError


def open_source(path: Path) -> Source:
    """A checkpoint's folder, a language model's GGUF file, or a folder with one and its projector.

    Raises:
        UsageError: there is no such file or folder.
        InputError: it is damaged, hostile, or of a kind that is not known.
    """
    if not path.exists():
        raise UsageError("no such model", where=str(path), fix="give a checkpoint's folder, a .gguf or an .onnx file")
    if path.is_file() and path.suffix != ".gguf":
        raise UsageError(
            "not a checkpoint", where=str(path),
            fix="give its folder or a .gguf file; for targets, an .onnx or .pt2 file will do too",
        )  # fmt: skip
    if path.is_file() or (not (path / "config.json").is_file() and any(path.glob("*.gguf"))):
        from pocketport.compress.sources.gguf import open_gguf

        return open_gguf(path)
    return open_folder(path)
