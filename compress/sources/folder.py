"""A checkpoint's folder: config.json, safetensors, and the files beside them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from pocketport.compress.checkpoint import Checkpoint
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

FILE_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja"})
WEIGHT_INDEX = ".safetensors.index.json"
MOST_CONFIG_BYTES = 64 << 20


def open_folder(folder: Path) -> Source:
    """Read the configuration and the tensors' places; no weight is read.

    Raises:
        InputError: a file is missing, damaged or hostile, or its quantization is of an unknown method.
    """
    config = read_json_object(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise InputError(
            "it names no model_type", where=str(folder / "config.json"), fix="give a checkpoint's own config.json"
        )
    checkpoint = Checkpoint(folder)
    files = {
        p.name: p
        for p in sorted(folder.iterdir())
        if p.suffix in FILE_SUFFIXES and p.is_file() and not p.name.endswith(WEIGHT_INDEX)
    }
    return Source(folder, config, _unpacked(folder, config, checkpoint), files, tuple(checkpoint.files))


def _unpacked(folder: Path, config: Mapping[str, Any], checkpoint: Checkpoint) -> Mapping[str, ir.TensorProtocol]:
    """The tensors under their own names, whoever quantized them."""
    quantization = config.get("quantization_config")
    if quantization is None:
        return checkpoint
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method == "gptq":
        from pocketport.compress.sources.gptq import gptq_tensors

        return gptq_tensors(checkpoint, quantization, folder)
    if method == "awq":
        from pocketport.compress.sources.awq import awq_tensors

        return awq_tensors(checkpoint, quantization, folder)
    raise InputError(
        f"weights quantized by the method {method!r} can't be read",
        where=str(folder / "config.json"),
        fix="give the float checkpoint, or one made by GPTQ or AWQ",
    )


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
