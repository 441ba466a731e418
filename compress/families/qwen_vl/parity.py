"""The float graphs and the host side of a Qwen-VL model against transformers' own code.

Pixels are compared with its PIL image processor (the other one needs torchvision), everything else with the model:
what the layers of the tower give, merged tokens, positions, and the language model along the tokens that transformers
chooses. Large models are compared in part: the telling layers of both stacks and the first words of the vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.decoder.config import DecoderConfig
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.compress.families.decoder.parity import Reference, compare_prompts, computed_by
from pocketport.compress.families.decoder.published import cut_out, decoder_paths, telling_layers
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.compress.families.qwen_vl.config import QwenVLConfig
from pocketport.compress.families.qwen_vl.graphs import build_graphs
from pocketport.compress.families.qwen_vl.images import Grid, ImageSettings, to_patches
from pocketport.compress.families.qwen_vl.parts import StaticShape
from pocketport.compress.families.qwen_vl.positions import patch_windows
from pocketport.compress.families.qwen_vl.published import cut_vision, telling_blocks, visual_path
from pocketport.compress.families.qwen_vl.seen import image_prompt, seen_image, vision_feeds
from pocketport.compress.families.registry import Pair
from pocketport.compress.families.transformers_reference import transformers_model
from pocketport.compress.graph import dimensions
from pocketport.compress.sources.source import Source

SMALL = 64 << 20  # parameters; a model of so many is compared whole
WORDS = 4096
SAMPLE_SEED = 7
SIZES = ((640, 480), (90, 400))  # pixels
BEFORE, BEHIND = 5, 9  # tokens of text around an image
Patches = tuple[FloatArray, Grid]


def compare(bundle: ModelBundle, source: Source) -> Iterator[Pair]:
    """(component, tensor, transformers' numbers, ours): pixels, features, tokens, positions, and `compare_prompts`."""
    settings = ImageSettings.model_validate(bundle.config["image"])
    shape = StaticShape(*(int(bundle.config[key]) for key in ("patches", "prompt", "cache")))
    rng = np.random.default_rng(SAMPLE_SEED)
    images = [Image.fromarray(rng.integers(0, 256, (h // 8, w // 8, 3), np.uint8)).resize((w, h)) for w, h in SIZES]
    samples = [to_patches(image, settings) for image in images]
    for image, (patches, _) in zip(images, samples, strict=True):
        yield "vision", "pixel_values", processed(image, settings)[0], patches
    graphs: Mapping[str, ir.Model] = {component.name: component.graph for component in bundle}
    config = QwenVLConfig.from_hf(bundle.config["model"])
    if sum(prod(dimensions(tensor)) for tensor in source.tensors.values()) > SMALL:
        source = _cut(source)
        config = QwenVLConfig.from_hf(source.config)
        graphs = build_graphs(source.tensors, config, shape)
    host = DecoderHost(config.decoder, shape.prompt, shape.cache)
    held = [transformers_model(source, "AutoModelForImageTextToText")]
    vision, connector = OrtExecutor(graphs["vision"]), OrtExecutor(graphs["connector"])
    prompts = []
    for patches, grid in samples:
        features = vision.run(vision_feeds(patches, grid, config.vision, shape.patches))
        results = connector.run(features)
        for component, tensor, expected in _vision(held[0], config, (patches, grid)):
            yield component, tensor, expected, {**features, **results}[tensor][: len(expected)]
        seen = seen_image(results, grid, config.vision)
        prompt = image_prompt(_tokens(rng, config, len(seen.tokens)), BEFORE, seen, host)
        yield (
            "prefill",
            "position_ids",
            _positions(held[0], prompt.input_ids, config, grid),
            np.asarray(prompt.positions),
        )
        prompts.append(prompt)
    vision.close()
    connector.close()

    def references() -> list[Reference]:  # the model goes when they have been asked
        model = held.pop()
        return [_reference(model, config, sample) for sample in samples]

    yield from compare_prompts(graphs, host, prompts, references)


def processed(image: Image.Image, settings: ImageSettings) -> tuple[FloatArray, NDArray[np.int64]]:
    """What transformers' processor makes of an image: patches [N,K], and their grid [1,3] (time, rows, columns)."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    own = settings.model_dump()
    size = {"shortest_edge": own.pop("min_pixels"), "longest_edge": own.pop("max_pixels")}
    found = Qwen2VLImageProcessorPil(size=size, **own).preprocess([image], return_tensors="np")
    return found["pixel_values"], found["image_grid_thw"]


@torch.inference_mode()
def _vision(model: Any, config: QwenVLConfig, sample: Patches) -> Iterator[tuple[str, str, FloatArray]]:
    """What the tower's layers and its mergers give, in our order of patches."""
    patches, grid = sample
    visual, outputs = model.model.visual, {}
    with ExitStack() as hooks:
        names = {block: f"deepstack_features_{i}" for i, block in enumerate(config.vision.deepstack)}
        for block, name in (names | {config.vision.depth - 1: "vision_features"}).items():

            def keep(module: nn.Module, inputs: Any, output: torch.Tensor, name: str = name) -> None:
                outputs[name] = output.numpy()

            hooks.callback(visual.blocks[block].register_forward_hook(keep).remove)
        found = visual(torch.from_numpy(patches), grid_thw=torch.tensor([[1, *grid]]))
    order = np.arange(len(patches))
    if config.vision.window is not None:  # transformers sorts the patches by window
        order = np.argsort(np.argsort(patch_windows(grid, config.vision), kind="stable"))
    for name, features in outputs.items():
        yield "vision", name, features[order]
    yield "connector", "vision_tokens", found.pooler_output.numpy()
    for i in range(len(config.vision.deepstack)):
        yield "connector", f"deepstack_tokens_{i}", found.deepstack_features[i].numpy()


def _tokens(rng: np.random.Generator, config: QwenVLConfig, image_tokens: int) -> list[int]:
    """Random text around an image."""
    image = config.tokens.image_token_id
    text = rng.integers(0, config.decoder.vocab_size - 1, BEFORE + BEHIND)
    text += text >= image  # every word but the image's
    return [*text[:BEFORE].tolist(), *[image] * image_tokens, *text[BEFORE:].tolist()]


def _model_inputs(tokens: Sequence[int], config: QwenVLConfig, grid: Grid) -> dict[str, torch.Tensor]:
    ids = torch.tensor([list(tokens)])
    kinds = (ids == config.tokens.image_token_id).int()
    return {"input_ids": ids, "mm_token_type_ids": kinds, "image_grid_thw": torch.tensor([[1, *grid]])}


def _positions(model: Any, tokens: Sequence[int], config: QwenVLConfig, grid: Grid) -> NDArray[np.int64]:
    positions: NDArray[np.int64] = model.model.get_rope_index(**_model_inputs(tokens, config, grid))[0][:, 0].numpy()
    return positions


def _reference(model: Any, config: QwenVLConfig, sample: Patches) -> Reference:
    """The whole model with one image."""
    patches, grid = sample
    pixels = torch.from_numpy(patches)
    return lambda tokens: computed_by(model, **_model_inputs(tokens, config, grid), pixel_values=pixels)


def _cut(source: Source) -> Source:
    """The telling layers of both stacks and the first words of the vocabulary, the last of which stands for images."""
    config = QwenVLConfig.from_hf(source.config)
    source = cut_vision(source, visual_path(source.tensors), telling_blocks(config.vision))
    layers = {*telling_layers(config.decoder), *range(len(config.vision.deepstack))}
    source = cut_out(source, *decoder_paths(source.tensors), sorted(layers), WORDS)
    words = DecoderConfig.from_hf(source.config).vocab_size
    return Source(source.path, {**source.config, "image_token_id": words - 1}, source.tensors)
