"""What an image and a question become in MiniCPM-V 4.6 and 4.7, against transformers' processors."""

import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from minicpmv46_models import NAMES, TEMPLATE, save_minicpmv46
from PIL import Image

from pocketport.compress.families.minicpmv.slicing import plan_slices, position_ids
from pocketport.compress.families.minicpmv4_6.canvas import _spread
from pocketport.compress.families.minicpmv4_6.config import MiniCPMV46Config, ProcessorConfig
from pocketport.compress.families.minicpmv4_6.load import load_minicpmv46
from pocketport.compress.families.minicpmv4_6.parity import in_rows, processed
from pocketport.compress.families.minicpmv4_6.runner import MergerChat, image_prompt
from pocketport.compress.families.minicpmv4_6.views import View, patch_order, slicing_of, views_of
from pocketport.compress.families.registry import Lengths
from pocketport.compress.sources.open import open_source

transformers = pytest.importorskip("transformers")

SIZES = [
    (32, 32), (33, 31), (64, 48), (1, 1), (448, 448), (449, 447), (450, 450), (447, 447), (100, 1000), (1000, 100), (640, 480),
    (480, 640), (224, 224), (336, 672), (672, 336), (800, 600), (600, 800), (1024, 768), (768, 1024), (896, 896), (897, 895),
    (1280, 720), (720, 1280), (1344, 1344), (1345, 1343), (1920, 1080), (1080, 1920), (2000, 500), (500, 2000), (300, 4000),
    (4000, 300), (3000, 400), (512, 512), (513, 1025), (56, 3000), (1500, 1500), (1366, 768), (375, 812), (997, 431), (127, 997),
    (2560, 1440), (250, 250), (28, 56), (777, 333),
]  # fmt: skip
PUBLISHED_VISION = {
    "image_size": 980,
    "patch_size": 14,
    "hidden_size": 1152,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
}


def config_of(mode: str = "16x") -> MiniCPMV46Config:
    return MiniCPMV46Config.model_validate(
        {
            "model_type": "minicpmv4_6",
            "vision_config": PUBLISHED_VISION,
            "text_config": {},
            "image_token_id": 9,
            "downsample_mode": mode,
        }
    )


