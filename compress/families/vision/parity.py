"""The float graphs of towers and encoders against transformers, over random pictures and texts."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Arrays, OrtExecutor
from pocketport.compress.families.registry import Pair
from pocketport.compress.families.transformers_reference import NOT_STORED, transformers_model
from pocketport.compress.families.vision.config import TextConfig
from pocketport.compress.families.vision.graphs import FEATURES, IMAGE, POOLED, TEXT
from pocketport.compress.families.vision.host import LEGACY_END, EncodersHost
from pocketport.compress.families.vision.images import FlexibleSize
from pocketport.compress.graph import shape_of
from pocketport.compress.sources.source import Source

SAMPLE_SEED = 7
SIZES = ((640, 480), (200, 333))
PROJECTION = "visual_projection.weight"


@torch.inference_mode()
def compare(bundle: ModelBundle, source: Source) -> Iterator[Pair]:
    """(component, tensor, transformers' numbers, the graphs' numbers); padding is left out.

    A CLIP tower that stands alone with its projection is transformers' tower, times that matrix.
    """
    host = EncodersHost(bundle.config, bundle.files)
    text = host.config.text
    model: Any = transformers_model(source, "AutoModel", ignored=NOT_STORED if text else (*NOT_STORED, PROJECTION))
    rng = np.random.default_rng(SAMPLE_SEED)
    vision = OrtExecutor(bundle["vision"].graph)
    inputs, images = [], []
    for picture in (_picture(size, rng) for size in SIZES):
        feeds = host.image_feeds(picture)
        inputs.append(_image_inputs(host, picture, feeds))
        found = vision.run(feeds)
        result = (model if text is None else model.get_image_features)(**inputs[-1])
        rows = result.last_hidden_state[0].numpy()
        used = int((feeds["attention_bias"] == 0).sum()) if "attention_bias" in feeds else len(rows)
        yield "vision", FEATURES, rows[:used], found[FEATURES][:used]
        if POOLED in found:
            yield "vision", POOLED, result.pooler_output.numpy(), found[POOLED]
        if IMAGE in found:
            alone = text is None
            projection = torch.from_numpy(source.tensors[PROJECTION].numpy()).T if alone else None
            expected = result.pooler_output if projection is None else result.pooler_output @ projection
            yield "vision", IMAGE, expected.numpy(), found[IMAGE]
            images.append(found[IMAGE])
    vision.close()
    if text is None:
        return
    executor, vectors, ids = OrtExecutor(bundle["text"].graph), [], []
    for words in _texts(bundle, host, text, rng):
        ids.append(torch.from_numpy(words["input_ids"][None].astype(np.int64)))
        found, result = executor.run(words), model.get_text_features(input_ids=ids[-1])
        yield "text", "text_features", result.last_hidden_state[0].numpy(), found["text_features"]
        yield "text", TEXT, result.pooler_output.numpy(), found[TEXT]
        vectors.append(found[TEXT])
    together = {key: torch.cat([i[key] for i in inputs]) for key in inputs[0]}
    scores = model(input_ids=torch.cat(ids), **together).logits_per_image.numpy()
    yield "text", "logits_per_image", scores, host.logits(np.concatenate(images), np.concatenate(vectors))


def _picture(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A coarse random pattern of this (width, height)."""
    width, height = size
    return Image.fromarray(rng.integers(0, 256, (height // 20, width // 20, 3), np.uint8)).resize(size)


def _image_inputs(host: EncodersHost, picture: Image.Image, feeds: Arrays) -> Mapping[str, Tensor]:
    """What transformers' vision tower takes."""
    pixels = torch.from_numpy(feeds["pixel_values"])
    if not isinstance(host.images, FlexibleSize):
        return {"pixel_values": pixels}
    mask = torch.from_numpy((feeds["attention_bias"][0] == 0).astype(np.int32))
    grid = torch.tensor([host.images.grid(picture.size)])
    return {"pixel_values": pixels[None], "pixel_attention_mask": mask, "spatial_shapes": grid}


def _texts(bundle: ModelBundle, host: EncodersHost, text: TextConfig, rng: np.random.Generator) -> Iterator[Arrays]:
    """Random texts, one as long as the graph takes and one that is padded."""
    shapes = {value.name: shape_of(value) for value in bundle["text"].graph.graph.inputs}
    (length,) = shapes["input_ids"]
    last = text.vocab_size - 1
    end = text.eos_token_id if LEGACY_END < text.eos_token_id <= last else last
    for count in (length, max(2, length // 3)):
        yield host.text_feeds([*rng.integers(3, text.vocab_size // 2, count - 1).tolist(), end], length, padding=1)
