"""Vision towers and image-text encoders: the parity gate, and what the host does with images and texts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from vision_models import ENCODERS, save_encoders

from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.registry import Lengths
from pocketport.compress.families.vision.host import EncodersHost
from pocketport.compress.families.vision.images import FlexibleSize, linear_weights
from pocketport.compress.families.vision.load import load_vision
from pocketport.compress.ingest import ingest
from pocketport.compress.parity import check_parity
from pocketport.compress.sources.open import open_source
from pocketport.compress.synthesis.layout import layout_of
from pocketport.compress.synthesis.preset import load_preset
from pocketport.errors import InputError, UsageError

transformers = pytest.importorskip("transformers")

OUTPUTS = {
    "siglip": (["vision_features", "image_embeds"], ["text_features", "text_embeds"]),
    "clip": (["vision_features", "image_embeds"], ["text_features", "text_embeds"]),
    "siglip_headless": (["vision_features"], []),
    "clip_vision_model": (["vision_features", "pooled_features"], []),
    "clip_projected": (["vision_features", "image_embeds"], []),
}
SIDES = (32, 56, 64, 97, 224, 333, 640)
SIZES = [(w, h) for w in SIDES for h in SIDES if abs(np.log(w / h)) < 2.7] + [
    (1, 1),
    (4000, 300),
    (300, 4000),
    (1920, 1080),
]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind, made once; not to be written to."""
    root = tmp_path_factory.mktemp("encoders")
    return {kind: save_encoders(root / kind, kind) for kind in ENCODERS}


