"""What the host does for the Qwen-VL series, against transformers' own processors and models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_models import MODELS, save_qwen_vl

from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.chat import chain_feeds
from pocketport.compress.families.qwen_vl.config import QwenVLConfig
from pocketport.compress.families.qwen_vl.images import ImageSettings, resized, to_patches
from pocketport.compress.families.qwen_vl.load import fitted, load_qwen_vl
from pocketport.compress.families.qwen_vl.positions import (
    patch_places,
    patch_windows,
    token_positions,
    vision_positions,
)
from pocketport.compress.families.qwen_vl.prompt import chat_text, encode_prompt, load_tokenizer
from pocketport.compress.families.qwen_vl.runner import QwenVLChat, meaningful_rows
from pocketport.compress.families.registry import Lengths
from pocketport.compress.families.transformers_reference import transformers_model
from pocketport.compress.sources.open import open_source
from pocketport.errors import InputError

transformers = pytest.importorskip("transformers")

SIZES = [
    (32, 32), (33, 47), (40, 32), (56, 56), (57, 55), (64, 48), (70, 70), (100, 33), (112, 112), (128, 64), (150, 224),
    (200, 200), (224, 224), (225, 223), (256, 448), (300, 32), (320, 240), (333, 777), (336, 336), (400, 1000), (448, 448),
    (449, 447), (512, 384), (600, 90), (640, 480), (700, 700), (720, 1280), (800, 600), (900, 47), (980, 980), (1000, 1000),
    (1024, 768), (1080, 1920), (1200, 60), (1280, 720), (1344, 448), (1500, 1001), (1920, 1080), (2000, 333), (2048, 64),
    (2500, 1400), (3000, 200), (300, 4000), (4000, 300),
]  # fmt: skip
AS_PUBLISHED = {(32, 32), (57, 55), (300, 32), (333, 777), (2048, 64), (1024, 768), (4000, 300)}
PATCHES = 512
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind, made once; not to be written to."""
    root = tmp_path_factory.mktemp("qwen_vl")
    return {kind: save_qwen_vl(root / kind, kind) for kind in MODELS}


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, ImageSettings], Any]:
    """transformers' processor of a checkpoint, over its PIL image processor; videos need torchvision and are left out."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.processing_utils import ProcessorMixin

    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda self, name, argument: None)
    names = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}

    def make(folder: Path, settings: ImageSettings) -> Any:
        own = {**json.loads((folder / "preprocessor_config.json").read_text())}
        own = {key: value for key, value in own.items() if key not in ("size", "min_pixels", "max_pixels")}
        size = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
        images = Qwen2VLImageProcessorPil.from_dict({**own, "size": size})
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        return getattr(transformers, names[folder.name])(
            image_processor=images, tokenizer=tokenizer, video_processor=None
        )

    return make


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-size[1] // 8), -(-size[0] // 8), 3), np.uint8)
    return Image.fromarray(coarse).resize(size)


def settings_of(folder: Path) -> ImageSettings:
    return ImageSettings.from_hf(
        json.loads((folder / "preprocessor_config.json").read_text()), "preprocessor_config.json"
    )


@pytest.mark.parametrize("kind", list(MODELS))
def test_every_size_is_processed_as_transformers_does(
    saved: dict[str, Path], processor: Callable[[Path, ImageSettings], Any], kind: str
) -> None:
    """Pixels (equal to the last bit), grids, token ids, and positions of patches and tokens.

    With at most `PATCHES` for all sizes, and as the processor is published for some.
    """
    from transformers import vision_utils

    folder = saved[kind]
    source = open_source(folder)
    config, tokenizer = (
        QwenVLConfig.from_hf(source.config),
        load_tokenizer(folder / "tokenizer.json", QwenVLConfig.from_hf(source.config)),
    )
    with torch.device("meta"):
        settings = transformers.AutoConfig.for_model(**json.loads(json.dumps(dict(source.config))))
        model = transformers.AutoModelForImageTextToText.from_config(settings).model
    merge, side = config.vision.merge, config.vision.table_side
    published = settings_of(folder)
    limited = fitted(published, PATCHES)
    processors = [(own, processor(folder, own)) for own in (published, limited)]
    for size in SIZES:
        image = picture(size)
        for own, theirs in processors[0 if size in AS_PUBLISHED else 1 :]:
            patches, grid = to_patches(image, own)
            question = f"What is on {size}?"
            tokens, first = encode_prompt(tokenizer, config, question, len(patches) // merge**2)
            expected = theirs(text=[chat_text(kind, question, 1)], images=[image], return_tensors="np")
            assert expected["image_grid_thw"].tolist() == [[1, *grid]], size
            assert grid == tuple(n // own.patch_size for n in resized(size, own)[::-1])
            np.testing.assert_array_equal(patches, expected["pixel_values"])
            assert tokens == expected["input_ids"][0].tolist()
            grids = torch.tensor([[1, *grid]])
            kinds = torch.from_numpy(expected["mm_token_type_ids"]).int()
            positions, _ = model.get_rope_index(torch.tensor([tokens]), kinds, image_grid_thw=grids)
            found = token_positions(len(tokens), [(first, (grid[0] // merge, grid[1] // merge))])
            np.testing.assert_array_equal(found, positions[:, 0].numpy())
            np.testing.assert_array_equal(
                np.stack(patch_places(grid, merge), 1), vision_utils.get_vision_position_ids(grids, merge).numpy()
            )
            if kind == "qwen2_5_vl":
                order, bounds = vision_utils.get_vision_window_index(grids, merge, 112, 14)
                ours = patch_windows(grid, config.vision)
                by_token = ours[:: merge**2]
                np.testing.assert_array_equal(np.argsort(by_token, kind="stable"), order.numpy())
                np.testing.assert_array_equal(np.unique(ours, return_counts=True)[1], np.diff(bounds.numpy()))
            if kind == "qwen3_vl" and own is limited:
                indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
                    grids, side, mode="bilinear", align_corners=True, spatial_merge_size=merge
                )
                dense = np.zeros((len(patches), side**2), np.float32)
                np.add.at(dense, (np.arange(len(patches))[:, None], indices.numpy()), weights.numpy())
                table = vision_positions(grid, config.vision, PATCHES)["position_weights"]
                np.testing.assert_allclose(table[: len(patches)], dense, atol=1e-6)
                assert not table[len(patches) :].any()


def test_positions_of_several_images() -> None:
    config, _ = MODELS["qwen2_5_vl"]
    with torch.device("meta"):
        settings = transformers.AutoConfig.for_model(**json.loads(json.dumps(config)))
        model = transformers.AutoModelForImageTextToText.from_config(settings).model
    images = [(3, (4, 6)), (29, (2, 2)), (34, (5, 1))]
    kinds = torch.zeros(1, 45, dtype=torch.int)
    for first, (rows, columns) in images:
        kinds[0, first : first + rows * columns] = 1
    grids = torch.tensor([[1, 2 * rows, 2 * columns] for _, (rows, columns) in images])
    expected, _ = model.get_rope_index(torch.zeros(1, 45, dtype=torch.long), kinds, image_grid_thw=grids)
    np.testing.assert_array_equal(token_positions(45, images), expected[:, 0].numpy())
    np.testing.assert_array_equal(token_positions(4, []), np.tile(np.arange(4), (3, 1)))


def test_the_chat_template() -> None:
    turn = "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>Hi<|im_end|>\n<|im_start|>assistant\n"
    assert chat_text("qwen3_vl", "Hi", 2) == turn
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert chat_text("qwen2_vl", "Hi", 2) == chat_text("qwen2_5_vl", "Hi", 2) == system + turn


def chat_of(folder: Path, lengths: Lengths) -> QwenVLChat:
    bundle = load_qwen_vl(open_source(folder), "tiny", lengths)
    return QwenVLChat({c.name: OrtExecutor(c.graph) for c in bundle}, bundle.config, bundle.files)


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("size", [(300, 130), (60, 64)])
def test_the_chat_says_what_transformers_says(
    saved: dict[str, Path], processor: Callable[[Path, ImageSettings], Any], kind: str, size: tuple[int, int]
) -> None:
    chat = chat_of(saved[kind], Lengths(patches=256, prompt=160, cache=160 + NEW_TOKENS))
    image = picture(size)
    inputs = processor(saved[kind], chat.image)(text=[chat_text(kind, "What?", 1)], images=[image], return_tensors="pt")
    model: Any = transformers_model(open_source(saved[kind]), "AutoModelForImageTextToText")
    with torch.inference_mode():
        expected = model.generate(
            **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0
        )
    chat.stops = []
    answer = chat.read(image, "What?", NEW_TOKENS)
    length = inputs["input_ids"].shape[1]
    assert answer.token_ids == expected[0, length:].tolist()
    assert answer.prompt_tokens == length


def test_chain_feeds_fit_every_graph(saved: dict[str, Path]) -> None:
    chat = chat_of(saved["qwen3_vl"], Lengths(patches=128, prompt=96, cache=100))
    feeds = list(chain_feeds(chat, [(picture((90, 60)), "What?", "abc")], decode_steps=2))
    assert [component for component, _ in feeds].count("decode") == 2
    for component, given in feeds:
        executor = chat.executors[component]
        assert isinstance(executor, OrtExecutor)
        assert {name: array.shape for name, array in given.items()} == executor.inputs
    vision, prefill = (next(f for c, f in feeds if c == name) for name in ("vision", "prefill"))
    patches = 2 * 3 * 4  # 96×64 pixels
    assert meaningful_rows("vision", vision, ["vision_features", "deepstack_features_0"]) == {
        name: (0, 0, patches) for name in ("vision_features", "deepstack_features_0")
    }
    filled = prefill["deepstack_embeds_1"].any(1)
    assert filled.sum() == patches // 4 and not filled[: 96 - 40].any()


def test_limits(saved: dict[str, Path]) -> None:
    chat = chat_of(saved["qwen2_vl"], Lengths(patches=64, prompt=96, cache=100))
    with pytest.raises(InputError, match="aspect ratio"):
        chat.read(picture((2010, 10)), "What?")
    with pytest.raises(InputError, match="exceeds the 64"):
        chat.read(picture((1900, 10)), "What?")
    with pytest.raises(InputError, match="prompt"):
        chat.read(picture((60, 60)), "What? " * 60)
    with pytest.raises(InputError, match="image_pad"):
        chat.read(picture((60, 60)), "Is <|image_pad|> a token?")


def test_what_the_files_must_say(saved: dict[str, Path], tmp_path: Path) -> None:
    config = QwenVLConfig.from_hf(MODELS["qwen2_vl"][0])
    wrong = tmp_path / "tokenizer.json"
    wrong.write_text((saved["qwen2_vl"] / "tokenizer.json").read_text().replace("<|image_pad|>", "<|picture|>"))
    with pytest.raises(InputError, match=r"its <\|image_pad\|> is None, config.json says 505"):
        load_tokenizer(wrong, config)
    wrong.write_text("{")
    with pytest.raises(InputError, match="not a tokenizer"):
        load_tokenizer(wrong, config)
    for change in (
        {"do_resize": False},
        {"resample": 2},
        {"image_mean": [0.5]},
        {"max_pixels": -1},
        {"size": {"longest_edge": "x"}},
    ):
        with pytest.raises(InputError, match=r"preprocessor_config\.json"):
            ImageSettings.from_hf({**MODELS["qwen2_vl"][1], "max_pixels": None, **change}, "preprocessor_config.json")
