"""A checkpoint's folder: config.json, safetensors, and the files beside them."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx_ir as ir

from pocketport.compress.checkpoint import Checkpoint
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

FILE_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja"})
MOST_CONFIG_BYTES = 64 << 20
QUANTIZATION_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}  # older than quantization_config
NOT_COPIED = (".safetensors.index.json", *QUANTIZATION_FILES)  # they speak of this checkpoint's weights alone
UNPACKERS: Mapping[str, tuple[str, str]] = {
    "gptq": ("gptq", "gptq_tensors"),
    "awq": ("awq", "awq_tensors"),
    "compressed-tensors": ("compressed_tensors", "compressed_tensors"),
}  # method → module and function


def open_folder(folder: Path) -> Source:
    """Read the configuration and the tensors' places; no weight is read.

    Raises:
        InputError: a file is missing, damaged or hostile, or its quantization is of an unknown method.
    """
    check_links(folder)
    config = read_json_object(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise InputError(
            "it names no model_type", where=str(folder / "config.json"), fix="give a checkpoint's own config.json"
        )
    checkpoint = Checkpoint(folder)
    files = {
        p.name: p
        for p in sorted(folder.iterdir())
        if p.suffix in FILE_SUFFIXES and p.is_file() and not p.name.endswith(NOT_COPIED)
    }
    weight_files = (*checkpoint.files, *(folder / name for name in QUANTIZATION_FILES if (folder / name).is_file()))
    return Source(folder, config, _unpacked(folder, config, checkpoint), files, weight_files)


def check_links(folder: Path) -> None:
    """Symbolic links among the files that are read must stay in the folder; those of the hub's cache go to its ``blobs``.

    Raises:
        InputError: one leads elsewhere.
    """
    root = folder.resolve()
    homes = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    for path in sorted(folder.iterdir()):
        if path.suffix not in (*FILE_SUFFIXES, ".safetensors", ".gguf") or not path.is_symlink():
            continue
        target = path.resolve()
        if not any(target.is_relative_to(home) for home in homes):
            raise InputError(
                f"it is a symbolic link out of the model's folder, to {target}",
                where=str(path),
                fix="put the file itself there",
            )


def _unpacked(folder: Path, config: Mapping[str, Any], checkpoint: Checkpoint) -> Mapping[str, ir.TensorProtocol]:
    """The tensors under their own names, whoever quantized them."""
    quantization = config.get("quantization_config")
    for name, implied in QUANTIZATION_FILES.items():
        if quantization is None and (folder / name).is_file():
            quantization = {"quant_method": implied, **read_json_object(folder / name)}
    if quantization is None:
        return checkpoint
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if not isinstance(method, str) or method not in UNPACKERS:
        raise InputError(
            f"weights quantized by the method {method!r} can't be read",
            where=str(folder / "config.json"),
            fix=f"give the float checkpoint, or one whose method is {', '.join(UNPACKERS)}",
        )
    module, function = UNPACKERS[method]
    unpack = getattr(import_module(f"pocketport.compress.sources.{module}"), function)
    tensors: Mapping[str, ir.TensorProtocol] = unpack(checkpoint, quantization, folder)
    return tensors


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        InputError: missing, too large, or something else.
    """
    try:
        if path.stat().st_size > MOST_CONFIG_BYTES:
            raise ValueError(f"over {MOST_CONFIG_BYTES >> 20} MB")
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"not readable JSON: {error}", where=str(path), fix="download the file again") from error
    if not isinstance(document, dict):
        raise InputError("it is not a JSON object", where=str(path), fix="download the file again")
    return document
