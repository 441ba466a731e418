"""Files that lie, and what opening them must come to: every case writes itself into a folder of its own."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import TensorProto

Tensors: TypeAlias = dict[str, NDArray[Any]]
Write: TypeAlias = Callable[[Path], Path]
"""Writes a case into an empty folder inside an empty folder; gives what is to be opened."""

WIDTH, INNER, WORDS = 32, 64, 48
CONFIG: Mapping[str, Any] = {
    "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": WORDS, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
CODES = {"float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64", "uint8": "U8"}
UP = "model.layers.0.mlp.up_proj"


def tensors() -> Tensors:
    """A small Llama's."""
    rng, layer = np.random.default_rng(0), "model.layers.0"
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, WIDTH), "model.norm.weight": (WIDTH,)}
    shapes |= {f"{layer}.{n}_layernorm.weight": (WIDTH,) for n in ("input", "post_attention")}
    shapes |= {f"{layer}.self_attn.{n}_proj.weight": (WIDTH, WIDTH) for n in "qkvo"}
    shapes |= {f"{layer}.mlp.{n}_proj.weight": (INNER, WIDTH) for n in ("gate", "up")}
    shapes[f"{layer}.mlp.down_proj.weight"] = (WIDTH, INNER)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def header_of(arrays: Tensors) -> dict[str, Any]:
    """The header that tells the truth."""
    header, position = {}, 0
    for name, array in arrays.items():
        end = position + array.nbytes
        header[name] = {"dtype": CODES[array.dtype.name], "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    return header


def packed(header: Any, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file of any header and any claim about its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def data_of(arrays: Tensors) -> bytes:
    return b"".join(array.tobytes() for array in arrays.values())


def checkpoint(
    folder: Path, arrays: Tensors | None = None, config: Any = CONFIG, *, raw: bytes | None = None, name: str = "model.safetensors"
) -> Path:  # fmt: skip
    """A folder of a config.json and one safetensors file."""
    arrays = tensors() if arrays is None else arrays
    (folder / "config.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
    (folder / name).write_bytes(packed(header_of(arrays), data_of(arrays)) if raw is None else raw)
    return folder


def header(change: Callable[[dict[str, Any]], Any]) -> Write:
    """The header changed, the data as they are."""

    def write(folder: Path) -> Path:
        arrays = tensors()
        true = header_of(arrays)
        changed = change(true)
        return checkpoint(folder, raw=packed(true if changed is None else changed, data_of(arrays)))

    return write


def entry(name: str, **keys: Any) -> Write:
    """One header entry changed."""
    return header(lambda h: h[name].update(keys))


def raw(make: Callable[[bytes, bytes], bytes]) -> Write:
    """The file made of header text and data in another way."""

    def write(folder: Path) -> Path:
        arrays = tensors()
        return checkpoint(folder, raw=make(json.dumps(header_of(arrays)).encode(), data_of(arrays)))

    return write


def contents(change: Callable[[Tensors], Any]) -> Write:
    """The tensors changed, and a header that tells the truth about them."""

    def write(folder: Path) -> Path:
        arrays = tensors()
        change(arrays)
        return checkpoint(folder, arrays)

    return write


def config(**keys: Any) -> Write:
    return lambda folder: checkpoint(folder, config={**CONFIG, **keys})


def config_text(text: bytes) -> Write:
    return lambda folder: checkpoint(folder, config=text)


def index(weight_map: Any, *, linked: str | None = None) -> Write:
    """An index over the file ``one.safetensors``; `linked` names a shard that is a symbolic link out of the folder."""

    def write(folder: Path) -> Path:
        checkpoint(folder, name="one.safetensors")
        checkpoint(folder.parent, name="secret.safetensors")
        if linked:
            (folder / linked).symlink_to(folder.parent / "secret.safetensors")
        document = weight_map if isinstance(weight_map, bytes) else json.dumps({"weight_map": weight_map}).encode()
        (folder / "model.safetensors.index.json").write_bytes(document)
        return folder

    return write


def linked(name: str) -> Write:
    """A file of the folder is a symbolic link to one outside."""

    def write(folder: Path) -> Path:
        checkpoint(folder)
        outside = folder.parent / "outside"
        (folder / name).rename(outside) if (folder / name).exists() else outside.write_text("{}")
        (folder / name).symlink_to(outside)
        return folder

    return write


def sparse(folder: Path) -> Path:
    """A header of 100 MB that is a hole in the file."""
    checkpoint(folder, raw=struct.pack("<Q", 100 << 20))
    os.truncate(folder / "model.safetensors", (100 << 20) + 8)
    return folder


def gptq(change: Callable[[Tensors], Any] = lambda arrays: None, **quantization: Any) -> Write:
    """The up projection packed in 4 bits, blocks of 16."""

    def write(folder: Path) -> Path:
        arrays = tensors()
        del arrays[f"{UP}.weight"]
        arrays[f"{UP}.qweight"] = np.zeros((WIDTH // 8, INNER), np.int32)
        arrays[f"{UP}.qzeros"] = np.full((2, INNER // 8), 0x77777777, np.int32)
        arrays[f"{UP}.scales"] = np.ones((2, INNER), np.float16)
        arrays[f"{UP}.g_idx"] = (np.arange(WIDTH) // 16).astype(np.int32)
        change(arrays)
        settings = {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": True, **quantization}
        return checkpoint(folder, arrays, {**CONFIG, "quantization_config": settings})

    return write


def graph(body: str, *, change: Callable[[onnx.ModelProto], Any] = lambda model: None) -> Write:
    """An ONNX file of this body, y of x float[1,4]."""

    def write(folder: Path) -> Path:
        text = f'<ir_version: 8, opset_import: ["": 17]> graph (float[1,4] x) => (float y) {{ {body} }}'
        model = onnx.parser.parse_model(text)
        change(model)
        (folder.parent / "secret.bin").write_bytes(bytes(16))
        (folder / "weights.bin").write_bytes(bytes(16))
        (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return folder / "model.onnx"

    return write


def external(**keys: Any) -> Write:
    """A weight [1, 4] in external data."""

    def change(model: onnx.ModelProto) -> None:
        weight = model.graph.initializer.add(name="w", dims=[1, 4], data_type=TensorProto.FLOAT)
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "weights.bin", "offset": 0, "length": 16, **keys}.items():
            weight.external_data.add(key=key, value=str(value))

    return graph("y = Add(x, w)", change=change)


def inside(dims: list[int], data: bytes = bytes(16)) -> Write:
    """A weight in the file itself, of any claim about its shape."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.add(name="w", dims=dims, data_type=TensorProto.FLOAT, raw_data=data)

    return graph("y = Add(x, w)", change=change)


def cut(folder: Path) -> Path:
    path = external()(folder)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def noise(folder: Path) -> Path:
    path = external()(folder)
    path.write_bytes(b"\xff" * 4096)
    return path


def bomb(op: str) -> Write:
    """A node over constants that asks for 4 TB."""
    bodies = {
        "ConstantOfShape": "n = Constant<value_ints = [1000000, 1000000]>() big = ConstantOfShape(n)",
        "Expand": "n = Constant<value_ints = [1000000, 1000000]>() c = Constant<value_floats = [1.0]>() big = Expand(c, n)",
        "Tile": "n = Constant<value_ints = [1000000000000]>() c = Constant<value_floats = [1.0]>() big = Tile(c, n)",
        "Range": """a = Constant<value_int = 0>() b = Constant<value_int = 1000000000000>() d = Constant<value_int = 1>()
                    r = Range(a, b, d) big = Cast<to = 1>(r)""",
    }
    return graph(f"{bodies[op]} s = ReduceSum<keepdims = 0>(big) y = Add(x, s)")


def doubled(text: bytes, data: bytes) -> bytes:
    name = b'"model.norm.weight"'
    return packed(text.replace(b"{", b"{" + name + b': {"dtype":"F32","shape":[0],"data_offsets":[0,0]},', 1), data)


def second_on_first(h: dict[str, Any]) -> None:
    """Two entries of the same size over the same bytes."""
    h["model.layers.0.self_attn.k_proj.weight"] = dict(h["model.layers.0.self_attn.q_proj.weight"])


def put(name: str, array: NDArray[Any]) -> Callable[[Tensors], Any]:
    return lambda arrays: arrays.update({name: array})


NORM, Q = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"
HOSTILE: Mapping[str, Write] = {
    "a header that claims 100 GB": raw(lambda text, data: packed(text, data, 100 << 30)),
    "a header that claims 2^63 bytes": raw(lambda text, data: packed(text, data, 1 << 63)),
    "a header that is cut": raw(lambda text, data: packed(text, data, len(text) // 2)),
    "a header of 100 MB of nothing": sparse,
    "a header that is no text": raw(lambda text, data: packed(b"\xff" * 64, data)),
    "a header that is a list": header(lambda h: [h]),
    "a header nested without end": raw(lambda text, data: packed(b'{"a":' * 500_000, data)),
    "a tensor named twice": raw(doubled),
    "an entry that is no object": header(lambda h: {**h, NORM: 7}),
    "an unknown dtype": entry(NORM, dtype="F8_E4M3"),
    "a dtype of another size": entry(NORM, dtype="F16"),
    "a negative dimension": entry(NORM, shape=[-1, -WIDTH]),
    "a shape whose product overflows": entry(NORM, shape=[1 << 62, 4, WIDTH]),
    "a shape of 10^12": entry(NORM, shape=[10**12]),
    "a shape of floats": entry(NORM, shape=[float(WIDTH)]),
    "offsets that overlap": header(second_on_first),
    "offsets beyond the file": entry(NORM, data_offsets=[1 << 40, (1 << 40) + 4 * WIDTH]),
    "negative offsets": entry(NORM, data_offsets=[-4 * WIDTH, 0]),
    "bytes that belong to no tensor": raw(lambda text, data: packed(text, data + bytes(8))),
    "data that are cut": raw(lambda text, data: packed(text, data[:-100])),
    "an empty file": raw(lambda text, data: b""),
    "a weight of NaN": contents(put(NORM, np.full(WIDTH, np.nan, np.float32))),
    "one infinity": contents(put(NORM, np.where(np.arange(WIDTH) == 5, np.inf, 1).astype(np.float32))),
    "a weight of integers": contents(put(NORM, np.ones(WIDTH, np.int64))),
    "a weight of no size": contents(put(NORM, np.ones(0, np.float32))),
    "a weight of another shape": contents(put(Q, np.ones((WIDTH, WIDTH + 1), np.float32))),
    "a weight that is missing": contents(lambda arrays: arrays.pop(Q)),
    "a weight that nobody knows": contents(put("model.layers.0.extra", np.ones(2, np.float32))),
    "a shard that is missing": index({"model.norm.weight": "one.safetensors", "other": "two.safetensors"}),
    "a shard that climbs out of the folder": index({"model.norm.weight": "../secret.safetensors"}),
    "a shard by its absolute path": index({"model.norm.weight": "/etc/passwd"}),
    "a shard that is a link out of the folder": index({"model.norm.weight": "two.safetensors"}, linked="two.safetensors"),
    "an index that places a tensor wrongly": index({"nothing": "one.safetensors"}),
    "an index that is no object": index(b"[1, 2]"),
    "an index nested without end": index(b'{"weight_map":' * 200_000),
    "weights that are a link out of the folder": linked("model.safetensors"),
    "a configuration that is a link out of the folder": linked("config.json"),
    "a tokenizer that is a link out of the folder": linked("tokenizer.json"),
    "a configuration nested without end": config_text(b'{"a":' * 500_000),
    "a configuration of 100 MB": config_text(b'{"a": "' + b"x" * (100 << 20) + b'"}'),
    "a configuration that is no object": config_text(b"[]"),
    "a number of a million digits": config_text(b'{"model_type": "llama", "hidden_size": ' + b"9" * 1_000_000 + b"}"),
    "an unknown family": config(model_type="gpt9"),
    "10^9 layers": config(num_hidden_layers=10**9),
    "4096 layers that are not there": config(num_hidden_layers=4096),
    "a width of 10^12": config(hidden_size=10**12),
    "a vocabulary of 10^12": config(vocab_size=10**12),
    "negative layers": config(num_hidden_layers=-1),
    "no heads": config(num_attention_heads=0),
    "a width that is text": config(hidden_size="wide"),
    "a width that is NaN": config(hidden_size=float("nan")),
    "an epsilon that is NaN": config(rms_norm_eps=float("nan")),
    "GPTQ: 7 bits": gptq(bits=7),
    "GPTQ: integers of a wrong shape": gptq(put(f"{UP}.qweight", np.zeros((3, INNER), np.int32))),
    "GPTQ: a group of 10^9": gptq(put(f"{UP}.g_idx", np.full(WIDTH, 10**9, np.int32))),
    "GPTQ: a negative group": gptq(put(f"{UP}.g_idx", np.full(WIDTH, -1, np.int32))),
    "GPTQ: no scales": gptq(lambda arrays: arrays.pop(f"{UP}.scales")),
    "GPTQ: scales of NaN": gptq(put(f"{UP}.scales", np.full((2, INNER), np.nan, np.float16))),
    "GPTQ: blocks of 10^12": gptq(group_size=10**12),
    "ONNX: data that climb out of the folder": external(location="../secret.bin"),
    "ONNX: data by their absolute path": external(location="/etc/passwd"),
    "ONNX: data behind a link out of the folder": external(location="link.bin"),
    "ONNX: data that are missing": external(location="nothing.bin"),
    "ONNX: data longer than their file": external(length=1 << 40),
    "ONNX: data shorter than their tensor": external(length=8),
    "ONNX: data behind the file's end": external(offset=1 << 40),
    "ONNX: data before the file's start": external(offset=-16),
    "ONNX: a weight of 4 TB in 16 bytes": inside([10**6, 10**6]),
    "ONNX: a weight whose size overflows": inside([1 << 62, 4]),
    "ONNX: a negative dimension": inside([-1, 4]),
    "ONNX: a file that is cut": cut,
    "ONNX: no model": noise,
    "ONNX: ConstantOfShape of 4 TB": bomb("ConstantOfShape"),
    "ONNX: Expand to 4 TB": bomb("Expand"),
    "ONNX: Tile to 4 TB": bomb("Tile"),
    "ONNX: Range of 4 TB": bomb("Range"),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What opening a case came to: the error's class (with ``untyped`` before it if it is none of ours), and its price."""

    kind: str
    message: str
    seconds: float
    bytes: int


def outcomes(root: Path, cases: Mapping[str, Write], limit: int) -> dict[str, Outcome]:
    """Write every case under `root` and open them all in one process that may take `limit` bytes more than it has.

    The first one opened is an honest checkpoint and an honest ONNX file, under the names ``checkpoint`` and ``onnx``.
    """
    honest: Mapping[str, Write] = {"onnx": external(), "checkpoint": checkpoint}
    folders = root / "cases"
    for number, write in enumerate([*honest.values(), *cases.values()]):
        folder = folders / f"{number:03}" / "model"
        folder.mkdir(parents=True)
        (folder.parent / "path").write_text(str(write(folder)))
    command = [sys.executable, str(Path(__file__).with_name("hostile_worker.py")), str(folders), str(limit)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POCKETPORT_CACHE": str(root / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    names = [*honest, *cases]
    if len(lines) != len(names):
        raise RuntimeError(f"the worker died at {names[len(lines)]}: {done.stderr[-2000:]}")
    return {n: Outcome(x["kind"], x["message"], x["seconds"], x["bytes"]) for n, x in zip(names, lines, strict=True)}
