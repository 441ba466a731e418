"""Damaged and hostile models: a typed error each, in bounded memory and time."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hostile_files import HOSTILE, Outcome, checkpoint, data_of, header_of, outcomes, packed, tensors

from pocketport.compress.checkpoint import read_safetensors
from pocketport.compress.sources.open import open_source
from pocketport.errors import InputError
from pocketport.workers import peak_rss

LIMIT = 1 << 30
MOST_BYTES = 512 << 20
MOST_SECONDS = 20.0
FUZZED = 2500


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return outcomes(tmp_path_factory.mktemp("hostile"), HOSTILE, LIMIT)


def test_honest_files_are_opened(opened: dict[str, Outcome]) -> None:
    assert [opened[name].kind for name in ("checkpoint", "onnx")] == ["", ""]


@pytest.mark.parametrize("case", HOSTILE)
def test_a_typed_error_in_bounded_memory_and_time(opened: dict[str, Outcome], case: str) -> None:
    found = opened[case]
    assert found.kind == "InputError", found.message
    assert found.bytes < MOST_BYTES and found.seconds < MOST_SECONDS
    where = found.message.partition(": ")[0]
    assert "/model" in where or where.startswith(("tensor ", "config.json, ")), "it names the file or the tensor"
    assert "(fix: " in found.message and len(found.message) < 1000


def test_links_within_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    """As huggingface_hub lays a repository out: snapshots/<revision>/<file> is a link to blobs/<hash>."""
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in checkpoint(snapshot).iterdir():
        blob = blobs / f"hash-of-{path.stem}"
        path.rename(blob)
        path.symlink_to(Path("../../blobs") / blob.name)
    assert set(open_source(snapshot).tensors) == set(tensors())


def test_mutated_headers(tmp_path: Path) -> None:
    """Bytes of the header changed, removed, doubled: the file's own tensors or a typed error, thousands of times."""
    rng, arrays = np.random.default_rng(0), tensors()
    text, data = json.dumps(header_of(arrays)).encode(), data_of(arrays)
    path, refused, start = tmp_path / "m.safetensors", 0, time.perf_counter()
    before = peak_rss()
    for _ in range(FUZZED):
        content = bytearray(packed(text, data))
        for _ in range(rng.integers(1, 4)):
            place, kind = int(rng.integers(0, 8 + len(text))), rng.integers(0, 4)
            if kind == 0:
                content[place] = rng.integers(0, 256)
            elif kind == 1:
                content[place] = ord(rng.choice(list('0123456789-.,:[]{}"e')))
            elif kind == 2:
                del content[place : place + int(rng.integers(1, 9))]
            else:
                content[place:place] = content[place : place + int(rng.integers(1, 9))]
        path.write_bytes(content)
        try:
            found = read_safetensors(path)
        except InputError as error:
            refused += str(path) in error.where
            continue
        assert sum(tensor.mapped().nbytes for tensor in found.values()) <= len(content)
    assert refused > FUZZED // 2
    assert peak_rss() - before < 64 << 20 and time.perf_counter() - start < 60
