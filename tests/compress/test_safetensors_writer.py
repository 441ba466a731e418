"""Streamed safetensors files, read back by the format owner's library."""

import json
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from pocketport.compress.checkpoint import Checkpoint
from pocketport.compress.safetensors_writer import DTYPES, TensorEntry, write_checkpoint, write_safetensors

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def array_of(entry: TensorEntry) -> np.ndarray:
    values = np.random.default_rng(len(entry.name)).integers(0, 2, entry.shape)
    return values.astype(DTYPES[entry.code])


def runs(entry: TensorEntry) -> Iterator[np.ndarray]:
    flat = array_of(entry).reshape(-1)
    yield flat[: flat.size // 3]
    yield flat[flat.size // 3 :]


@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=6),
    codes=st.lists(st.sampled_from(sorted(DTYPES)), min_size=6, max_size=6),
)
def test_the_owners_library_reads_what_was_written(
    shapes: list[tuple[int, ...]], codes: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    entries = [
        TensorEntry("t" * (i + 1), code, shape) for i, (shape, code) in enumerate(zip(shapes, codes, strict=False))
    ]
    write_safetensors(path, entries, runs)
    found = load_file(path)
    assert found.keys() == {e.name for e in entries}
    for entry in entries:
        tensor, expected = found[entry.name], array_of(entry)
        assert tuple(tensor.shape) == entry.shape
        assert np.array_equal(tensor.to(torch.float64).numpy(), expected.astype(np.float64))


def test_shards_are_named_and_indexed_as_transformers_does(tmp_path: Path) -> None:
    entries = [TensorEntry(name, "F32", (10,)) for name in "abcde"]
    files = write_checkpoint(tmp_path, entries, runs, shard_bytes=80)
    assert [f.name for f in files] == [
        "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]  # fmt: skip
    index = json.loads(files[-1].read_text())
    assert index["metadata"]["total_size"] == 5 * 40
    with safe_open(files[1], "np") as opened:
        assert (
            {n for n, place in index["weight_map"].items() if place == files[1].name}
            == set(opened.keys())
            == {"c", "d"}
        )
    assert set(Checkpoint(tmp_path)) == set("abcde")


def test_a_tensor_that_is_not_what_was_announced_leaves_no_file(tmp_path: Path) -> None:
    entry = TensorEntry("x", "BF16", (4,))
    for wrong in (np.zeros(4, np.float32), np.zeros(3, ml_dtypes.bfloat16)):
        with pytest.raises(ValueError, match="x: "):
            write_safetensors(tmp_path / "x.safetensors", [entry], lambda _, wrong=wrong: [wrong])
    assert list(tmp_path.iterdir()) == []
