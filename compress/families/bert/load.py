"""A BERT sentence encoder's folder → ModelBundle of one component."""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.checkpoint import Checkpoint, TrackedTensors
from pocketport.compress.families.bert.config import BertConfig
from pocketport.compress.families.bert.graphs import build_bert
from pocketport.errors import InputError
from pocketport.files import sha256_files

SEQUENCE_LENGTH = 128  # static; the length that all-MiniLM-L6-v2 was trained at
IGNORED_TENSORS = ("embeddings.position_ids", "pooler.*", "cls.*")  # a buffer, and heads of pre-training
BUNDLED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def load_bert(folder: Path, name: str) -> ModelBundle:
    """Build the bundle; weights stay memory-mapped in the checkpoint's file.

    Raises:
        InputError: a file is missing or damaged, or tensors and configuration disagree.
    """
    config = BertConfig.load(folder)
    checkpoint = Checkpoint(folder)
    checkpoint.check_finite()
    length = min(SEQUENCE_LENGTH, config.max_position_embeddings)
    tensors = TrackedTensors(bert_state(folder))
    graph = build_bert(tensors, config, length)
    tensors.check_all_taken(IGNORED_TENSORS)
    files = {file: folder / file for file in BUNDLED_FILES if (folder / file).is_file()}
    return ModelBundle(
        name=name,
        family="bert",
        sha256=sha256_files([*files.values(), *checkpoint.files]),
        components={"main": Component("main", graph)},
        files=files,
        config={"model": config.model_dump(), "length": length},
    )


def bert_state(folder: Path) -> Mapping[str, ir.TensorProtocol]:
    """Tensors by the names of a bare BertModel; checkpoints with a head put ``bert.`` before them."""
    checkpoint = Checkpoint(folder)
    state = {name.removeprefix("bert."): checkpoint[name] for name in checkpoint}
    if "embeddings.word_embeddings.weight" not in state:
        where = ", ".join(str(f) for f in checkpoint.files)
        raise InputError("it holds no BERT embeddings", where=where, fix="give a BertModel checkpoint")
    return state
