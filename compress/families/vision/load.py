"""A vision tower's or an image-text encoder's folder → ModelBundle of `vision`, and `text` where there is one."""

from collections.abc import Mapping

import onnx_ir as ir

from pocketport.compress.builder import GraphBuilder
from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.checkpoint import TrackedTensors
from pocketport.compress.families.registry import Lengths
from pocketport.compress.families.vision.config import CLIP, NAFLEX, EncodersConfig, TextConfig
from pocketport.compress.families.vision.graphs import TowerParts, build_text, build_vision
from pocketport.compress.families.vision.images import number
from pocketport.compress.sources.folder import read_json_object
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError, UsageError

BUNDLED_FILES = (
    "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.json", "merges.txt", "spiece.model", "tokenizer.model",
)  # fmt: skip
IGNORED_TENSORS = ("*.position_ids", "logit_scale", "logit_bias")  # a buffer; what the host multiplies and adds


def load_vision(source: Source, name: str, lengths: Lengths) -> ModelBundle:
    """Build the bundle; of the weights only the two numbers of the score are read.

    Raises:
        InputError: tensors and configuration disagree.
        UsageError: `lengths` do not fit the model.
    """
    config = EncodersConfig.of(source)
    tensors = TrackedTensors(source.tensors)
    patches = _patches(source, config, lengths)
    parts = TowerParts(GraphBuilder("vision"), tensors, _prefix(tensors, "vision_model."), config, patches)
    build_vision(parts)
    graphs = {"vision": parts.g.finish()}
    if config.text is not None:
        tokens = _tokens(config, config.text, lengths)
        parts = TowerParts(GraphBuilder("text"), tensors, _prefix(tensors, "text_model."), config, tokens)
        build_text(parts)
        graphs["text"] = parts.g.finish()
    tensors.check_all_taken(IGNORED_TENSORS)
    return ModelBundle(
        name=name,
        family="vision",
        sha256=source.sha256(),
        components={component: Component(component, graph) for component, graph in graphs.items()},
        files={file: source.files[file] for file in BUNDLED_FILES if file in source.files},
        config={"model": dict(source.config), "patches": patches, **_score(source.tensors)},
    )


def _prefix(tensors: Mapping[str, ir.TensorProtocol], prefix: str) -> str:
    """What a tower's names begin with: published towers that stand alone have the prefix too, newer ones may not."""
    return prefix if any(name.startswith(prefix) for name in tensors) else ""


def _patches(source: Source, config: EncodersConfig, lengths: Lengths) -> int:
    """Image patches (L); padded where images keep their shape, else what the image's size makes."""
    if config.kind != NAFLEX:
        if lengths.patches not in (None, config.vision.side**2):
            raise UsageError(
                f"this model takes {config.vision.side**2} patches",
                where="lengths",
                fix="leave the number of patches out",
            )
        return config.vision.side**2
    name = "preprocessor_config.json"
    settings = read_json_object(source.files[name]) if name in source.files else {}
    return lengths.patches or int(number(settings, "max_num_patches", config.vision.num_patches))


def _tokens(config: EncodersConfig, text: TextConfig, lengths: Lengths) -> int:
    """Tokens (S). SigLIP takes the last of all that it was trained with, so that it can't be shortened."""
    longest = text.max_position_embeddings
    tokens = lengths.prompt or longest
    if tokens > longest or (config.kind != CLIP and tokens != longest):
        raise UsageError(
            f"texts of {tokens} tokens do not fit this model, which takes {longest}",
            where="lengths",
            fix="leave the prompt's length out",
        )
    return tokens


def _score(tensors: Mapping[str, ir.TensorProtocol]) -> dict[str, float]:
    """The two numbers by which a cosine becomes a score, as they lie in the checkpoint."""
    found = {}
    for name in ("logit_scale", "logit_bias"):
        if name in tensors:
            array = tensors[name].numpy()
            if array.size != 1:
                raise InputError(
                    f"its shape is {list(array.shape)}, one number is expected",
                    where=f"tensor {name}",
                    fix="give the whole checkpoint",
                )
            found[name] = float(array.reshape(-1)[0])
    return found
