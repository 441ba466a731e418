"""The ``mmproj`` file of MiniCPM-V 2.5 to 4.5: vision tower and resampler, as llama.cpp's ``tools/mtmd`` loads them."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.slicing import MEAN, STD, sincos_positions
from pocketport.compress.families.minicpmv.versions import version_of
from pocketport.compress.ggml.writer import Value
from pocketport.errors import InputError

VERSIONS: Mapping[str, int] = {"2.5": 2, "2.6": 3, "4.0": 5, "4.5": 6}
"""Version → ``clip.minicpmv_version``."""

BUCKETS = 70  # rows (and columns) of the position table, fixed in llama.cpp's code
LONGEST_SIDE = 64  # patches of a view's side at the usual resolution and an aspect ratio of 1:4
POSITION_TABLE = "v.position_embd.weight"
KEY_POSITIONS = "resampler.pos_embed_k"  # computed anew by today's loader, which still asks for the tensor


def check_projector(config: MiniCPMVConfig) -> None:
    """See to it that llama.cpp has a loader for this version and its sizes.

    Raises:
        InputError: it has none.
    """
    name = version_of(config).name
    if name not in VERSIONS:
        raise InputError(
            f"llama.cpp has no loader for the vision tower of MiniCPM-V {name}",
            where="config.json, version",
            fix=f"it loads {', '.join(VERSIONS)}; port this one to another format",
        )
    if config.hidden_size % 128 or config.vision_config.hidden_act != "gelu_pytorch_tanh":
        raise InputError(
            f"llama.cpp's resampler has heads of 128 channels and its tower the tanh GELU; this model has"
            f" {config.hidden_size} channels and {config.vision_config.hidden_act}",
            where="config.json",
            fix="port the model to another format",
        )


def projector_metadata(config: MiniCPMVConfig, file_type: int) -> dict[str, Value]:
    """The keys of ``clip.*``, and the file's own."""
    vision = config.vision_config
    return {
        "general.architecture": "clip", "general.type": "mmproj", "general.file_type": file_type,
        "clip.has_text_encoder": False, "clip.has_vision_encoder": True, "clip.has_minicpmv_projector": True,
        "clip.projector_type": "resampler", "clip.use_gelu": True,
        "clip.minicpmv_version": np.int32(VERSIONS[version_of(config).name]), "clip.minicpmv_query_num": config.query_num,
        "clip.vision.image_size": config.slice_config.scale_resolution, "clip.vision.patch_size": vision.patch_size,
        "clip.vision.embedding_length": vision.hidden_size, "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.projection_dim": 0, "clip.vision.block_count": config.vision_layers,
        "clip.vision.attention.head_count": vision.num_attention_heads,
        "clip.vision.attention.layer_norm_epsilon": float(vision.layer_norm_eps),
        "clip.vision.image_mean": np.full(3, MEAN, np.float32), "clip.vision.image_std": np.full(3, STD, np.float32),
    }  # fmt: skip


def key_positions(config: MiniCPMVConfig) -> NDArray[np.float32]:
    """The resampler's positions of a view of `BUCKETS`² patches, [BUCKETS², H]."""
    return sincos_positions(config.hidden_size, (BUCKETS, BUCKETS))


def position_table(table: NDArray[np.float32], buckets: int) -> NDArray[np.float32]:
    """A table of `buckets`² positions [buckets², D] as the one of `BUCKETS`² that llama.cpp reads."""
    rows, _ = table_rows(buckets)
    side = table.reshape(buckets, buckets, -1)
    return side[rows[:, None], rows[None, :]].reshape(BUCKETS**2, -1)


def table_rows(buckets: int) -> tuple[NDArray[np.intp], int]:
    """The model's own row for each of the `BUCKETS` that llama.cpp may ask for, and how far that is exact.

    Patch i of n has the fractional coordinate i/n and takes row ⌊BUCKETS · i/n⌋ there, ⌊buckets · i/n⌋ here. Views of few
    patches come first where two would need different rows in one place.

    Returns:
        Rows [BUCKETS], and the patches that a view's side may have for every row to be right, at most `LONGEST_SIDE`.
    """
    rows: dict[int, int] = {}
    exact = LONGEST_SIDE
    for count in range(LONGEST_SIDE, 0, -1):
        rows |= {BUCKETS * i // count: buckets * i // count for i in range(count)}
    for count in range(LONGEST_SIDE, 0, -1):
        if any(rows[BUCKETS * i // count] != buckets * i // count for i in range(count)):
            exact = count - 1
    return np.array([rows.get(place, place * buckets // BUCKETS) for place in range(BUCKETS)], np.intp), exact
