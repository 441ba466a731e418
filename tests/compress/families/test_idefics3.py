"""Idefics3 and SmolVLM: the parity gate, the cutting of images, prompts, and whole answers against transformers."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from vision_models import TILES, save_idefics3

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.chat import chain_feeds
from pocketport.compress.families.idefics3 import parity
from pocketport.compress.families.idefics3.config import Idefics3Config
from pocketport.compress.families.idefics3.graphs import position_ids
from pocketport.compress.families.idefics3.load import load_idefics3
from pocketport.compress.families.idefics3.prompt import chat_text, encode_prompt, image_text, load_tokenizer
from pocketport.compress.families.idefics3.runner import Idefics3Chat
from pocketport.compress.families.idefics3.tiles import TileSettings
from pocketport.compress.families.registry import Lengths
from pocketport.compress.families.transformers_reference import transformers_model
from pocketport.compress.ingest import ingest
from pocketport.compress.parity import check_parity
from pocketport.compress.sources.open import open_source
from pocketport.compress.synthesis.preset import load_preset
from pocketport.errors import InputError, UsageError

pytest.importorskip("transformers")

SIDES = (32, 57, 64, 100, 333, 512, 640, 1100)
SIZES = [(w, h) for w in SIDES for h in SIDES if abs(np.log(w / h)) < 2.7] + [
    (1, 1),
    (4000, 300),
    (300, 4000),
    (1921, 1081),
]
PRESETS = ("smolvlm-256m", "idefics3-8b")


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind, made once; not to be written to."""
    root = tmp_path_factory.mktemp("idefics3")
    return {kind: save_idefics3(root / kind, kind) for kind in ("idefics3", "smolvlm")}


@pytest.fixture(scope="session")
def bundle(saved: dict[str, Path]) -> ModelBundle:
    return ingest(saved["smolvlm"])


def chat_of(bundle: ModelBundle) -> Idefics3Chat:
    return Idefics3Chat({c.name: OrtExecutor(c.graph) for c in bundle}, bundle.config, bundle.files)


