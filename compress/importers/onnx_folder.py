"""A folder of ONNX files, as ``optimum`` exports a model → ModelBundle of one component a file.

The names are those of ``optimum.exporters.onnx`` and of transformers.js: ``model.onnx``; ``encoder_model.onnx`` and
``decoder_model.onnx`` with ``decoder_with_past_model.onnx``, or both in ``decoder_model_merged.onnx``;
``vision_encoder.onnx`` and ``embed_tokens.onnx``. The files may lie in a folder ``onnx`` beside ``config.json``.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import onnx_ir as ir

from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.graph import load_graph
from pocketport.compress.importers.onnx_import import external_files, import_graph
from pocketport.compress.sources.folder import FILE_SUFFIXES
from pocketport.errors import InputError, UsageError
from pocketport.files import sha256_files
from pocketport.suggest import nearest

SUFFIX = ".onnx"
VARIANTS = ("_fp16", "_int8", "_uint8", "_quantized", "_bnb4", "_q4", "_q4f16", "_q8", "_O1", "_O2", "_O3", "_O4")
NAMES: Mapping[str, str] = {
    "model": "main",
    "encoder_model": "encoder",
    "decoder_model": "decoder",
    "decoder_with_past_model": "decoder_with_past",
    "decoder_model_merged": "decoder_merged",
    "vision_encoder": "vision",
    "embed_tokens": "embed",
}  # other files keep their stems
PARTS_OF_MERGED = ("decoder", "decoder_with_past")


def onnx_files(folder: Path) -> dict[str, Path]:
    """Component → file, of a folder that holds ONNX files and no safetensors; empty for others.

    Files that are the same model in other numbers (``model_fp16.onnx``) are left out, and a merged decoder where its two
    parts are there too.
    """
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return {}
    home = folder if any(folder.glob(f"*{SUFFIX}")) else folder / "onnx"
    paths = sorted(home.glob(f"*{SUFFIX}"))
    stems = {path.stem for path in paths}
    float_paths = [
        p for p in paths if not any(p.stem.endswith(v) and p.stem.removesuffix(v) in stems for v in VARIANTS)
    ]
    files = {NAMES.get(path.stem, path.stem): path for path in float_paths}
    if all(part in files for part in PARTS_OF_MERGED):
        files.pop("decoder_merged", None)
    return files


def load_onnx_folder(folder: Path, shapes: Mapping[str, Sequence[int]], *, keep_rows: bool = True) -> ModelBundle:
    """Open every file as `load_onnx` opens one; tokenizer and processor files come along.

    Args:
        folder: that holds the files.
        shapes: static shapes by ``component.input``, for inputs whose dimensions the files leave open; a name may be a
            pattern (``decoder_with_past.past_key_values.*``), of those that match the last one counts.
        keep_rows: see `simplify`.

    Raises:
        InputError: a file is none of a float model with a static graph, or leaves the folder.
        UsageError: an input's shape is open and not in `shapes`, or a name in `shapes` matches none.
    """
    files = onnx_files(folder)
    for path in files.values():
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError("it leads out of the model's folder", where=str(path), fix="put the file itself there")
    opened = {name: load_graph(path) for name, path in files.items()}
    inputs = {
        f"{name}.{value.name}": (name, str(value.name))
        for name, model in opened.items()
        for value in model.graph.inputs
    }
    chosen: dict[str, dict[str, Sequence[int]]] = {name: {} for name in files}
    for pattern, shape in shapes.items():
        matching = [name for name in inputs if fnmatchcase(name, pattern)]
        if not matching:
            raise UsageError(f"no input {pattern!r}", where=f"{folder}, --shape", fix=nearest(pattern, inputs))
        for name in matching:
            component, value = inputs[name]
            chosen[component][value] = shape
    components, config = {}, {}
    for name, path in files.items():
        _check_merged(opened[name], name, path)
        graph, config[name] = import_graph(opened[name], path, chosen[name], f"{name}.", keep_rows=keep_rows)
        components[name] = Component(name, graph)
    others = {p.name: p for p in sorted(folder.iterdir()) if p.suffix in FILE_SUFFIXES and p.is_file()}
    return ModelBundle(
        name=folder.resolve().name,
        family="onnx",
        sha256=sha256_files(
            {*others.values(), *(f for n, p in files.items() for f in (p, *external_files(opened[n])))}
        ),
        components=components,
        files={name: path for name, path in others.items() if path.resolve().is_relative_to(folder.resolve())},
        config={"shapes": config, "files": {n: p.relative_to(folder).as_posix() for n, p in files.items()}},
    )


def _check_merged(model: ir.Model, name: str, path: Path) -> None:
    """A decoder that chooses between two graphs while it runs has no static form."""
    if name == "decoder_merged" and any(node.op_type == "If" for node in model.graph):
        raise InputError(
            "it is two decoders behind one If, which the input use_cache_branch decides",
            where=str(path),
            fix="export with `optimum-cli export onnx --no-post-process`, which leaves decoder_model.onnx and "
            "decoder_with_past_model.onnx apart",
        )
