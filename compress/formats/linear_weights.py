"""What the checkpoint formats of transformers have in common: which weights they take, and the files beside them."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.checkpoint import StoredTensor
from pocketport.compress.formats.contract import SchemeChoice
from pocketport.compress.graph import dimensions
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.compress.safetensors_writer import CODES, TensorEntry
from pocketport.compress.schemes import Granularity, Scheme
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError, UsageError
from pocketport.files import write_json

RUN_ELEMENTS = 1 << 24
LANGUAGE_COMPONENTS = ("prefill", "decode")
CONFIG = "config.json"


def choose_linear(
    name: str, default: str, bits: tuple[int, ...], tensor: str, shape: tuple[int, ...], component: str, role: str,
    wanted: str | None,
) -> SchemeChoice:  # fmt: skip
    """Linear layers of the language model become integers with float16 scales; everything else stays as published.

    Args:
        name: of the format.
        default: scheme where the recipe names none.
        bits: that the format's packing has.
        tensor, shape, component, role, wanted: as `Format.choose`.

    Raises:
        UsageError: the recipe's scheme has other bits, activations in integers, or blocks that do not divide the width.
    """
    if role != "linear" or component not in LANGUAGE_COMPONENTS:
        return SchemeChoice("source", f"{role} of {component or 'the host'}: stays as published")
    scheme = Scheme.parse(wanted or default)
    if scheme.weight_bits is None:
        return SchemeChoice("source", "the recipe keeps it float")
    packed = scheme.granularity in (Granularity.CHANNEL, Granularity.BLOCK)
    if scheme.weight_bits not in bits or scheme.activation_bits is not None or not packed:
        raise UsageError(
            f"{name} has no place for {scheme}",
            where=f"recipe, tensor {tensor}",
            fix=f"use {' or '.join(map(str, bits))} bits, per channel or in blocks, and fp16: {default}",
        )
    columns = shape[-1]
    if scheme.granularity is Granularity.BLOCK and columns % scheme.block:
        if wanted is not None:
            raise UsageError(
                f"blocks of {scheme.block} do not divide its {columns} columns",
                where=f"recipe, tensor {tensor}",
                fix="give a smaller block, or a fallback",
            )
        smaller = next((b for b in (64, 32) if columns % b == 0), None)
        scheme = Scheme.parse(f"w{scheme.weight_bits}{'c' if smaller is None else f'b{smaller}'}fp16")
        return SchemeChoice(str(scheme), f"{columns} columns do not divide into the default's blocks")
    return SchemeChoice(str(scheme), "the recipe's scheme" if wanted else "the format's default")


def check_language(name: str, source: Source, components: set[str]) -> None:
    """The model must have a language model with a decode or prefill graph.

    Raises:
        InputError: it has none.
    """
    if not components & set(LANGUAGE_COMPONENTS):
        raise InputError(
            f"{name} is a format for language models, and this model has none",
            where=str(source.path),
            fix="port it to a target instead",
        )


def kept_entry(name: str, tensor: ir.TensorProtocol) -> TensorEntry:
    """The entry of a tensor that stays as it is; in float16 where its publisher packed it in another way."""
    if isinstance(tensor, StoredTensor):
        return TensorEntry(name, CODES[tensor.stored_dtype], dimensions(tensor))
    return TensorEntry(name, "F16", dimensions(tensor))


def kept_runs(tensor: ir.TensorProtocol) -> Iterator[NDArray[Any]]:
    """Its data."""
    if isinstance(tensor, StoredTensor):
        yield from _runs(tensor.mapped())
    else:
        yield np.asarray(tensor.numpy()).astype(np.float16)


def _runs(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    flat = array.reshape(-1)
    for start in range(0, flat.size, RUN_ELEMENTS):
        yield flat[start : start + RUN_ELEMENTS]


def float_dtype(source: Source) -> np.dtype[Any]:
    """The dtype in which the model's activations are meant to be: that of its config, float16 if it names none."""
    text = source.config.get("text_config") or {}
    wanted = source.config.get("torch_dtype") or source.config.get("dtype") or text.get("dtype")
    return np.dtype(ml_dtypes.bfloat16) if wanted == "bfloat16" else np.dtype(np.float16)


def write_files(source: Source, directory: Path, quantization: Mapping[str, Any]) -> list[Path]:
    """Copy tokenizer and processor files, and write ``config.json`` with its ``quantization_config``."""
    files = []
    for name, path in sorted(source.files.items()):
        if name != CONFIG:
            shutil.copyfile(path, directory / name)
            files.append(directory / name)
    config = {k: v for k, v in source.config.items() if k != "quantization_config"}
    write_json(directory / CONFIG, {**json.loads(json.dumps(config)), "quantization_config": dict(quantization)})
    return [*files, directory / CONFIG]


def group_sizes(weights: QuantizedWeights) -> dict[str, int]:
    """Of every weight the columns that share a scale, −1 per channel; a channel as long as others' blocks is a block."""
    forms = {name: weights.form(name) for name in weights}
    blocks = {f["block"] for f in forms.values() if f["block"] != f["columns"]}
    channel = {name: f["block"] == f["columns"] and f["block"] not in blocks for name, f in forms.items()}
    return {name: -1 if channel[name] else int(form["block"]) for name, form in forms.items()}
