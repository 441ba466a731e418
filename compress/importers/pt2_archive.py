"""torch's ``.pt2`` archives, made safe to open: `torch.export.load` unpickles, evaluates and looks up what they name.

An archive (torch/export/pt2_archive) is a zip file without compression: ``models/model.json`` (the graph),
``data/weights`` and ``data/constants`` (raw bytes, each with a JSON index), ``data/sample_inputs/model.pt`` (a pickle).
A graph's targets are looked up in torch attribute by attribute, its shape expressions and guards are evaluated, and its
names become source code. So only what was looked at here goes into a copy, which then is opened: the graph with every
text of it checked, raw weights, no pickle, no guards, no traces.
"""

import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from pocketport.errors import InputError

MOST_JSON_BYTES = 256 << 20
MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
INDEXES = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
PLAIN_RECORDS = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
RAW_RECORD = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
TARGET = re.compile(
    r"torch\.ops\.(aten|prims)\.\w+\.\w+|torch\.sym_(max|min|int|float|not|ite|sum)|math\.(ceil|floor|trunc|sqrt)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_)"
)
FILE_OPS = re.compile(r"torch\.ops\.aten\.(from_file|save|load)\b.*")
NAME = re.compile(r"[\w.+-]*")
WORD = re.compile(r"[\w.,> -]{0,128}")  # text arguments: "tanh", "constant", einsum's "ij,jk->ik"
EXPRESSION = re.compile(r"[\w'(),=*+/ <>-]{0,2000}")
EXPRESSION_WORDS = frozenset(
    {"Symbol", "Integer", "Rational", "Mul", "Add", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv",
     "IntTrueDiv", "ToFloat", "TruncToInt", "True", "False", "positive", "integer", "nonnegative", "real", "nonzero"}
)  # fmt: skip
SPEC_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})


def open_pt2(path: Path) -> ExportedProgram:
    """The program in an archive; nothing that the file says is unpickled or run.

    Raises:
        InputError: the file is damaged, holds pickled objects, or names anything but torch's own operations.
    """
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(prefix="pocketport-pt2-") as folder:
            copy = Path(folder) / "model.pt2"
            _copy_checked(archive, path, copy)
            return torch.export.load(copy)
    except InputError:
        raise
    except Exception as error:  # torch and zipfile each raise their own kinds on damaged input
        raise _refused(path, f"not a readable program: {type(error).__name__}: {error}") from error


def _copy_checked(archive: zipfile.ZipFile, path: Path, copy: Path) -> None:
    root = archive.namelist()[0].partition("/")[0] if archive.namelist() else ""
    records = {info.filename.removeprefix(f"{root}/"): info for info in archive.infolist()}
    if len(records) != len(archive.infolist()):
        raise _refused(path, "a record appears twice")
    if any(
        info.compress_type != zipfile.ZIP_STORED or info.file_size > path.stat().st_size for info in records.values()
    ):
        raise _refused(path, "its records are compressed, which torch never does")
    for name in (MODEL, *INDEXES):
        if name not in records or records[name].file_size > MOST_JSON_BYTES:
            raise _refused(path, f"it has no record {name} of a sound size")
    program = json.loads(archive.read(records[MODEL]))
    _check_program(path, program)
    with zipfile.ZipFile(copy, "w") as written:
        for name, info in records.items():
            if name == MODEL:
                written.writestr(f"model/{name}", json.dumps(program))
            elif name == SAMPLES:
                written.writestr(f"model/{name}", b"")
            elif name in INDEXES:
                index = json.loads(archive.read(info))
                _check_index(path, index, name.rpartition("/")[0], records)
                written.writestr(f"model/{name}", json.dumps(index))
            elif name in PLAIN_RECORDS or RAW_RECORD.fullmatch(name):
                with archive.open(info) as source, written.open(f"model/{name}", "w", force_zip64=True) as target:
                    while run := source.read(1 << 24):
                        target.write(run)


def _check_index(path: Path, index: Any, folder: str, records: Mapping[str, zipfile.ZipInfo]) -> None:
    """Every tensor lies in raw bytes, within its record."""
    for name, entry in index["config"].items():
        record = f"{folder}/{entry['path_name']}"
        if entry["use_pickle"] or not RAW_RECORD.fullmatch(record) or record not in records:
            raise _refused(path, f"{name} is a pickled object, which could run any code")
        meta = entry["tensor_meta"]
        sizes = [int(size["as_int"]) for size in meta["sizes"]]
        if min(sizes, default=0) < 0 or prod(sizes) > records[record].file_size:
            raise _refused(path, f"{name} of the shape {sizes} is larger than its record")
    _check_texts(path, index)


def _check_program(path: Path, program: Any) -> None:
    """Check every text, and take out what only people read."""
    program["guards_code"] = []
    for node in program["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
        target = node["target"]
        if not TARGET.fullmatch(target) or FILE_OPS.fullmatch(target):
            raise InputError(
                f"the operation {target!r} is none that torch decomposes a model into",
                where=f"{path}, node {node.get('name')}",
                fix="export the model with torch.export.export, without custom operations or control flow",
            )
    _check_texts(path, program)


def _check_texts(path: Path, document: Any) -> None:
    for key, text in _texts(document, ""):
        if key == "expr_str":
            sound = _is_plain_expression(text)
        elif key in ("in_spec", "out_spec"):
            sound = _is_plain_spec(json.loads(text))
        else:
            sound = (WORD if key == "as_string" else NAME).fullmatch(text) is not None
        if not sound:
            raise _refused(path, f"its {key or 'key'} {text[:80]!r} has no place in a graph")


def _texts(document: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every text in a JSON document, with the key that it belongs to; keys themselves belong to none."""
    waiting = [(key, document)]
    while waiting:
        key, found = waiting.pop()
        if isinstance(found, str):
            yield key, found
        elif isinstance(found, list):
            waiting += [(key, item) for item in found]
        elif isinstance(found, dict):
            waiting += [("", name) for name in found]
            waiting += list(found.items())


def _is_plain_expression(text: str) -> bool:
    """Whether a shape is sums, products and quotients of symbols: no powers, which could take for ever, and no calls."""
    unnamed = re.sub(r"'[su]\d+'", "", text)
    words = set(re.findall(r"[A-Za-z_]\w*", unnamed))
    plain = EXPRESSION.fullmatch(text) is not None and "**" not in text and "'" not in unnamed
    return plain and words <= EXPRESSION_WORDS


def _is_plain_spec(spec: Any) -> bool:
    """Whether a tree's description ([version, tree]) names Python's own containers only."""
    waiting = [spec[1]]
    while waiting:
        node = waiting.pop()
        context = node["context"]
        if node["type"] not in SPEC_TYPES or not (context is None or re.fullmatch(r'[\w\[\]", .]*', context)):
            return False
        waiting += node["children_spec"]
    return True


def _refused(path: Path, why: str) -> InputError:
    return InputError(why, where=str(path), fix="export the program again with torch.export.save")
