"""GGUF files of the format owner's writer are read; damaged and hostile ones are typed errors in bounded memory and time."""

import struct
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketport.compress.ggml import reader
from pocketport.compress.ggml.reader import GgufFile
from pocketport.errors import InputError

MUTATIONS = 1500
MOST_SECONDS, MOST_BYTES = 5.0, 64 << 20


def written(path: Path) -> Path:
    """A file with metadata and tensors of every kind."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.count", 7)
    writer.add_int64("a.long", -(2**40))
    writer.add_float32("a.ratio", 0.25)
    writer.add_bool("a.flag", True)
    writer.add_array("a.names", ["eins", "zwei ▁ü", "\n"])
    writer.add_array("a.numbers", [3, -1, 2])
    writer.add_array("a.flags", [True, False])
    writer.add_tensor("matrix", np.arange(96, dtype=np.float32).reshape(3, 32))
    writer.add_tensor("half", np.linspace(-2, 2, 5).astype(np.float16))
    blocks = gguf.quants.quantize(
        np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64), gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


def test_a_file_of_the_format_owner_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    file, expected = GgufFile(path), gguf.GGUFReader(path)
    for key, field in expected.fields.items():
        if not key.startswith("GGUF."):
            np.testing.assert_array_equal(np.asarray(file.metadata[key]), np.asarray(field.contents()), err_msg=key)
    assert len(file.metadata) == 8 and type(file.metadata["a.flag"]) is bool
    assert [(t.name, t.shape, t.type.code, t.offset, t.nbytes) for t in file.tensors.values()] == [
        (t.name, tuple(map(int, t.shape[::-1])), int(t.tensor_type), t.data_offset, t.n_bytes) for t in expected.tensors
    ]


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def entry(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def packed(pairs: list[bytes], entries: list[bytes], data: int = 256, version: int = 3) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, len(entries), len(pairs)) + b"".join(pairs) + b"".join(entries)
    return header + bytes(-len(header) % 32) + bytes(data)


def counted(tensors: int, pairs: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + bytes(64)


ALIGNMENT = "general.alignment"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "can't be read"),
    "of another kind": (b"PK\x03\x04" + bytes(64), "does not begin with GGUF"),
    "cut in the counts": (packed([], [])[:14], "needs 8 bytes at 8"),
    "version 1": (packed([], [], version=1), "version 1 is not known"),
    "big-endian": (packed([], [], version=3 << 24), "big-endian"),
    "2^60 tensors": (counted(2**60, 0), "claims 1152921504606846976 tensors"),
    "2^60 pairs": (counted(0, 2**60), "metadata pairs"),
    "tensors that are not there": (counted(60000, 0), "tensor"),
    "a key of 2^60 bytes": (packed([struct.pack("<Q", 2**60)], []), "a text claims 1152921504606846976 bytes"),
    "a key beyond the end": (packed([struct.pack("<Q", 100000)], []), "needs 100000 bytes"),
    "a text that is not UTF-8": (packed([pair("a", 8, text(b"\xff\xfe"))], []), "not UTF-8"),
    "a key twice": (packed([pair("a", 0, b"\1")] * 2, []), "the key appears twice"),
    "an unknown type": (packed([pair("a", 99, bytes(8))], []), "type number 99"),
    "a truth value of 2": (packed([pair("a", 7, b"\2")], []), "a truth value is 2"),
    "an array of 2^60": (packed([pair("a", 9, struct.pack("<IQ", 4, 2**60))], []), "claims 1152921504606846976 elements"),
    "an array beyond the end": (packed([pair("a", 9, struct.pack("<IQ", 10, 2**20))], []), "needs 8388608 bytes"),
    "texts beyond the end": (packed([pair("a", 9, struct.pack("<IQ", 8, 2**22))], []), "needs 8 bytes"),
    "arrays in arrays": (packed([pair("a", 9, struct.pack("<IQ", 9, 1) * 1000)], []), "array of arrays"),
    "alignment 0": (packed([pair(ALIGNMENT, 4, struct.pack("<I", 0))], []), "alignment 0"),
    "alignment 48": (packed([pair(ALIGNMENT, 4, struct.pack("<I", 48))], []), "alignment 48"),
    "alignment 2^31": (packed([pair(ALIGNMENT, 4, struct.pack("<I", 2**31))], []), "alignment 2147483648"),
    "alignment as a text": (packed([pair(ALIGNMENT, 8, text("32"))], []), "alignment '32'"),
    "no dimensions": (packed([], [entry("t", ())]), "0 dimensions"),
    "2^32 − 1 dimensions": (packed([], [text("t") + b"\xff" * 4]), "4294967295 dimensions"),
    "a dimension of 0": (packed([], [entry("t", (0, 4))]), "not rows of whole"),
    "a size that overflows": (packed([], [entry("t", (2**63, 2**63))]), "the file ends at"),
    "a row that is no whole block": (packed([], [entry("t", (33,), kind=8)]), "not rows of whole q8_0 blocks of 32"),
    "an unknown tensor type": (packed([], [entry("t", (4,), kind=77)]), "type number 77 is not known"),
    "an offset out of line": (packed([], [entry("t", (4,), offset=8)]), "not a multiple of the alignment 32"),
    "an offset beyond the end": (packed([], [entry("t", (4,), offset=2**62)]), "the file ends at"),
    "data beyond the end": (packed([], [entry("t", (65,))]), "the file ends at"),
    "a name twice": (packed([], [entry("t", (4,)), entry("t", (4,), offset=32)]), "the name appears twice"),
    "tensors that overlap": (packed([], [entry("a", (9,)), entry("b", (4,), offset=32)]), "within that of a"),
    "the same place twice": (packed([], [entry("a", (4,)), entry("b", (4,))]), "within that of a"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_by_name(tmp_path: Path, case: str) -> None:
    content, why = HOSTILE[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            GgufFile(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert why in str(caught.value) and str(path) in caught.value.where
    assert time.perf_counter() - start < MOST_SECONDS and peak < MOST_BYTES


def test_a_header_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, honest: bytes) -> None:
    monkeypatch.setattr(reader, "MOST_HEADER_BYTES", 100)
    path = tmp_path / "m.gguf"
    path.write_bytes(honest)
    with pytest.raises(InputError, match="that a header may take"):
        GgufFile(path)


def test_every_truncation_is_refused(tmp_path: Path, honest: bytes) -> None:
    path = tmp_path / "m.gguf"
    whole = GgufFile(written(tmp_path / "whole.gguf"))
    end = max(tensor.offset + tensor.nbytes for tensor in whole.tensors.values())  # behind it there is padding
    for length in [*range(0, whole.header_bytes, 7), whole.header_bytes, end - 1]:
        path.write_bytes(honest[:length])
        with pytest.raises(InputError):
            GgufFile(path)


def test_mutated_headers(tmp_path: Path, honest: bytes) -> None:
    """Bytes changed, removed, doubled: a typed error, or tensors that lie within the file and apart from each other."""
    rng, path, refused = np.random.default_rng(0), tmp_path / "m.gguf", 0
    header = GgufFile(written(tmp_path / "whole.gguf")).header_bytes
    start = time.perf_counter()
    for _ in range(MUTATIONS):
        content = bytearray(honest)
        for place in rng.integers(0, header, rng.integers(1, 4)):
            match rng.integers(3):
                case 0:
                    content[place] = rng.choice([0, 1, 127, 128, 255, content[place] ^ 1])
                case 1:
                    del content[place : place + int(rng.integers(1, 9))]
                case _:
                    content[place:place] = content[place : place + int(rng.integers(1, 9))]
        path.write_bytes(content)
        try:
            file = GgufFile(path)
        except InputError:
            refused += 1
            continue
        spans = sorted((t.offset, t.offset + t.nbytes) for t in file.tensors.values())
        assert all(first[1] <= second[0] for first, second in pairwise(spans))
        assert all(file.header_bytes <= first and last <= len(content) for first, last in spans)
    assert MUTATIONS // 3 < refused < MUTATIONS
    assert time.perf_counter() - start < 60


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
        st.text() | st.booleans() | st.integers(0, 2**32 - 1) | st.floats(width=32, allow_nan=False)
        | st.lists(st.text(), min_size=1, max_size=5) | st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5),
        max_size=6,
    )
)  # fmt: skip
def test_metadata_of_any_kind_comes_back(tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    metadata.pop("general.architecture", None)
    for key, value in metadata.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case str():
                writer.add_string(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case list():
                writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    read = GgufFile(path).metadata
    # The format owner's writer leaves out empty texts.
    expected = {"general.architecture": "llama", **{k: v for k, v in metadata.items() if v != ""}}
    assert {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in read.items()} == expected
