"""Layers packed as their formats' definitions say, an integer at a time: what the readers are held against."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Integers = NDArray[np.int64]


def stream(rows: Integers, bits: int) -> NDArray[np.int32]:
    """[N, K] → int32 [N, ⌈K·bits/32⌉]: integer k of a row lies at bit k·bits of one long number."""
    words = -(-rows.shape[1] * bits // 32)
    numbers = [sum(int(value) << (bits * k) for k, value in enumerate(row)) for row in rows]
    return np.array([np.frombuffer(number.to_bytes(4 * words, "little"), "<i4") for number in numbers])


def planes(rows: Integers, bits: int) -> NDArray[np.int32]:
    """GPTQModel's ``gptq_p``: of each 32 integers the lowest 4 (of 3 bits: 2) bits as a stream, then the others."""
    low = 2 if bits == 3 else min(bits, 4)
    parts = []
    for start in range(0, rows.shape[1], 32):
        part = rows[:, start : start + 32]
        parts.append(stream(part % 2**low, low))
        if bits > low:
            parts.append(stream(part >> low, bits - low))
    return np.concatenate(parts, axis=1)


def interleaved(rows: Integers) -> NDArray[np.int32]:
    """AWQ: [R, N] → int32 [R, N/8], nibble i of a word is the integer of place 0 2 4 6 1 3 5 7 [i]."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    words = [
        [sum(int(row[8 * w + order[i]]) << (4 * i) for i in range(8)) for w in range(len(row) // 8)] for row in rows
    ]
    return np.array(words, np.uint32).view(np.int32)


class Layer:
    """Integers, zero points and scales of a random layer [N, K], and the matrix that they stand for."""

    def __init__(
        self, n: int, k: int, bits: int, block: int, *, symmetric: bool, reordered: bool = False, seed: int = 0
    ):
        rng = np.random.default_rng(seed)
        groups = -(-k // block)
        self.bits = bits
        self.integers: Integers = rng.integers(0, 2**bits, (n, k))
        self.zero: Integers = (
            np.full((n, groups), 2 ** (bits - 1)) if symmetric else rng.integers(1, 2**bits, (n, groups))
        )
        self.scale = (rng.uniform(0.5, 2, (n, groups)) / (2**bits * k**0.5)).astype(np.float16)
        self.index = np.arange(k) // block
        if reordered:
            self.index = rng.permutation(self.index)
        self.matrix = (self.integers - self.zero[:, self.index]) * self.scale.astype(np.float64)[:, self.index]

    def gptq(self, version: str = "gptq") -> dict[str, NDArray[Any]]:
        less = 1 if version == "gptq" else 0
        pack = planes if version == "gptq_p" else stream
        return {
            "qweight": np.ascontiguousarray(pack(self.integers, self.bits).T),
            "qzeros": pack(self.zero.T - less, self.bits),
            "scales": np.ascontiguousarray(self.scale.T),
            "g_idx": self.index.astype(np.int32),
        }

    def awq(self) -> dict[str, NDArray[Any]]:
        scales = np.ascontiguousarray(self.scale.T)
        return {"qweight": interleaved(self.integers.T), "qzeros": interleaved(self.zero.T), "scales": scales}


def save_packed(
    folder: Path, layers: dict[str, dict[str, NDArray[Any]]], quantization: dict[str, Any], **others: NDArray[Any]
) -> Path:
    """A folder with these layers (path → its tensors) and their configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{path}.{name}": array for path, own in layers.items() for name, array in own.items()}
    save_file({**tensors, **others}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": quantization}))
    return folder


def gptq_config(bits: int, block: int, *, symmetric: bool, **others: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": block, "sym": symmetric, "desc_act": False, **others}


def save_published(
    folder: Path,
    model: Path,
    make: Callable[[int, int, int], Layer],
    pack: Callable[[Layer], dict[str, NDArray[Any]]],
    quantization: dict[str, Any],
) -> tuple[Path, dict[str, Layer]]:
    """The checkpoint `model` with its linear layers in the place of random packed ones; the layers by path.

    Args:
        folder: where it is written.
        model: a float checkpoint.
        make: (N, K, number) → layer.
        pack: layer → its tensors.
        quantization: ``quantization_config``.
    """
    weights = load_file(model / "model.safetensors")
    names = [name for name in sorted(weights) if name.endswith("_proj.weight")]
    layers = {n.removesuffix(".weight"): make(*weights[n].shape, i) for i, n in enumerate(names)}
    kept = {name: array.astype(np.float16) for name, array in weights.items() if name not in names}
    save_packed(folder, {path: pack(layer) for path, layer in layers.items()}, quantization, **kept)
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float16", "quantization_config": quantization}))
    return folder, layers
