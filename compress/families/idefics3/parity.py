"""The float graphs and the host side of Idefics3 and SmolVLM against transformers' own code.

Pixels are compared with its PIL image processor (the other one needs torchvision), everything else with the model:
features, vision tokens, and the language model along the tokens that transformers chooses. Large models are compared
in part: the telling layers of both stacks and the first words of the vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from PIL import Image

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.chat import ImagePrompt
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.compress.families.decoder.parity import Reference, compare_prompts, computed_by
from pocketport.compress.families.decoder.published import cut_out, telling_layers
from pocketport.compress.families.idefics3.config import Idefics3Config
from pocketport.compress.families.idefics3.graphs import HEAD, LANGUAGE, TOWER, StaticShape, build_graphs
from pocketport.compress.families.idefics3.tiles import TileSettings
from pocketport.compress.families.registry import Pair
from pocketport.compress.families.transformers_reference import transformers_model
from pocketport.compress.graph import dimensions
from pocketport.compress.sources.source import Source

SMALL = 64 << 20  # parameters; a model of so many is compared whole
WORDS = 4096
SAMPLE_SEED = 7
SIZES = ((640, 480), (90, 400))  # pixels
BEFORE, BEHIND = 5, 9  # tokens of text around an image
MOST_TILES = 3  # of each image that are run


def compare(bundle: ModelBundle, source: Source) -> Iterator[Pair]:
    """(component, tensor, transformers' numbers, ours): pixels, features, tokens, and `compare_prompts`."""
    tiles = TileSettings.from_hf(bundle.config["image"])
    shape = StaticShape(tiles.tile, int(bundle.config["prompt"]), int(bundle.config["cache"]))
    graphs: Mapping[str, ir.Model] = {component.name: component.graph for component in bundle}
    if sum(prod(dimensions(tensor)) for tensor in source.tensors.values()) > SMALL:
        source = cut(source)
        graphs = build_graphs(source.tensors, Idefics3Config.from_hf(source.config), shape)
    config = Idefics3Config.from_hf(source.config)
    rng = np.random.default_rng(SAMPLE_SEED)
    samples = []
    for width, height in SIZES:
        image = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)).resize((width, height))
        pixels = np.concatenate([tiles.pixels(tile) for tile in tiles.cut(image)[0]])
        yield "vision", "pixel_values", processed(image, bundle.config["image"])[0], pixels
        samples.append(pixels[:MOST_TILES])
    held: list[Any] = [transformers_model(source, "AutoModelForImageTextToText")]
    encoded = [_encoded(held[0], pixels) for pixels in samples]
    vision, connector = OrtExecutor(graphs["vision"]), OrtExecutor(graphs["connector"])
    prompts = []
    for pixels, expected in zip(samples, encoded, strict=True):
        tokens = []
        merged = expected.pooler_output[0].numpy().reshape(len(pixels), -1, config.decoder.hidden_size)
        for tile, features, joined in zip(pixels, expected.last_hidden_state.numpy(), merged, strict=True):
            seen = vision.run({"pixel_values": tile[None]})
            tokens.append(connector.run(seen)["vision_tokens"])
            yield "vision", "vision_features", features, seen["vision_features"]
            yield "connector", "vision_tokens", joined, tokens[-1]
        prompts.append(_prompt(rng, config, tokens))
    vision.close()
    connector.close()

    def references() -> list[Reference]:  # the model goes when they have been asked
        model = held.pop()
        return [_reference(model, image) for image in encoded]

    host = DecoderHost(config.decoder, shape.prompt, shape.cache)
    yield from compare_prompts(graphs, host, prompts, references)


def processed(image: Image.Image, settings: Mapping[str, Any]) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """What transformers' processor makes of an image: pixels [tiles,3,T,T], and the grid (rows, columns)."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    known = ("size", "max_image_size", "do_image_splitting", "image_mean", "image_std", "rescale_factor", "resample")
    processor = Idefics3ImageProcessorPil(**{key: settings[key] for key in known if key in settings})
    found = processor.preprocess([[image]], return_row_col_info=True, return_tensors="np")
    return found["pixel_values"][0], (int(found["rows"][0][0]), int(found["cols"][0][0]))


def cut(source: Source) -> Source:
    """A smaller model of the same kind: the telling layers of both stacks, the first words; the last one is the image's."""
    config = Idefics3Config.from_hf(source.config)
    smaller = cut_out(source, LANGUAGE, HEAD, telling_layers(config.decoder), WORDS)
    last = config.vision.num_hidden_layers - 1
    kept = {f"{TOWER}.encoder.layers.{old}.": f"{TOWER}.encoder.layers.{new}." for old, new in ((0, 0), (last, 1))}
    tensors = {}
    for name, tensor in smaller.tensors.items():
        if not name.startswith(f"{TOWER}.encoder.layers."):
            tensors[name] = tensor
        for old, new in kept.items():
            if name.startswith(old):
                tensors[new + name.removeprefix(old)] = tensor
    text = smaller.config["text_config"]
    changed = {
        **smaller.config, "vision_config": {**smaller.config["vision_config"], "num_hidden_layers": 2},
        "image_token_id": text["vocab_size"] - 1,
        "text_config": {**text, "bos_token_id": 0, "eos_token_id": 0},
    }  # fmt: skip
    return Source(source.path, changed, tensors)


@torch.inference_mode()
def _encoded(model: Any, pixels: NDArray[np.float32]) -> Any:
    return model.model.get_image_features(torch.from_numpy(pixels)[None])


def _prompt(rng: np.random.Generator, config: Idefics3Config, vision: Sequence[Any]) -> ImagePrompt:
    """Random text around the tiles of an image, and one token of it between them."""
    words = min(config.image_token, config.decoder.vocab_size)
    ids, spans = rng.integers(0, words, BEFORE).tolist(), []
    for tokens in vision:
        spans.append((len(ids), len(ids) + len(tokens)))
        ids += [config.image_token] * len(tokens) + rng.integers(0, words, 1).tolist()
    return ImagePrompt(ids + rng.integers(0, words, BEHIND).tolist(), spans, vision, len(vision))


def _reference(model: Any, image: Any) -> Reference:
    """The whole model, with an image that its tower has seen."""
    return lambda tokens: computed_by(
        model, input_ids=torch.tensor([list(tokens)]), mm_encoder_outputs={"image": image}
    )