def picture(size: tuple[int, int]) -> Image.Image:
    """Coarse noise, so that resizing has edges to soften."""
    shape = (max(1, size[1] // 7), max(1, size[0] // 7), 3)
    return Image.fromarray(np.random.default_rng(size).integers(0, 256, shape, np.uint8)).resize(size)


def changed(folder: Path, to: Path, name: str, changes: dict[str, Any]) -> Path:
    """A copy of a checkpoint with other keys in one of its JSON files."""
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    (to / name).write_text(json.dumps({**json.loads((to / name).read_text()), **changes}))
    return to


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
def test_every_output_is_what_transformers_computes(saved: dict[str, Path], kind: str) -> None:
    bundle = ingest(saved[kind])
    report = check_parity(bundle, saved[kind])
    compared = {(figure.component, figure.tensor) for figure in report.figures}
    outputs = {(c.name, str(v.name)) for c in bundle for v in c.graph.graph.outputs if c.name != "embed"}
    assert outputs | {("vision", "pixel_values"), ("decode", "token_ids")} == compared
    assert min(figure.sqnr_db for figure in report.figures) > 90


def test_a_part_of_a_large_model_is_compared(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "SMALL", 0)
    monkeypatch.setattr(parity, "WORDS", 128)
    report = check_parity(ingest(saved["idefics3"]), saved["idefics3"])
    assert {figure.component for figure in report.figures} == {"vision", "connector", "prefill", "decode"}


def test_a_tower_with_more_positions_than_a_tile_has_patches(saved: dict[str, Path], tmp_path: Path) -> None:
    """Then not every row of the table is used; which, depends on the rounding of fractions."""
    image = {"size": {"longest_edge": 84}, "max_image_size": {"longest_edge": 28}}
    folder = changed(saved["idefics3"], tmp_path, "preprocessor_config.json", image)
    bundle = ingest(folder)
    assert list(bundle["connector"].graph.graph.outputs[0].shape or ()) == [1, 64]
    check_parity(bundle, folder)


def test_positions_are_transformers_for_every_side() -> None:
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionConfig, Idefics3VisionEmbeddings

    for side, buckets in ((27, 27), (19, 19), (25, 25), (26, 32), (5, 70), (41, 41)):
        config = Idefics3VisionConfig(hidden_size=1, image_size=buckets, patch_size=1, num_attention_heads=1)
        embeddings = Idefics3VisionEmbeddings(config)
        with torch.no_grad():
            embeddings.patch_embedding.weight.zero_()
            embeddings.patch_embedding.bias.zero_()
            embeddings.position_embedding.weight[:, 0] = torch.arange(float(buckets**2))
            mask = torch.ones(1, side, side, dtype=torch.bool)
            expected = embeddings(torch.zeros(1, 3, side, side), mask)[0, :, 0].long().numpy()
        assert np.array_equal(position_ids(side, buckets), expected), (side, buckets)


def test_tiles_are_what_the_processor_makes() -> None:
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    tiles = TileSettings.from_hf(TILES)
    processor = SmolVLMImageProcessorPil(**TILES)
    assert len(SIZES) >= 40
    for size in SIZES:
        image = picture(size)
        cut, grid = tiles.cut(image)
        expected = processor.preprocess([[image]], return_row_col_info=True, return_tensors="np")
        assert grid == (expected["rows"][0][0], expected["cols"][0][0]), size
        assert np.array_equal(np.concatenate([tiles.pixels(t) for t in cut]), expected["pixel_values"][0]), size
        assert expected["pixel_attention_mask"].all(), "tiles are full: the graphs mask nothing"


@pytest.mark.parametrize("preset", PRESETS)
def test_grids_of_published_sizes(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes alone, over every step of the processor: pixels of 2048×2048 would take minutes."""
    from transformers.image_processing_backends import PilBackend
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    settings = load_preset(preset).files["preprocessor_config.json"]
    steps: list[tuple[int, int]] = []

    def resized(self: Any, image: Any, size: Any, **kwargs: Any) -> Any:
        steps.append((size.height, size.width))
        return np.zeros((3, size.height, size.width), np.uint8)

    monkeypatch.setattr(PilBackend, "resize", resized)
    processor = Idefics3ImageProcessorPil(
        size=settings["size"],
        max_image_size=settings["max_image_size"],
        do_rescale=False,
        do_normalize=False,
        do_pad=False,
    )
    tiles = TileSettings.from_hf(settings)
    for width, height in SIZES:
        steps.clear()
        found = processor.preprocess([[np.zeros((3, height, width), np.uint8)]], return_row_col_info=True)
        scaled, whole = tiles.stretched((height, width))
        assert [scaled, whole] == steps[:2], (width, height)
        assert (whole[0] // tiles.tile, whole[1] // tiles.tile) == (found["rows"][0][0], found["cols"][0][0])
        assert max(whole[0] // tiles.tile, whole[1] // tiles.tile) <= tiles.widest[0]


def test_pixels_of_a_published_size() -> None:
    settings = load_preset("smolvlm-256m").files["preprocessor_config.json"]
    tiles = TileSettings.from_hf(settings)
    cut, grid = tiles.cut(picture((700, 90)))
    pixels, expected = parity.processed(picture((700, 90)), settings)
    assert grid == expected == (1, 4)
    assert np.array_equal(np.concatenate([tiles.pixels(tile) for tile in cut]), pixels)


@pytest.mark.parametrize("split", [True, False])
def test_prompts_are_what_the_processor_makes(saved: dict[str, Path], split: bool) -> None:
    from transformers import PreTrainedTokenizerFast
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

    config = Idefics3Config.from_hf(json.loads((saved["idefics3"] / "config.json").read_text()))
    tokenizer = load_tokenizer(saved["idefics3"] / "tokenizer.json", config)
    settings = {**TILES, "do_image_splitting": split}
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(saved["idefics3"] / "tokenizer.json"))
    processor = Idefics3Processor(Idefics3ImageProcessorPil(**settings), theirs, image_seq_len=4)
    grids = set()
    for size in SIZES[::3]:
        image = picture(size)
        _, grid = TileSettings.from_hf(settings).cut(image)
        ids, spans = encode_prompt(tokenizer, config, "What is it?", grid, 4)
        text = chat_text("<|im_start|>", "What is it?", "<image>")
        found = processor(text=text, images=[image], add_special_tokens=False)["input_ids"][0]
        assert ids == found, size
        assert [i for first, last in spans for i in range(first, last)] == [i for i, t in enumerate(found) if t == 302]
        grids.add(grid)
    assert len(grids) > 3 if split else grids == {(0, 0)}


def test_the_chat_template_is_the_published_one() -> None:
    from jinja2 import Template
    from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE, get_image_prompt_string

    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = Template(DEFAULT_CHAT_TEMPLATE).render(
        messages=[{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert chat_text("<|im_start|>", "What is it?", "<image>") == text
    for grid in ((0, 0), (1, 2), (4, 3)):
        expected = get_image_prompt_string(*grid, 64, "<fake_token_around_image>", "<image>", "<global-img>")
        assert image_text(grid, 64) == expected


@pytest.mark.parametrize("size", [(90, 60), (40, 400)])
def test_it_reads_what_transformers_generates(
    saved: dict[str, Path], bundle: ModelBundle, size: tuple[int, int]
) -> None:
    chat = chat_of(bundle)
    found = chat.read(picture(size), "What is it?", 6)
    model: Any = transformers_model(open_source(saved["smolvlm"]), "AutoModelForImageTextToText")
    tiles, grid = chat.tiles.cut(picture(size))
    ids, _ = encode_prompt(chat.tokenizer, chat.config, "What is it?", grid, 4)
    pixels = torch.from_numpy(np.concatenate([chat.tiles.pixels(tile) for tile in tiles]))[None]
    expected = model.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), pixel_values=pixels,
        max_new_tokens=6, do_sample=False, eos_token_id=303, pad_token_id=2,
    )  # fmt: skip
    assert found.token_ids == expected[0, len(ids) :].tolist()
    assert (found.views, found.prompt_tokens) == (len(tiles), len(ids))
    assert set(found.seconds) == {"vision", "connector", "embed", "prefill", "decode", "host"}


def test_chain_feeds_fit_every_graph(bundle: ModelBundle) -> None:
    chat = chat_of(bundle)
    samples = [(picture((90, 60)), "What?", "abcd"), (picture((60, 60)), "What?", None)]
    found = list(chain_feeds(chat, samples, decode_steps=2))
    counts = Counter(component for component, _ in found)
    assert counts["prefill"] == 2 and counts["vision"] == counts["connector"] == 7 + 10
    for component, feeds in found:
        executor = chat.executors[component]
        assert isinstance(executor, OrtExecutor)
        assert {name: array.shape for name, array in feeds.items()} == executor.inputs


def test_a_shorter_prompt_makes_images_smaller(saved: dict[str, Path]) -> None:
    source = open_source(saved["idefics3"])
    whole = load_idefics3(source, "whole", Lengths())
    assert whole.config["image"]["size"] == TILES["size"]
    shorter = load_idefics3(source, "shorter", Lengths(prompt=128))
    assert shorter.config["image"]["size"] == {"longest_edge": 112} and shorter.config["image"]["do_image_splitting"]
    least = load_idefics3(source, "least", Lengths(prompt=104))
    assert not least.config["image"]["do_image_splitting"]
    assert chat_of(least).read(picture((400, 300)), "W" * 50, 1).views == 1
    for lengths in (Lengths(prompt=64), Lengths(prompt=600, cache=500), Lengths(patches=16), Lengths(cache=5000)):
        with pytest.raises(UsageError):
            load_idefics3(source, "none", lengths)


def test_questions_that_do_not_fit(bundle: ModelBundle) -> None:
    chat = chat_of(bundle)
    with pytest.raises(InputError, match="stands for an image"):
        chat.read(picture((90, 60)), "Is <image> it?")
    with pytest.raises(InputError, match="prompt"):
        chat.read(picture((90, 60)), "What? " * 60)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("config.json", {"vision_config": None}, "vision_config"),
        ("config.json", {"scale_factor": 3}, "does not divide"),
        ("config.json", {"scale_factor": 0}, "no such number"),
        ("config.json", {"image_token_id": 301}, "config.json says"),
        ("preprocessor_config.json", {"size": {"height": 3, "width": 4}, "do_resize": False}, "must be scaled"),
        ("preprocessor_config.json", {"max_image_size": {"longest_edge": "56"}}, "must be scaled"),
        ("preprocessor_config.json", {"max_image_size": {"longest_edge": 10}}, "patches a side"),
        ("preprocessor_config.json", {"max_image_size": 56}, "must be scaled"),
        ("preprocessor_config.json", {"size": {"longest_edge": 1 << 40}}, "must be scaled"),
        ("preprocessor_config.json", {"resample": 99}, "filter"),
    ],
)
def test_files_that_do_not_fit(
    saved: dict[str, Path], tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ingest(changed(saved["idefics3"], tmp_path, name, changes))


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_files_that_are_missing(saved: dict[str, Path], tmp_path: Path, name: str) -> None:
    changed(saved["idefics3"], tmp_path, "config.json", {})
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"no {name}"):
        ingest(tmp_path)
