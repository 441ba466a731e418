import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pocketport.compress.checkpoint import INDEX_NAME, Checkpoint, read_safetensors
from pocketport.errors import InputError


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_it_reads_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b.half": rng.normal(size=(5,)).astype(np.float16),
        "ids": np.arange(6).reshape(2, 3),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 7), np.float32),
    }
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint) == set(arrays)
    for name, array in arrays.items():
        found = checkpoint[name].numpy()
        assert found.dtype == (np.float32 if array.dtype.kind == "f" else array.dtype)
        np.testing.assert_array_equal(found, array.astype(found.dtype))
    checkpoint.check_finite()


def test_bfloat16_is_cast_when_read(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0, 3.140625], ml_dtypes.bfloat16)
    path = write(tmp_path / "m.safetensors", {"w": entry("BF16", [3], [0, 6])}, values.tobytes())
    checkpoint = Checkpoint(path)
    assert checkpoint.stored("w").dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(checkpoint["w"].numpy(), np.array([1.5, -2.0, 3.140625], np.float32))


def test_a_caller_cannot_change_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"w": entry()}, bytes(8))
    Checkpoint(path)["w"].numpy()[:] = 1
    assert path.read_bytes().endswith(bytes(8))


EIGHT = bytes(8)
HOSTILE = {
    "a header length beyond the file": ({"w": entry()}, EIGHT, 1 << 40),
    "a header length that cuts the header": ({"w": entry()}, EIGHT, 5),
    "a header that is no JSON": (b"\xff\xfe{", EIGHT, None),
    "a header that is a list": (["w"], EIGHT, None),
    "nesting without end": (b"[" * 200_000, b"", None),
    "a tensor named twice": (b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{}}', b"1", None),
    "an entry that is no object": ({"w": 7}, EIGHT, None),
    "an entry without a shape": ({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, EIGHT, None),
    "an unknown dtype": ({"w": entry("F8_E9M9")}, EIGHT, None),
    "a dtype that is no text": ({"w": entry(["F32"])}, EIGHT, None),
    "negative offsets": ({"w": entry(offsets=[-8, 0])}, EIGHT, None),
    "offsets beyond the data": ({"w": entry(offsets=[8, 16])}, EIGHT, None),
    "offsets in reverse": ({"w": entry(offsets=[8, 0])}, EIGHT, None),
    "offsets that are floats": ({"w": entry(offsets=[0.0, 8.0])}, EIGHT, None),
    "offsets that are booleans": ({"w": entry("U8", [1], [False, True])}, b"1", None),
    "a shape larger than its bytes": ({"w": entry(shape=[1 << 40])}, EIGHT, None),
    "a negative dimension": ({"w": entry(shape=[-1, -2])}, EIGHT, None),
    "a dimension that overflows": ({"w": entry(shape=[1 << 62, 4])}, EIGHT, None),
    "tensors that overlap": ({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12), None),
    "a gap between tensors": ({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20), None),
    "bytes that belong to nothing": ({"w": entry()}, bytes(9), None),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, case: str) -> None:
    header, data, length = HOSTILE[case]
    path = write(tmp_path / "bad.safetensors", header, data, length)
    with pytest.raises(InputError) as caught:
        read_safetensors(path)
    assert str(path) in caught.value.where


@pytest.mark.parametrize("size", [0, 3, 8])
def test_truncated_to_almost_nothing(tmp_path: Path, size: int) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(bytes([9] * size))
    with pytest.raises(InputError):
        read_safetensors(path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_gives_arrays_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "m.safetensors"
    save_file({"a": np.ones((2, 2), np.float32), "b": np.arange(3)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        arrays = read_safetensors(path)
    except InputError:
        return
    assert sum(a.nbytes for a in arrays.values()) <= len(content)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_found(tmp_path: Path, bad: float) -> None:
    save_file({"fine": np.ones(3, np.float32), "sick": np.array([0, bad], np.float16)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="sick"):
        Checkpoint(tmp_path).check_finite()


def shards(folder: Path, weight_map: dict[str, str]) -> Path:
    save_file({"a": np.ones(2, np.float32)}, folder / "one.safetensors")
    save_file({"b": np.zeros(2, np.float32)}, folder / "two.safetensors")
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards_make_one_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"}))
    assert sorted(checkpoint) == ["a", "b"]
    assert [f.name for f in checkpoint.files] == ["one.safetensors", "two.safetensors"]


@pytest.mark.parametrize("name", ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", ""])
def test_shard_paths_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="leaves the folder"):
        Checkpoint(shards(tmp_path, {"a": name}))


def test_an_index_must_tell_the_truth(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such tensor"):
        Checkpoint(shards(tmp_path, {"a": "one.safetensors", "z": "two.safetensors"}))
    with pytest.raises(InputError, match="readable"):
        Checkpoint(shards(tmp_path, {"a": "three.safetensors"}))
    (tmp_path / INDEX_NAME).write_text("[]")
    with pytest.raises(InputError, match="index"):
        Checkpoint(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.safetensors"):
        Checkpoint(tmp_path)