def picture(size: tuple[int, int]) -> Image.Image:
    """Coarse noise, so that resizing has edges to soften."""
    shape = (max(1, size[1] // 7), max(1, size[0] // 7), 3)
    return Image.fromarray(np.random.default_rng(size).integers(0, 256, shape, np.uint8)).resize(size)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_output_is_what_transformers_computes(saved: dict[str, Path], kind: str) -> None:
    bundle = ingest(saved[kind])
    report = check_parity(bundle, saved[kind])
    compared = {(figure.component, figure.tensor) for figure in report.figures}
    outputs = {(c.name, str(v.name)) for c in bundle for v in c.graph.graph.outputs}
    assert outputs <= compared
    if kind in OUTPUTS:
        named = tuple([str(v.name) for v in c.graph.graph.outputs] for c in bundle)
        assert named == tuple(names for names in OUTPUTS[kind] if names)
    assert min(figure.sqnr_db for figure in report.figures) > 90


def test_a_towers_names_may_lack_their_prefix(saved: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved["siglip_vision_model"]
    tensors = {n.removeprefix("vision_model."): t for n, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    feeds = {"pixel_values": np.random.default_rng(0).standard_normal((1, 3, 60, 60)).astype(np.float32)}
    first, second = (OrtExecutor(ingest(p)["vision"].graph).run(feeds) for p in (folder, tmp_path))
    assert np.array_equal(first["pooled_features"], second["pooled_features"])


def test_what_no_graph_takes_is_an_error(saved: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((saved["siglip_vision_model"] / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((saved["siglip_vision_model"] / "model.safetensors").read_bytes())
    for change, message in (
        ({"num_hidden_layers": 1}, "no place"),
        ({"num_hidden_layers": 3}, "lacks"),
        ({"patch_size": 15}, "shape"),
        ({"hidden_act": "relu6"}, "activation"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"num_channels": 1}, "three channels"),
        ({"hidden_size": -3}, "hidden_size"),
        ({"vision_use_head": False}, "no place"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match=message):
            ingest(tmp_path)


def test_lengths_that_do_not_fit(saved: dict[str, Path]) -> None:
    source = {kind: open_source(path) for kind, path in saved.items()}
    for kind, lengths in (("siglip", Lengths(prompt=8)), ("clip", Lengths(prompt=17)), ("clip", Lengths(patches=9))):
        with pytest.raises(UsageError, match="takes"):
            load_vision(source[kind], kind, lengths)
    short = load_vision(source["clip"], "clip", Lengths(prompt=8))
    assert {v.name: list(v.shape) for v in short["text"].graph.graph.inputs} == {
        "input_ids": [8],
        "pooling_weights": [1, 8],
    }
    feeds = EncodersHost(short.config, short.files).text_feeds([0, 7, 299], 8, 1)
    padded = EncodersHost(short.config, short.files).text_feeds([0, 7, 299], 16, 1)
    whole = ingest(saved["clip"])
    found = OrtExecutor(short["text"].graph).run(feeds)["text_embeds"]
    assert np.allclose(found, OrtExecutor(whole["text"].graph).run(padded)["text_embeds"], atol=1e-5)


def host(kind: str, settings: dict[str, Any], folder: Path, **vision: int) -> EncodersHost:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(settings))
    config = {"model_type": f"{kind}_vision_model", **vision}
    return EncodersHost({"model": config, "patches": 256}, {path.name: path})


def test_images_are_what_the_processors_of_siglip_and_clip_make(tmp_path: Path) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    settings = load_preset("clip-vit-base-patch32").files["preprocessor_config.json"]
    clip = host("clip", settings, tmp_path, image_size=224)
    theirs = {
        "clip": CLIPImageProcessorPil(),
        "siglip": SiglipImageProcessorPil(size={"height": 96, "width": 96}),
        "no center": CLIPImageProcessorPil(do_center_crop=False, size={"height": 64, "width": 64}, do_normalize=False),
        "padded": CLIPImageProcessorPil(size={"shortest_edge": 33}, crop_size={"height": 48, "width": 48}),
    }
    square = {"height": 96, "width": 96}
    ours = {
        "clip": clip,
        "siglip": host("siglip", {"size": square}, tmp_path, image_size=96),
        "no center": host(
            "clip", {"do_center_crop": False, "size": {"height": 64, "width": 64}, "do_normalize": False}, tmp_path,
            image_size=64),
        "padded": host("clip", {"size": 33, "crop_size": 48}, tmp_path, image_size=48),
    }  # fmt: skip
    assert len(SIZES) >= 40
    for size in SIZES:
        image = picture(size)
        for name, processor in theirs.items():
            expected = processor(image, return_tensors="np")["pixel_values"]
            assert np.array_equal(ours[name].image_feeds(image)["pixel_values"], expected), (name, size)


def test_transparent_and_grey_images(tmp_path: Path) -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil(size={"height": 64, "width": 64}, do_convert_rgb=True)
    ours = host("siglip", {"size": {"height": 64, "width": 64}}, tmp_path, image_size=64)
    image = picture((90, 70))
    clear = image.copy()
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    for changed in (clear, image.convert("L"), clear.convert("LA"), image.convert("P")):
        expected = processor(changed, return_tensors="np")["pixel_values"]
        assert np.array_equal(ours.image_feeds(changed)["pixel_values"], expected), changed.mode


def test_images_that_keep_their_shape_are_what_the_processor_of_siglip2_makes(tmp_path: Path) -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    processor = Siglip2ImageProcessorPil(max_num_patches=256, patch_size=16)
    ours = host("siglip2", {"max_num_patches": 256, "patch_size": 16}, tmp_path)
    assert isinstance(ours.images, FlexibleSize)
    for size in SIZES:
        image = picture(size)
        expected, feeds = processor(image, return_tensors="np"), ours.image_feeds(image)
        assert ours.images.grid(size) == tuple(expected["spatial_shapes"][0]), size
        assert np.array_equal(feeds["pixel_values"], expected["pixel_values"][0]), size
        assert np.array_equal(feeds["attention_bias"][0, 0] == 0, expected["pixel_attention_mask"][0]), size


def test_resampled_positions_are_torchs() -> None:
    table = torch.randn(1, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = table[0].flatten(1).T.numpy()
    for grid in ((8, 8), (1, 20), (13, 5), (3, 3), (16, 16)):
        expected = torch.nn.functional.interpolate(table, grid, mode="bilinear", align_corners=False, antialias=True)
        assert np.allclose(linear_weights(8, grid) @ rows, expected[0].flatten(1).T.numpy(), atol=1e-5), grid


def test_an_image_of_no_use_to_the_patches() -> None:
    with pytest.raises(InputError, match="does not fit"):
        FlexibleSize(16, 4).grid((10**9, 1))


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 32, "width": 60}},
        {"size": {"longest_edge": 60}},
        {"image_mean": [0.5]},
        {"image_std": "no"},
        {"image_std": [0, 1, 1]},
        {"resample": 99},
        {"resample": "bicubic"},
        {"rescale_factor": "1/255"},
        {"size": {"height": "60", "width": 60}},
        {"size": [60, 60]},
        {"size": 1 << 40},
        {"do_center_crop": True, "crop_size": None},
    ],
)
def test_processors_that_do_not_fit(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="preprocessor_config"):
        host("siglip", settings, tmp_path, image_size=60)


def test_texts(saved: dict[str, Path]) -> None:
    for kind, tokens, place in (("clip", [0, 5, 299, 4], 2), ("clip_new_end", [0, 290, 290], 1)):
        bundle = ingest(saved[kind])
        feeds = EncodersHost(bundle.config, bundle.files).text_feeds(tokens, 16, 290)
        assert feeds["input_ids"].tolist() == [*tokens, *[290] * (16 - len(tokens))]
        assert np.flatnonzero(feeds["pooling_weights"]).tolist() == [place]
    clip = EncodersHost(bundle.config, bundle.files)
    for tokens, message in (([], "tokens"), ([1] * 17, "tokens"), ([300], "vocabulary"), ([1, 2], "no end")):
        with pytest.raises(InputError, match=message):
            clip.text_feeds(tokens, 16, 1)


@pytest.mark.parametrize(
    ("preset", "tensors", "parameters"),
    [("clip-vit-base-patch32", 398, 151_277_313), ("smolvlm-256m", 471, 256_484_928)],
)
def test_presets_have_the_published_number_of_parameters(preset: str, tensors: int, parameters: int) -> None:
    layout = layout_of(load_preset(preset).config)
    assert (len(layout), sum(int(np.prod(shape)) for shape in layout.values())) == (tensors, parameters)
