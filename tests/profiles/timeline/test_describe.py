"""Images and descriptions, against the families' own prompts and graphs."""

import pytest

from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.prompt import image_placeholder
from pocketport.compress.families.minicpmv.slicing import plan_slices
from pocketport.compress.families.minicpmv.versions import version_of
from pocketport.compress.synthesis.preset import load_preset
from pocketport.errors import UsageError
from pocketport.profiles.timeline.describe import describe, plan_image

MARKERS = ("<unk>", "<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>", "\n")


def counted(text: str) -> int:
    """Tokens of a placeholder: each marker is one, and so is the image's number."""
    markers = sum(text.count(marker) for marker in MARKERS)
    for marker in MARKERS:
        text = text.replace(marker, "")
    return markers + len(text)


@pytest.mark.parametrize("name", ["minicpm-v-2.0", "minicpm-llama3-v-2.5", "minicpm-v-2.6", "minicpm-v-4.5"])
@pytest.mark.parametrize("size", [(448, 448), (1344, 1344), (1024, 768), (2000, 400), (300, 1900)])
def test_slices_and_tokens_are_the_prompts_own(name: str, size: tuple[int, int]) -> None:
    config = MiniCPMVConfig.model_validate(load_preset(name).config)
    grid = plan_slices(size, config.slice_config).grid if config.slice_mode else None
    number = 0 if config.use_image_id else None
    text = image_placeholder(config.query_num, grid, template=version_of(config).template, image_id=number)
    plan = plan_image(name, size)
    assert plan.tokens == counted(text)
    assert plan.tokens >= plan.views * config.query_num
    assert plan.views == (1 if grid is None else 1 + grid[0] * grid[1])


def test_the_papers_image_is_ten_views() -> None:
    plan = plan_image("minicpm-llama3-v-2.5", (1344, 1344))
    assert (plan.views, plan.patches) == (10, 1024), "arXiv 2408.01800: 1.8 million pixels, an overview and 9 slices"
    assert 960 <= plan.tokens <= 990
    fewer = plan.with_views(5)
    assert (fewer.views, fewer.tokens) == (5, plan.tokens // 2)


def test_what_is_no_model_is_told() -> None:
    with pytest.raises(UsageError, match=r"minicpm-llama3-v-2\.5"):
        describe("minicpm-llama3-v-2.4")
