"""GPTQ checkpoints as AutoGPTQ and GPTQModel write them.

For a linear layer [N, K] in b bits: ``qweight`` int32 [K·b/32, N], packed along K; ``qzeros`` int32 [G, N·b/32], packed
along N; ``scales`` float16 [G, N]; ``g_idx`` int32 [K], the group of each column. In the ``checkpoint_format: gptq`` each
zero point is stored less 1. Weights whose zero points vary are written as ``gptq_v2``, where they are stored as they are:
readers of the older format disagree about a zero point of 0. Integers of 5 and 6 bits make it ``gptq_p``, which GPTQModel
alone reads: 32 integers are packed in planes, those of 3 bits too, and zero points stored as they are. Layers in another
form than most are named under ``dynamic`` (GPTQModel's), by a pattern that matches the layer's path.
"""

import re
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.formats.contract import Progress, SchemeChoice
from pocketport.compress.formats.linear_weights import (
    check_language,
    choose_linear,
    group_sizes,
    kept_entry,
    kept_runs,
    write_files,
)
from pocketport.compress.formats.packing import pack_planes, pack_words
from pocketport.compress.quantized_weights import QuantizedWeight, QuantizedWeights
from pocketport.compress.safetensors_writer import TensorEntry, write_checkpoint
from pocketport.compress.sources.source import Source
from pocketport.errors import UsageError
from pocketport.files import write_json

BITS = (2, 3, 4, 5, 6, 8)
PLANAR_BITS = frozenset({5, 6})
PLANAR = "gptq_p"
PARTS = ("qweight", "qzeros", "scales", "g_idx")


class GptqFormat:
    """See `pocketport.compress.formats.contract.Format`."""

    name = "gptq"
    variants: tuple[str, ...] = ()
    default_scheme = "w4b128fp16"

    def check(self, source: Source, bundle: ModelBundle, variant: str) -> None:
        """Language models only."""
        check_language(self.name, source, {c.name for c in bundle})

    def choose(
        self, tensor: str, shape: tuple[int, ...], component: str, role: str, variant: str, wanted: str | None
    ) -> SchemeChoice:
        """Linear layers of the language model in `BITS`; rows and columns must fill words of 32 bits."""
        choice = choose_linear(self.name, self.default_scheme, BITS, tensor, shape, component, role, wanted)
        if choice.scheme != "source" and (shape[0] % 32 or shape[1] % 32):
            if wanted is not None:
                raise UsageError(
                    f"its shape {list(shape)} does not fill words of 32 bits",
                    where=f"recipe, tensor {tensor}",
                    fix="add the fallback `float`",
                )
            return SchemeChoice("source", f"its shape {list(shape)} does not fill words of 32 bits")
        return choice

    def write(
        self,
        source: Source,
        bundle: ModelBundle,
        weights: QuantizedWeights,
        directory: Path,
        variant: str,
        progress: Progress,
    ) -> list[Path]:
        """Shards with their index, ``config.json``, ``quantize_config.json`` and the files beside them.

        Raises:
            UsageError: only some of the weights have zero points that vary, for which this format has no place.
        """
        quantization = _quantization(weights)
        entries: list[TensorEntry] = []
        for name, tensor in source.tensors.items():
            entries += _entries(name, weights.form(name)) if name in weights else [kept_entry(name, tensor)]
        done = iter(range(1, len(entries) + 1))
        held: dict[str, QuantizedWeight] = {}
        planar = quantization["checkpoint_format"] == PLANAR

        def runs(entry: TensorEntry) -> Iterator[NDArray[Any]]:
            stem, _, part = entry.name.rpartition(".")
            if part in PARTS and f"{stem}.weight" in weights:
                yield _part(f"{stem}.weight", part, weights, held, planar=planar)
            else:
                yield from kept_runs(source.tensors[entry.name])
            progress(next(done), len(entries))

        files = write_checkpoint(directory, entries, runs)
        write_json(directory / "quantize_config.json", quantization)
        return [*files, directory / "quantize_config.json", *write_files(source, directory, quantization)]


def _quantization(weights: QuantizedWeights) -> dict[str, Any]:
    sizes = group_sizes(weights)
    forms = {name: (int(weights.form(name)["bits"]), sizes[name]) for name in weights}
    symmetric = {bool(weights.form(name)["symmetric"]) for name in weights}
    if len(symmetric) != 1:
        raise UsageError(
            "zero points vary in some of the weights only",
            where="format gptq",
            fix="use symmetric or asymmetric weights throughout, or the format compressed-tensors",
        )
    (bits, block), _ = max(Counter(forms.values()).items(), key=lambda item: (item[1], item[0]))
    others = {name: form for name, form in forms.items() if form != (bits, block)}
    reordered = any(weights.form(name)["reordered"] for name in weights)
    layout = "gptq" if symmetric == {True} else "gptq_v2"
    if PLANAR_BITS & {own for own, _ in forms.values()}:
        layout = PLANAR
    settings = {
        "quant_method": "gptq", "checkpoint_format": layout, "bits": bits, "group_size": block,
        "sym": symmetric == {True}, "desc_act": reordered, "static_groups": not reordered,
        "true_sequential": True, "lm_head": False, "damp_percent": 0.01,
        "meta": {"quantizer": [f"pocketport:{version('pocketport')}"]},
    }  # fmt: skip
    dynamic = {
        f"+:^{re.escape(name.removesuffix('.weight'))}$": {"bits": own, "group_size": size}
        for name, (own, size) in sorted(others.items())
    }
    return {**settings, "dynamic": dynamic} if dynamic else settings


def _entries(name: str, form: Any) -> list[TensorEntry]:
    rows, columns, bits = form["rows"], form["columns"], form["bits"]
    groups, stem = columns // form["block"], name.removesuffix(".weight")
    return [
        TensorEntry(f"{stem}.qweight", "I32", (columns * bits // 32, rows)),
        TensorEntry(f"{stem}.qzeros", "I32", (groups, rows * bits // 32)),
        TensorEntry(f"{stem}.scales", "F16", (groups, rows)),
        TensorEntry(f"{stem}.g_idx", "I32", (columns,)),
    ]


def _part(
    name: str, part: str, weights: QuantizedWeights, held: dict[str, QuantizedWeight], *, planar: bool
) -> NDArray[Any]:
    """One of the tensors that stand for a weight; the weight is read once for all of them."""
    if name not in held:
        held.clear()
        weight = weights[name]
        assert isinstance(weight, QuantizedWeight)
        held[name] = weight
    weight = held[name]
    pack = pack_planes if planar else pack_words
    if part == "qweight":
        return np.ascontiguousarray(pack(weight.integers, weight.bits).T)
    if part == "qzeros":
        stored = weight.zero_point - np.uint8(weight.symmetric and not planar)
        return pack(np.ascontiguousarray(stored.T), weight.bits)
    if part == "scales":
        return np.ascontiguousarray(weight.scale.T.astype(np.float16))
    if weight.group_index is not None:
        return weight.group_index
    return (np.arange(weight.shape[1]) // weight.block).astype(np.int32)