@cache
def picture(size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(size[0] * 5000 + size[1])
    small = rng.integers(0, 256, (max(size[1] // 9, 1), max(size[0] // 9, 1), 3), np.uint8)
    return Image.fromarray(small).resize(size)


@pytest.mark.parametrize("mode", ["16x", "4x"])
def test_pixels_sizes_and_positions(mode: str) -> None:
    from transformers.vision_utils import get_vision_nearest_position_ids

    config, processor = config_of(mode), ProcessorConfig(downsample_mode=mode)  # type: ignore[arg-type]
    assert len(SIZES) >= 40
    for size in SIZES if mode == "16x" else SIZES[::6]:
        image = picture(size)
        views, grid = views_of(image, config, processor)
        expected = processed(image, config, processor)
        assert [list(view.target) for view in views] == expected["target_sizes"].tolist(), size
        assert list(grid or (0, 0))[::-1] == expected["grids"][0], size
        rows = [in_rows(view, config.mergers) for view in views]
        np.testing.assert_array_equal(np.concatenate([strip for strip, _ in rows], axis=2), expected["pixel_values"][0])
        ids = get_vision_nearest_position_ids(torch.from_numpy(expected["target_sizes"]), 70).numpy()
        found = np.concatenate([ids for _, ids in rows])
        clear = np.concatenate([unambiguous(view, 70) for view in views])
        np.testing.assert_array_equal(found[clear], ids[clear])
        # on a boundary float32 decides in torch, here exact arithmetic: by one cell in each direction at most
        assert np.abs(found // 70 - ids // 70).max() <= 1 and np.abs(found % 70 - ids % 70).max() <= 1


def unambiguous(view: View, buckets: int) -> Any:
    """The patches whose coordinates lie on no cell's boundary, apart from the first one."""
    axes = [(np.arange(count) * buckets % count != 0) | (np.arange(count) == 0) for count in view.target]
    return (axes[0][:, None] & axes[1]).ravel()


def test_slicing_for_any_size_and_limit() -> None:
    """The grid's rule is told apart from that of earlier versions by ties only."""
    processor = transformers.MiniCPMV4_6ImageProcessorPil()
    rng = np.random.default_rng(0)
    for limit in (1, 2, 4, 9, 12, 36):
        slicing = slicing_of(config_of(), ProcessorConfig(max_slice_nums=limit))
        squares = [(k * 100, k * 50) for k in range(1, 60)]
        for size in [*rng.integers(20, 4000, (400, 2)).tolist(), *squares, *[(b, a) for a, b in squares]]:
            plan = plan_slices((size[0], size[1]), slicing)
            grid = processor.get_sliced_grid((size[1], size[0]), limit, 448)
            assert (None if grid is None else tuple(grid[::-1])) == plan.grid, (limit, size)
            best = processor.find_best_resize((size[1], size[0]), 448, 14, "16x", allow_upscale=grid is None)
            assert best == plan.overview[::-1]


def test_patches_of_a_token_lie_side_by_side() -> None:
    assert patch_order((4, 4), 2).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert patch_order((2, 4), 1).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    order = patch_order((8, 12), 2).reshape(-1, 16)
    assert {tuple(np.unique(token // 12 // 4)) + tuple(np.unique(token % 12 // 4)) for token in order} == {
        (row, column) for row in range(2) for column in range(3)
    }


def test_position_ids_follow_the_patches() -> None:
    view = views_of(picture((640, 480)), config_of(), ProcessorConfig())[0][0]
    assert (view.position_ids == position_ids(view.target, 70)[patch_order(view.target, 2)]).all()
    assert view.tokens * 16 == len(view.position_ids)


def processor_of(folder: Path, version: str) -> Any:
    """The published processor; its part for videos needs torchvision and is left out."""
    kind = getattr(transformers, f"MiniCPMV{version.replace('.', '_')}Processor")

    class WithoutVideos(kind):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
            return type(argument)

    images = transformers.MiniCPMV4_6ImageProcessorPil(max_slice_nums=4, scale_resolution=112)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=NAMES,
    )
    videos = SimpleNamespace(slice_mode=True, downsample_mode="16x")
    return WithoutVideos(images, videos, tokenizer, chat_template=TEMPLATE)


@pytest.mark.parametrize("version", ["4.6", "4.7"])
def test_prompts(tmp_path: Path, version: str) -> None:
    """Chat template, image number, placeholders, special tokens; in 4.7 also the positions on the canvas."""
    source = open_source(save_minicpmv46(tmp_path, version))
    bundle = load_minicpmv46(source, "tiny", Lengths(prompt=512, cache=520))
    chat = MergerChat({}, bundle.config, bundle.files)
    theirs = processor_of(tmp_path, version)
    model = transformers.AutoModelForImageTextToText.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    for size in SIZES if version == "4.7" else SIZES[::5]:
        question = f"What is {size[0]} × {size[1]}?\n\nUnd\tauf Deutsch: \N{SNOWMAN}"
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = theirs.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        expected = theirs(images=[picture(size)], text=[text])
        views, grid = views_of(picture(size), chat.config, chat.processor)
        prompt = chat.encode_text(views, grid, question)
        assert prompt.input_ids == expected["input_ids"][0].tolist(), size
        counts = [last - first for first, last in prompt.spans]
        assert (
            counts
            == [view.tokens for view in views]
            == [math.prod(size) // 16 for size in expected["target_sizes"].tolist()]
        )
        found = image_prompt(prompt, views, grid, [], chat.config).positions
        if version == "4.6":
            assert found is None
            continue
        keys = ("input_ids", "mm_token_type_ids", "target_sizes")
        positions, deltas = model.model.get_rope_index(**{key: expected[key] for key in keys})
        np.testing.assert_array_equal(found, positions[:, 0].numpy(), str(size))
        assert found is not None and found.max() + 1 - found.shape[1] == int(deltas)


def test_overviews_are_spread_as_by_torch() -> None:
    for length in range(1, 40):
        for count in range(1, 20):
            expected = torch.linspace(0, length - 1, count).round().long().numpy()
            np.testing.assert_array_equal(_spread(count, length), expected, f"{count} over {length}")
