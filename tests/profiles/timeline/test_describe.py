"""Images and descriptions, against the families' own prompts and graphs."""

import pytest

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.prompt import image_placeholder
from pocketport.compress.families.minicpmv.slicing import plan_slices
from pocketport.compress.families.minicpmv.versions import version_of
from pocketport.compress.families.registry import Lengths, family_of
from pocketport.compress.sources.source import Source
from pocketport.compress.synthesis.preset import load_preset, scaled
from pocketport.compress.synthesis.shapes import shape_source
from pocketport.errors import UsageError
from pocketport.profiles.timeline.describe import (
    describe,
    describe_bundle,
    plan_by_shapes,
    plan_image,
    plan_minicpmv,
)

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


@pytest.fixture(scope="module", params=["minicpm-v-2.6", "qwen2.5-vl-3b"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelBundle, Source]:
    """A preset of a twentieth of the widths and one layer, as shapes alone."""
    preset = scaled(load_preset(request.param), 0.05, 1)
    source = shape_source(preset, tmp_path_factory.mktemp(request.param))
    return family_of(source).load(source, request.param, Lengths()), source


def test_a_bundles_description_counts_every_weight_once(small: tuple[ModelBundle, Source]) -> None:
    bundle, source = small
    language = describe_bundle(bundle, source).parts["language"]
    assert language.shape is not None
    seen = ("vpm.", "resampler.", "visual.", "model.visual.")
    published = sum(t.size for name, t in source.tensors.items() if not name.startswith(seen))
    tied = not any("lm_head" in name for name in source.tensors)
    head = language.shape["hidden"] * language.shape["vocabulary"]
    counted = language.linear.elements + language.table.elements + language.other
    assert counted == published or (tied and counted == published + head), "the head may be the table"
    assert language.row_macs == pytest.approx(language.linear.elements - head, rel=1e-3), (
        "once a token, but for the head"
    )
    assert language.last_macs == pytest.approx(head, rel=1e-3)
    assert language.cache_elements == 2 * language.shape["kv_heads"] * language.shape["head_size"]


def test_images_by_shapes_are_those_of_the_configuration(small: tuple[ModelBundle, Source]) -> None:
    bundle, _ = small
    plan = plan_by_shapes(bundle, (448, 448))
    if bundle.family == "minicpmv":
        config = MiniCPMVConfig.model_validate(bundle.config["model"])
        marker = 3 if config.use_image_id else 0  # the image's number stands before the first view
        assert plan.model_copy(update={"tokens": plan.tokens + marker}) == plan_minicpmv(config, (448, 448))
    else:
        assert (plan.views, plan.tokens) == (1, 16 * 16 + 2), "28 pixels a token, and two markers"
