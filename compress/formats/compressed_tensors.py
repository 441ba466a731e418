"""compressed-tensors checkpoints (vLLM, transformers): the ``pack-quantized`` layout.

For a linear layer [N, K] in b bits: ``weight_packed`` int32 [N, ⌈K·b/32⌉], 32/b integers to a word, the first in the
lowest bits, each with 2^(b−1) added to its signed value; ``weight_scale`` [N, G]; ``weight_zero_point`` int32
[⌈N·b/32⌉, G], packed along N, where zero points are not in the middle; ``weight_shape`` int64 [2].
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.formats.contract import Progress, SchemeChoice
from pocketport.compress.formats.linear_weights import (
    check_language,
    choose_linear,
    float_dtype,
    group_sizes,
    kept_entry,
    kept_runs,
    write_files,
)
from pocketport.compress.formats.packing import pack_words
from pocketport.compress.quantized_weights import QuantizedWeight, QuantizedWeights
from pocketport.compress.safetensors_writer import CODES, TensorEntry, write_checkpoint
from pocketport.compress.sources.source import Source

BITS = (2, 4, 8)


class CompressedTensorsFormat:
    """See `pocketport.compress.formats.contract.Format`."""

    name = "compressed-tensors"
    variants: tuple[str, ...] = ()
    default_scheme = "w4b128fp16"

    def check(self, source: Source, bundle: ModelBundle, variant: str) -> None:
        """Language models only."""
        check_language(self.name, source, {c.name for c in bundle})

    def choose(
        self, tensor: str, shape: tuple[int, ...], component: str, role: str, variant: str, wanted: str | None
    ) -> SchemeChoice:
        """Linear layers of the language model, 2, 4 or 8 bits."""
        return choose_linear(self.name, self.default_scheme, BITS, tensor, shape, component, role, wanted)

    def write(
        self,
        source: Source,
        bundle: ModelBundle,
        weights: QuantizedWeights,
        directory: Path,
        variant: str,
        progress: Progress,
    ) -> list[Path]:
        """Shards with their index, ``config.json`` and the files beside it."""
        scale_dtype = float_dtype(source)
        entries: list[TensorEntry] = []
        for name, tensor in source.tensors.items():
            form = weights.form(name) if name in weights else None
            entries += [kept_entry(name, tensor)] if form is None else _entries(name, form, CODES[scale_dtype])
        done = iter(range(1, len(entries) + 1))
        held: dict[str, QuantizedWeight] = {}

        def runs(entry: TensorEntry) -> Iterator[NDArray[Any]]:
            stem, _, part = entry.name.rpartition("_")
            if part in ("packed", "scale", "point", "shape") and stem.removesuffix("_zero") in weights:
                yield _part(stem.removesuffix("_zero"), part, weights, held, scale_dtype)
            else:
                yield from kept_runs(source.tensors[entry.name])
            progress(next(done), len(entries))

        files = write_checkpoint(directory, entries, runs)
        return [*files, *write_files(source, directory, self.quantization(source, weights))]

    def quantization(self, source: Source, weights: QuantizedWeights) -> dict[str, Any]:
        """The ``quantization_config`` of ``config.json``: one group for each form, the rest of the linears ignored."""
        groups: dict[str, dict[str, Any]] = {}
        targets: dict[tuple[int, int, bool], list[str]] = {}
        for name, size in group_sizes(weights).items():
            form = weights.form(name)
            targets.setdefault((form["bits"], size, form["symmetric"]), []).append(name.removesuffix(".weight"))
        for index, ((bits, block, symmetric), names) in enumerate(sorted(targets.items())):
            groups[f"group_{index}"] = {
                "targets": names if len(targets) > 1 else ["Linear"],
                "weights": {
                    "num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False, "actorder": None,
                    "strategy": "channel" if block < 0 else "group", "group_size": None if block < 0 else block,
                    "observer": "mse", "observer_kwargs": {}, "block_structure": None,
                },
                "input_activations": None, "output_activations": None,
            }  # fmt: skip
        left = [n.removesuffix(".weight") for n in source.tensors if _is_left(n, source, weights)]
        return {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "config_groups": groups, "ignore": sorted(left), "kv_cache_scheme": None, "global_compression_ratio": None,
        }  # fmt: skip


def _is_left(name: str, source: Source, weights: QuantizedWeights) -> bool:
    """A matrix that may belong to a linear layer and stays float."""
    return name.endswith(".weight") and name not in weights and len(source.tensors[name].shape) == 2


def _entries(name: str, form: Any, scale_code: str) -> list[TensorEntry]:
    rows, columns, per_word = form["rows"], form["columns"], 32 // form["bits"]
    groups = columns // form["block"]
    entries = [
        TensorEntry(f"{name}_packed", "I32", (rows, -(-columns // per_word))),
        TensorEntry(f"{name}_scale", scale_code, (rows, groups)),
        TensorEntry(f"{name}_shape", "I64", (2,)),
    ]
    if not form["symmetric"]:
        entries.append(TensorEntry(f"{name}_zero_point", "I32", (-(-rows // per_word), groups)))
    return entries


def _part(
    name: str, part: str, weights: QuantizedWeights, held: dict[str, QuantizedWeight], scale_dtype: np.dtype[Any]
) -> NDArray[Any]:
    """One of the tensors that stand for a weight; the weight is read once for all of them."""
    if name not in held:
        held.clear()
        weight = weights[name]
        assert isinstance(weight, QuantizedWeight)
        held[name] = weight
    weight = held[name]
    if part == "packed":
        return pack_words(weight.integers, weight.bits)
    if part == "scale":
        return weight.scale.astype(scale_dtype)
    if part == "shape":
        return np.array(weight.shape, np.int64)
    return np.ascontiguousarray(pack_words(np.ascontiguousarray(weight.zero_point.T), weight.bits).T)
