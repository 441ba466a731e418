"""The float graphs and the host side of MiniCPM-V 4.6 and 4.7 against transformers' own code.

Pixels are compared with its PIL image processor (as the original; the other one needs torchvision), everything else
with the model: features, vision tokens, positions, and the language model along the tokens that transformers chooses.
Large models are compared in part: the tower's layers around its merger, the telling layers of the language model, and
the first words of the vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from PIL import Image

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.compress.families.decoder.parity import (
    Computed,
    Reference,
    compare_prompts,
    computed_of,
    empty_cache,
)
from pocketport.compress.families.decoder.published import cut_out, telling_layers
from pocketport.compress.families.decoder.rope import FloatArray
from pocketport.compress.families.minicpmv.slicing import Size
from pocketport.compress.families.minicpmv4_6.config import MarkerTokens, MiniCPMV46Config, ProcessorConfig
from pocketport.compress.families.minicpmv4_6.graphs import HEAD, LANGUAGE, build_graphs
from pocketport.compress.families.minicpmv4_6.parts import StaticShape
from pocketport.compress.families.minicpmv4_6.prompt import EncodedPrompt, runs
from pocketport.compress.families.minicpmv4_6.runner import image_prompt
from pocketport.compress.families.minicpmv4_6.views import View, patch_order, views_of
from pocketport.compress.families.minicpmv4_6.vision_graphs import TOWER
from pocketport.compress.families.registry import Pair
from pocketport.compress.families.transformers_reference import transformers_model
from pocketport.compress.graph import dimensions
from pocketport.compress.sources.source import Source
from pocketport.errors import UsageError

SMALL = 64 << 20  # parameters; a model of so many is compared whole
WORDS = 4096
SAMPLE_SEED = 7
SIDES = ((0.6, 0.4), (2.1, 1.2), (0.9, 3.0))  # of images, in views' sides: one slice or none, several, a tall one
BEFORE, BEHIND = 5, 9  # tokens of text around an image
MARKERS = tuple(MarkerTokens.model_fields)
Sample: TypeAlias = tuple[list[View], Size | None]


def compare(bundle: ModelBundle, source: Source) -> Iterator[Pair]:
    """(component, tensor, transformers' numbers, ours): pixels, features, tokens, positions, and `compare_prompts`.

    Raises:
        UsageError: the bundle's prompt has no room for any image.
    """
    processor = ProcessorConfig.model_validate(bundle.config["processor"])
    shape = StaticShape(*(int(bundle.config[key]) for key in ("patches", "prompt", "cache")))
    graphs: Mapping[str, ir.Model] = {component.name: component.graph for component in bundle}
    if sum(prod(dimensions(tensor)) for tensor in source.tensors.values()) > SMALL:
        source = cut(source)
        graphs = build_graphs(source.tensors, MiniCPMV46Config.of(source), shape)
    config = MiniCPMV46Config.of(source)
    host = DecoderHost(config.decoder(), shape.prompt, shape.cache)
    rng = np.random.default_rng(SAMPLE_SEED)
    samples, prompts = [], []
    for image in images(rng, processor.scale_resolution):
        sample = views_of(image, config, processor)
        prompt = tokens(rng, config, *sample)
        if len(prompt.input_ids) <= shape.prompt:
            yield "vision", "pixel_values", *_pixels(image, sample[0], config, processor)
            samples.append(sample)
            prompts.append(prompt)
    if not samples:
        raise UsageError("its prompt has no room for an image", where=bundle.name, fix="ingest with a longer prompt")
    held: list[Any] = [transformers_model(source, "AutoModelForImageTextToText")]
    vision, connector = OrtExecutor(graphs["vision"]), OrtExecutor(graphs["connector"])
    encoded, image_prompts = [], []
    for (views, grid), prompt in zip(samples, prompts, strict=True):
        encoded.append(encode(held[0], views, config))
        seen = []
        for view, features, expected in zip(views, *encoded[-1], strict=True):
            found = vision.run(view.feeds(shape.patches, config.mergers))
            yield "vision", "vision_features", features, found["vision_features"][: len(features)]
            vision_tokens = np.asarray(connector.run(found)["vision_tokens"][: view.tokens])
            yield "connector", "vision_tokens", expected, vision_tokens
            seen.append(vision_tokens)
        image_prompts.append(image_prompt(prompt, views, grid, seen, config))
        if image_prompts[-1].positions is not None:
            positions = _positions(held[0], prompt.input_ids, views, config)
            yield "prefill", "position_ids", positions, np.asarray(image_prompts[-1].positions)
    vision.close()
    connector.close()

    def references() -> list[Reference]:  # the model goes when they have been asked
        model = held.pop()
        return [_reference(model, config, sample[0], found[1]) for sample, found in zip(samples, encoded, strict=True)]

    yield from compare_prompts(graphs, host, image_prompts, references)


def images(rng: np.random.Generator, side: int) -> Iterator[Image.Image]:
    """Smooth random pictures of `SIDES`."""
    for width, height in ((round(side * x), round(side * y)) for x, y in SIDES):
        small = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        yield Image.fromarray(small).resize((width, height))


def tokens(
    rng: np.random.Generator, config: MiniCPMV46Config, views: Sequence[View], grid: Size | None
) -> EncodedPrompt:
    """Random text around an image."""
    own = config.markers()
    named = own.model_dump() if own else {key: index for index, key in enumerate(MARKERS)}
    special = {*named.values(), config.image_token_id}
    words = np.setdiff1d(np.arange(config.decoder().vocab_size), list(special))
    text = rng.choice(words, BEFORE + BEHIND).tolist()
    ids = [*text[:BEFORE], named["image_start_id"], *[config.image_token_id] * views[0].tokens, named["image_end_id"]]
    for index, view in enumerate(views[1:]):
        if index and grid and index % grid[0] == 0:
            ids.append(named["newline_id"])
        ids += [named["slice_start_id"], *[config.image_token_id] * view.tokens, named["slice_end_id"]]
    ids += text[BEFORE:]
    return EncodedPrompt(ids, runs(ids, config.image_token_id))


def processed(image: Image.Image, config: MiniCPMV46Config, processor: ProcessorConfig) -> Any:
    """What transformers' processor makes of an image: ``pixel_values`` [1,3,P,P·ΣL], ``target_sizes``, ``grids``."""
    from transformers import MiniCPMV4_6ImageProcessorPil

    keys = ("max_slice_nums", "scale_resolution", "patch_size", "slice_mode", "downsample_mode")
    own = MiniCPMV4_6ImageProcessorPil(**{key: getattr(processor, key) for key in keys})
    return own.preprocess([image], return_tensors="np")


def in_rows(view: View, mergers: int) -> tuple[FloatArray, NDArray[np.int64]]:
    """A view's strip and position ids with its patches row by row, as transformers has them."""
    order = np.argsort(patch_order(view.target, mergers))
    patch = view.strip.shape[1]
    patches = view.strip.reshape(3, patch, len(order), patch)[:, :, order]
    return patches.reshape(view.strip.shape), view.position_ids[order].astype(np.int64)


def _pixels(
    image: Image.Image, views: Sequence[View], config: MiniCPMV46Config, processor: ProcessorConfig
) -> tuple[FloatArray, FloatArray]:
    strips = [in_rows(view, config.mergers)[0] for view in views]
    return processed(image, config, processor)["pixel_values"][0], np.concatenate(strips, axis=2)


@torch.inference_mode()
def encode(model: Any, views: Sequence[View], config: MiniCPMV46Config) -> tuple[list[FloatArray], list[FloatArray]]:
    """Features and vision tokens of every view, as transformers computes them from our position ids, in our order."""
    strips, ids = zip(*(in_rows(view, config.mergers) for view in views), strict=True)
    result = model.model.get_image_features(
        torch.from_numpy(np.concatenate(strips, axis=2))[None],
        torch.tensor([view.target for view in views], dtype=torch.int32),
        position_ids=torch.from_numpy(np.concatenate(ids)),
    )
    shrink = 2 ** (config.mergers - 1)
    merged = [(view.target[0] // shrink, view.target[1] // shrink) for view in views]
    features = np.split(result.last_hidden_state[0].numpy(), np.cumsum([prod(size) for size in merged])[:-1])
    ordered = [part[patch_order(size, 1)] for part, size in zip(features, merged, strict=True)]
    return ordered, [part.numpy() for part in result.pooler_output]


def _inputs(tokens: Sequence[int], views: Sequence[View], config: MiniCPMV46Config) -> dict[str, torch.Tensor]:
    ids = torch.tensor([list(tokens)])
    if config.markers() is None:
        return {"input_ids": ids}
    sizes = torch.tensor([view.target for view in views])
    return {"input_ids": ids, "mm_token_type_ids": (ids == config.image_token_id).int(), "target_sizes": sizes}


def _positions(model: Any, tokens: Sequence[int], views: Sequence[View], config: MiniCPMV46Config) -> NDArray[np.int64]:
    positions: NDArray[np.int64] = model.model.get_rope_index(**_inputs(tokens, views, config))[0][:, 0].numpy()
    return positions


def _reference(
    model: Any, config: MiniCPMV46Config, views: Sequence[View], vision_tokens: Sequence[FloatArray]
) -> Reference:
    """The whole language model behind one image."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    @torch.inference_mode()
    def compute(tokens: Sequence[int]) -> Computed:
        cache = empty_cache(model)
        seen = BaseModelOutputWithPooling(pooler_output=[torch.from_numpy(part) for part in vision_tokens])
        result = model(
            **_inputs(tokens, views, config), mm_encoder_outputs={"image": seen}, cache=cache, use_cache=True
        )
        return computed_of(result.logits[0, -1], cache)

    return compute


def cut(source: Source) -> Source:
    """Two layers of the tower around its merger, the telling layers of the language model, few words."""
    config = MiniCPMV46Config.of(source)
    first = min(config.insert_layer_id, config.vision_config.num_hidden_layers - 1)
    kept = [first, *([first + 1] if first + 1 < config.vision_config.num_hidden_layers else [])]
    tensors: dict[str, ir.TensorProtocol] = {}
    path = f"{TOWER}.encoder.layers."
    for name, tensor in source.tensors.items():
        number, _, rest = name.removeprefix(path).partition(".")
        if not name.startswith(path):
            tensors[name] = tensor
        elif int(number) in kept:
            tensors[f"{path}{kept.index(int(number))}.{rest}"] = tensor
    vision = {**source.config["vision_config"], "num_hidden_layers": len(kept)}
    small = Source(source.path, {**source.config, "vision_config": vision, "insert_layer_id": 0}, tensors, source.files)
    small = cut_out(small, LANGUAGE, HEAD, telling_layers(config.decoder()), WORDS)
    special = ("image_token_id", *(MARKERS if config.markers() else ()))
    moved = {key: WORDS - 1 - index for index, key in enumerate(special)}
    return Source(source.path, {**small.config, **moved, "video_token_id": None}, small.tensors)
