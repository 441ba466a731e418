"""A BERT sentence encoder's folder → ModelBundle of one component."""

from collections.abc import Mapping

import onnx_ir as ir

from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.checkpoint import TrackedTensors
from pocketport.compress.families.bert.config import BertConfig
from pocketport.compress.families.bert.graphs import build_bert
from pocketport.compress.families.registry import Lengths
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

SEQUENCE_LENGTH = 128  # static; the length that all-MiniLM-L6-v2 was trained at
IGNORED_TENSORS = ("embeddings.position_ids", "pooler.*", "cls.*")  # a buffer, and heads of pre-training
BUNDLED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def load_bert(source: Source, name: str, lengths: Lengths) -> ModelBundle:
    """Build the bundle; no weight is read.

    Raises:
        InputError: tensors and configuration disagree.
    """
    config = BertConfig.of(source)
    length = min(lengths.prompt or SEQUENCE_LENGTH, config.max_position_embeddings)
    tensors = TrackedTensors(bert_state(source))
    graph = build_bert(tensors, config, length)
    tensors.check_all_taken(IGNORED_TENSORS)
    return ModelBundle(
        name=name,
        family="bert",
        sha256=source.sha256(),
        components={"main": Component("main", graph)},
        files={file: source.files[file] for file in BUNDLED_FILES if file in source.files},
        config={"model": config.model_dump(), "length": length},
    )


def bert_state(source: Source) -> Mapping[str, ir.TensorProtocol]:
    """Tensors by the names of a bare BertModel; checkpoints with a head put ``bert.`` before them."""
    state = {name.removeprefix("bert."): source.tensors[name] for name in source.tensors}
    if "embeddings.word_embeddings.weight" not in state:
        raise InputError("it holds no BERT embeddings", where=str(source.path), fix="give a BertModel checkpoint")
    return state
