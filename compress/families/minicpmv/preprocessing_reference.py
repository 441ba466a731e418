"""How images are cut, resized, normalized and laid out in the prompt, against transformers' own code.

Its image processor of MiniCPM-V 4.6 cuts as all versions since 2.0 do, but for one number: 4.6 merges 4×4 patches, so
that sides are multiples of four patches; here that divisor is one. Version 1.0 is SigLIP's image processor at one size.
Rows of slices come from 4.6's processor (up to 2.5 with the older markers), positions from Idefics2's embeddings.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from pocketport.compress.families.minicpmv import prompt
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.slicing import Size, plan_slices, position_ids, to_patches
from pocketport.compress.families.minicpmv.versions import version_of
from pocketport.compress.families.minicpmv.views import views_of
from pocketport.compress.families.transformers_reference import imported_transformers, quiet

SIZES: Sequence[Size] = (
    (32, 32), (32, 64), (64, 32), (48, 300), (100, 100), (112, 112), (133, 93), (200, 200), (224, 224), (240, 180), (300, 300),
    (320, 240), (336, 336), (336, 597), (384, 384), (400, 225), (448, 447), (448, 448), (449, 448), (480, 640), (512, 512),
    (600, 300), (634, 317), (640, 480), (672, 672), (700, 500), (720, 1280), (768, 768), (800, 600), (896, 896), (900, 300),
    (1000, 750), (1024, 1024), (1080, 1920), (1120, 1120), (1280, 720), (1344, 1344), (1500, 400), (1600, 1200), (1920, 1080),
    (2000, 400), (2048, 2048), (300, 4000), (3000, 2000), (3840, 2160), (4000, 300), (4000, 3000), (4096, 64),
)  # fmt: skip
MERGED = 4  # patches of a side that 4.6 merges
Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Laid:
    """One image size in one version.

    Attributes:
        size: (width, height) in pixels.
        overview: of the first view, likewise.
        grid: (columns, rows) of the slices, None where there are none.
        slice_size: of each of them in pixels.
        views: overview and slices.
        tokens: of the image's place in the prompt: vision tokens, markers, newlines, number.
        moved: patches whose position torch's float32 puts one cell away, all with a coordinate exactly on a boundary.
        differing: what is not as the reference has it, nothing if all is.
    """

    size: Size
    overview: Size
    grid: Size | None
    slice_size: Size | None
    views: int
    tokens: int
    moved: int
    differing: tuple[str, ...]


class PreprocessingReference:
    """The preprocessing of one version.

    Args:
        config: the checkpoint's; later versions than 1.0 in ``slice_mode``.
        tokenizer: the checkpoint's, or any with its special tokens.

    Raises:
        UsageError: transformers is not installed.
    """

    def __init__(self, config: MiniCPMVConfig, tokenizer: Tokenizer) -> None:
        self.config = config
        self._tokenizer = tokenizer
        self._transformers = imported_transformers()

    def compare(self, sizes: Sequence[Size], *, pixels: bool) -> Iterator[Laid]:
        """Each size in turn; with `pixels` also what an image of noise becomes."""
        for size in sizes:
            yield self._compared(size, pixels)

    def _compared(self, size: Size, pixels: bool) -> Laid:
        overview, grid, slice_size = self._published(size)
        one = (self.config.image_size, self.config.image_size)
        plan = plan_slices(size, self.config.slice_config) if self.config.slice_mode else None
        ours = (plan.overview, plan.grid, plan.slice_size) if plan else (one, None, None)
        columns, rows = grid or (0, 0)
        placeholder = self._placeholder(columns, rows)
        found = self._found(grid)
        spans = [last - first for first, last in found.spans]
        patch = self.config.vision_config.patch_size
        targets = {(side[1] // patch, side[0] // patch) for side in (overview, slice_size) if side is not None}
        moved = [self._moved(target) for target in targets]
        agreeing = {
            "sizes": ours == (overview, grid, slice_size),
            "placeholder": self._layout(grid) == placeholder,
            "spans": spans == [self.config.query_num] * (1 + columns * rows),
            "positions": None not in moved,
            "pixels": not pixels or self._same_pixels(noise(size)),
        }
        tokens = len(self._tokenizer.encode(placeholder, add_special_tokens=False).ids)
        differing = tuple(name for name, agrees in agreeing.items() if not agrees)
        return Laid(
            size, ours[0], ours[1], ours[2], 1 + columns * rows, tokens, sum(m or 0 for m in moved), differing
        )  # fmt: skip

    def _published(self, size: Size) -> tuple[Size, Size | None, Size | None]:
        """Overview, grid and slice size, as the reference decides."""
        if not self.config.slice_mode:
            return (self.config.image_size, self.config.image_size), None, None
        slicing = self.config.slice_config
        processor, (width, height) = self._processor, size
        grid = processor.get_sliced_grid((height, width), slicing.max_slice_nums, slicing.scale_resolution)
        common = (slicing.scale_resolution, slicing.patch_size, "16x")
        top, left = processor.find_best_resize((height, width), *common, allow_upscale=grid is None)
        if grid is None:
            return (left, top), None, None
        rows, columns = grid
        high, wide = processor.get_refine_size((height, width), grid, *common, allow_upscale=True)
        return (left, top), (columns, rows), (wide // columns, high // rows)

    @cached_property
    def _processor(self) -> Any:
        from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

        class Unmerged(MiniCPMV4_6ImageProcessorPil):  # type: ignore[misc]
            """Sides are multiples of one patch."""

            def find_best_resize(
                self,
                image_size: tuple[float, float],
                scale_resolution: int,
                patch_size: float,
                downsample_mode: str,
                allow_upscale: bool = False,
            ) -> Size:
                one = patch_size / MERGED
                best = super().find_best_resize(image_size, scale_resolution, one, downsample_mode, allow_upscale)
                return int(best[0]), int(best[1])

        slicing = self.config.slice_config
        return Unmerged(
            max_slice_nums=slicing.max_slice_nums, scale_resolution=slicing.scale_resolution, patch_size=slicing.patch_size
        )  # fmt: skip

    def _same_pixels(self, image: Image.Image) -> bool:
        patch = self.config.vision_config.patch_size
        strips = [to_patches(view, patch)[0] for view in views_of(image, self.config)[0]]
        expected = self._pixels(image)
        return len(strips) == len(expected) and all(map(np.array_equal, strips, expected))

    def _pixels(self, image: Image.Image) -> list[Floats]:
        """The reference's views as strips [3,patch,L·patch]."""
        patch = self.config.vision_config.patch_size
        if self.config.slice_mode:
            result = self._processor(image, return_tensors="np")
            ends = np.cumsum([rows * columns * patch for rows, columns in result["target_sizes"]])
            return np.split(np.asarray(result["pixel_values"][0]), ends[:-1], axis=-1)
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        side = self.config.image_size
        bicubic = Image.Resampling.BICUBIC
        processor = SiglipImageProcessorPil(size={"height": side, "width": side}, resample=bicubic)
        square = torch.from_numpy(np.array(processor(image, return_tensors="np")["pixel_values"]))
        patches = torch.nn.functional.unfold(square, patch, stride=patch)
        strip = patches.reshape(3, patch, patch, -1).permute(0, 1, 3, 2).reshape(3, patch, -1)
        return [strip.numpy()]

    def _layout(self, grid: Size | None) -> str:
        number = 0 if self.config.use_image_id else None
        template = version_of(self.config).template
        return prompt.image_placeholder(self.config.query_num, grid, template=template, image_id=number)

    def _found(self, grid: Size | None) -> prompt.EncodedPrompt:
        number = 0 if self.config.use_image_id else None
        return prompt.encode_prompt(
            self._tokenizer, "What?", query_num=self.config.query_num, grid=grid,
            template=version_of(self.config).template, image_id=number,
        )  # fmt: skip

    def _placeholder(self, columns: int, rows: int) -> str:
        """What stands for an image, as 4.6's processor lays it out; up to 2.5 one pair of markers encloses all slices."""
        from transformers.models.minicpmv4_6.processing_minicpmv4_6 import MiniCPMV4_6Processor

        marked = version_of(self.config).template.marked_slices
        pair = (prompt.SLICE_START, prompt.SLICE_END) if marked else (prompt.IMAGE_START, prompt.IMAGE_END)
        tokens = SimpleNamespace(
            image_token=prompt.UNKNOWN, image_start_token=prompt.IMAGE_START, image_end_token=prompt.IMAGE_END,
            slice_start_token=pair[0], slice_end_token=pair[1], slice_mode=True,
        )  # fmt: skip
        count = 1 + columns * rows
        inputs = {
            "grids": [(rows, columns)], "num_patches_per_image": [count],
            "target_sizes": np.array([(self.config.query_num, 1)] * count),
        }  # fmt: skip
        text = str(MiniCPMV4_6Processor.replace_image_token(tokens, inputs, 0, image_token_divisor=1))
        if not marked and count > 1:
            overview = prompt.IMAGE_START + prompt.UNKNOWN * self.config.query_num + prompt.IMAGE_END
            text = overview + prompt.SLICE_START + text.removeprefix(overview) + prompt.SLICE_END
        return f"{prompt.IMAGE_ID_START}0{prompt.IMAGE_ID_END}{text}" if self.config.use_image_id else text

    def _moved(self, target: Size) -> int | None:
        """How many patches Idefics2 places elsewhere, all of them on a boundary; None if any other is."""
        if version_of(self.config).timm:
            return 0  # the table is resampled: there are no buckets
        buckets = self.config.vision_config.buckets_per_side
        ids = position_ids(target, buckets)
        with quiet(self._transformers), torch.inference_mode():
            embeddings = _positions_only(buckets)
            side = torch.zeros(1, 1, *target)
            theirs = embeddings(side, torch.ones(1, *target, dtype=torch.bool))[0, :, 0].numpy().astype(np.int64)
        rows, columns = np.divmod(np.arange(math.prod(target)), target[1])
        settled = (rows * buckets % target[0] != 0) & (columns * buckets % target[1] != 0)
        differs = ids != theirs
        return None if (differs & settled).any() else int(differs.sum())


def _positions_only(buckets: int) -> Any:
    """Idefics2's embeddings, so that what they give for a patch is the index of its position."""
    from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
    from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionEmbeddings

    config = Idefics2VisionConfig(
        hidden_size=1, num_attention_heads=1, num_channels=1, image_size=buckets, patch_size=1
    )
    embeddings = Idefics2VisionEmbeddings(config)
    torch.nn.init.zeros_(embeddings.patch_embedding.weight)
    torch.nn.init.zeros_(embeddings.patch_embedding.bias)
    embeddings.position_embedding.weight.data = torch.arange(buckets**2, dtype=torch.float32)[:, None]
    return embeddings


def noise(size: Size) -> Image.Image:
    """An image whose neighbouring pixels differ little, as in photographs, deterministic."""
    width, height = size
    coarse = np.random.default_rng(width * 10_007 + height).integers(
        0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8
    )
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
