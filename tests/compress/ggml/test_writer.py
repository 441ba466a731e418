"""GGUF files that we write, read back by the format owner's reader."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketport.compress.ggml.types import TYPES
from pocketport.compress.ggml.writer import TensorData, Value, write_gguf

METADATA: dict[str, Value] = {
    "general.architecture": "llama", "a.flag": True, "a.count": 7, "a.ratio": 0.25, "a.signed": np.int32(-3),
    "a.long": np.uint64(2**40), "a.names": ["eins", "", "zwei ▁ü"], "a.none": [], "a.numbers": np.arange(5, dtype=np.int32),
    "a.scores": np.linspace(-1, 1, 3, dtype=np.float32), "a.flags": np.array([True, False]),
}  # fmt: skip


def tensor(name: str, array: np.ndarray, kind: str = "f32", runs: int = 1) -> TensorData:
    return TensorData(name, kind, array.shape, lambda: np.array_split(array, runs))


def contents(reader: gguf.GGUFReader) -> dict[str, object]:
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def test_metadata_and_tensors_are_read_back_by_gguf(tmp_path: Path) -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    half = np.linspace(-2, 2, 5).astype(np.float16)
    write_gguf(tmp_path / "a.gguf", METADATA, [tensor("matrix", matrix, runs=3), tensor("half", half, "f16")])
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    read = contents(reader)
    assert list(read) == list(METADATA)
    for key, value in METADATA.items():
        np.testing.assert_array_equal(np.asarray(read[key]), np.asarray(value), err_msg=key)
    types = {key: [t.name for t in reader.fields[key].types] for key in METADATA}
    assert types["a.count"] == ["UINT32"] and types["a.signed"] == ["INT32"] and types["a.long"] == ["UINT64"]
    assert types["a.flag"] == ["BOOL"] and types["a.scores"] == ["ARRAY", "FLOAT32"]
    found = {t.name: t for t in reader.tensors}
    np.testing.assert_array_equal(found["matrix"].data, matrix)
    np.testing.assert_array_equal(found["half"].data, half)
    assert all(t.data_offset % 32 == 0 for t in reader.tensors)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8),
        st.one_of(
            st.booleans(), st.text(max_size=12), st.integers(0, 2**32 - 1), st.lists(st.text(max_size=4), max_size=4)
        ),
        max_size=6,
    ),
    st.lists(st.tuples(st.sampled_from(["f32", "q8_0", "q4_k", "iq4_xs"]), st.integers(1, 3)), max_size=4),
)
def test_any_pairs_and_blocks_survive(
    tmp_path_factory: pytest.TempPathFactory, pairs: dict[str, Value], kinds: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    random = np.random.default_rng(0)
    blobs = [
        random.integers(0, 256, (rows, 256 // TYPES[kind].block * TYPES[kind].size), np.uint8) for kind, rows in kinds
    ]
    tensors = [
        TensorData(f"t{i}", kind, (rows, 256), lambda blob=blob: [blob])  # type: ignore[misc]
        for i, ((kind, rows), blob) in enumerate(zip(kinds, blobs, strict=True))
    ]
    write_gguf(path, pairs, tensors)
    reader = gguf.GGUFReader(path)
    assert contents(reader) == pairs
    for found, blob, (kind, rows) in zip(reader.tensors, blobs, kinds, strict=True):
        assert found.tensor_type.name.lower() == kind and list(found.shape) == [256, rows]
        assert found.data.tobytes() == blob.tobytes()


def test_what_does_not_fit_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    row = np.zeros((1, 33), np.float32)
    with pytest.raises(ValueError, match="blocks of 32"):
        write_gguf(path, {}, [TensorData("t", "q8_0", (1, 33), lambda: [row])])
    with pytest.raises(ValueError, match="were announced"):
        write_gguf(path, {}, [TensorData("t", "f32", (2, 33), lambda: [row])])
    with pytest.raises(ValueError, match="uint32"):
        write_gguf(path, {"n": -1}, [])
    with pytest.raises(ValueError, match="complex"):
        write_gguf(path, {"n": np.zeros(2, np.complex64)}, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_offsets_beyond_four_gigabytes(tmp_path: Path) -> None:
    """Over a sparse file: the announced sizes are real, the first tensor's zeros are not stored."""
    path = tmp_path / "a.gguf"
    rows = 2**17 + 1
    zeros = np.zeros((1 << 10, 1 << 13), np.float32)

    def many() -> list[np.ndarray]:
        return [zeros] * (rows >> 10) + [zeros[: rows % (1 << 10)]]

    last = np.arange(8, dtype=np.float32)
    try:
        write_gguf(path, {}, [TensorData("large", "f32", (rows, 1 << 13), many), tensor("last", last)])
        reader = gguf.GGUFReader(path)
        assert reader.tensors[1].data_offset > 2**32
        np.testing.assert_array_equal(reader.tensors[1].data, last)
    finally:
        path.unlink(missing_ok=True)
