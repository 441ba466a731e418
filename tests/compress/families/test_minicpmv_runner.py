import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minicpmv_series import SERIES, original_answer
from PIL import Image

from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.chat import chain_feeds
from pocketport.compress.families.decoder.host import MASKED
from pocketport.compress.families.minicpmv.runner import MultimodalRunner
from pocketport.compress.ingest import ingest
from pocketport.errors import InputError, UsageError

SMALL, LARGE = (90, 60), (260, 150)
WIDEST, TALLEST = (4000, 300), (300, 4000)


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 10, size[0] // 10, 3), np.uint8)
    return Image.fromarray(pixels).resize(size)


@pytest.fixture
def runner(tiny_minicpmv: Path) -> MultimodalRunner:
    return runner_of(tiny_minicpmv)


def runner_of(folder: Path) -> MultimodalRunner:
    bundle = ingest(folder)
    return MultimodalRunner({c.name: OrtExecutor(c.graph) for c in bundle}, bundle.config, bundle.files)


@pytest.mark.parametrize("version", SERIES)
def test_it_reads_what_the_original_reads(series: dict[str, Path], version: str) -> None:
    runner = runner_of(series[version])
    for size in (SMALL, LARGE, WIDEST, TALLEST):
        expected, views = original_answer(series[version], picture(size), "What?", 6)
        generation = runner.read(picture(size), "What?")
        assert generation.token_ids == expected, size
        assert generation.views == views
        assert (views > 1) == (size != SMALL and version != "1.0"), "small images have one view, those of 1.0 too"


@pytest.mark.parametrize("version", ["2.5", "2.6"])
def test_an_image_that_fits_no_slice_is_refused_with_its_size(series: dict[str, Path], version: str) -> None:
    with pytest.raises(InputError, match=r"39×2 patches exceeds .* aspect ratio"):
        runner_of(series[version]).read(Image.new("RGB", (520, 20)), "What?")


@pytest.mark.parametrize("version", ["2.6", "4.0", "4.5"])
def test_images_are_taken_whole_without_slice_mode(series: dict[str, Path], tmp_path: Path, version: str) -> None:
    folder = Path(shutil.copytree(series[version], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "slice_mode": False}))
    runner = runner_of(folder)
    image = picture((103, 75))
    expected, views = original_answer(folder, image, "What?", 6)
    generation = runner.read(image, "What?")
    assert (generation.token_ids, generation.views) == (expected, 1) and views == 1
    with pytest.raises(InputError, match="patches"):
        runner.read(picture((300, 200)), "What?")


def test_the_seconds_add_up(runner: MultimodalRunner) -> None:
    generation = runner.read(picture(LARGE), "What?")
    assert set(generation.seconds) == {"vision", "connector", "embed", "prefill", "decode", "host"}
    assert min(generation.seconds.values()) > 0
    assert generation.first_token_seconds < sum(generation.seconds.values())
    assert generation.prompt_tokens > generation.views * 8


def test_limits(runner: MultimodalRunner) -> None:
    assert runner.max_new_tokens == 7
    assert len(runner.read(picture(SMALL), "What?", 1).token_ids) == 1
    assert len(runner.force_tokens(picture(SMALL), "What?", [5] * 7).token_ids) == 7, "the last column is used"
    for limit in (0, 8):
        with pytest.raises(UsageError, match="do not fit"):
            runner.read(picture(SMALL), "What?", limit)
    with pytest.raises(InputError, match="prompt"):
        runner.read(picture(SMALL), "What? " * 60)


def test_forcing_the_models_own_answer_changes_nothing(runner: MultimodalRunner) -> None:
    free = runner.read(picture(SMALL), "What?")
    forced = runner.force_tokens(picture(SMALL), "What?", free.token_ids)
    assert forced.token_ids == free.token_ids


def test_chain_feeds_fit_every_graph(runner: MultimodalRunner) -> None:
    samples = [(picture(LARGE), "What?", "abcd"), (picture(SMALL), "What?", None)]
    found: list[tuple[str, dict[str, Any]]] = list(chain_feeds(runner, samples, decode_steps=2))
    counts = Counter(component for component, _ in found)
    assert counts["prefill"] == 2 and counts["decode"] == 4 and counts["embed"] == 6
    assert counts["vision"] == counts["connector"] > 2
    for component, feeds in found:
        executor = runner.executors[component]
        assert isinstance(executor, OrtExecutor)
        assert {name: array.shape for name, array in feeds.items()} == executor.inputs
        executor.run(feeds)
    first, last = (feeds for component, feeds in found[:-4] if component == "decode")
    filled = [int((feeds["attention_bias"] > MASKED).sum()) for feeds in (first, last)]
    assert filled[1] - filled[0] == 3, "the first and the last step of a four-character answer"
    held = [int(np.any(feeds["past_value_1"] != 0, axis=(0, 1, 3)).sum()) for feeds in (first, last)]
    assert held == [count - 1 for count in filled], "every column but the token's own is in the cache"
