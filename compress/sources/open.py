"""Open a checkpoint, in whatever format it was published."""

from pathlib import Path

from pocketport.compress.sources.folder import open_folder
from pocketport.compress.sources.source import Source
from pocketport.errors import UsageError


def open_source(path: Path) -> Source:
    """A checkpoint's folder, or a GGUF file (the projector beside it, or a folder that holds both).

    Raises:
        UsageError: there is no such file or folder.
        InputError: it is damaged, hostile, or of a kind that is not known.
    """
    if path.suffix == ".gguf" or (path.is_dir() and not (path / "config.json").is_file() and any(path.glob("*.gguf"))):
        from pocketport.compress.sources.gguf import open_gguf

        return open_gguf(path)
    if not path.is_dir():
        raise UsageError("no such model", where=str(path), fix="give a checkpoint's folder, a .gguf or an .onnx file")
    return open_folder(path)
