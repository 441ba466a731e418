"""The five component graphs: the tower over one tile, the connector, and the shared decoder's three."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from pocketport.compress.builder import GraphBuilder, Weight
from pocketport.compress.families.decoder.graphs import DecoderParts, decoder_components
from pocketport.compress.families.idefics3.config import Idefics3Config
from pocketport.compress.families.layers import Layers, derived
from pocketport.compress.families.vision.encoder import Encoder
from pocketport.compress.families.vision.graphs import patch_rows

TOWER, CONNECTOR = "model.vision_model", "model.connector.modality_projection.proj"
LANGUAGE, HEAD = "model.text_model", "lm_head"


@dataclass(frozen=True)
class StaticShape:
    """The lengths that are fixed at compile time.

    Attributes:
        tile: pixels of a tile's sides.
        prompt: prompt tokens (S), left-padded.
        cache: columns of the KV cache that decode reads (C): prompt plus new tokens.
    """

    tile: int
    prompt: int
    cache: int


@dataclass(frozen=True)
class TileParts(Layers):
    """`Layers` of the tower and the connector.

    Attributes:
        config: of the whole model.
        tile: pixels of a tile's sides.
    """

    config: Idefics3Config
    tile: int

    @property
    def side(self) -> int:
        """Patches along one side of a tile."""
        return self.tile // self.config.vision.patch_size


def build_graphs(state: Mapping[str, Weight], config: Idefics3Config, shape: StaticShape) -> dict[str, ir.Model]:
    """The component graphs by name, in the order in which data flows.

    Raises:
        InputError: a tensor is missing from `state`, or has another shape than `config` says.
    """
    graphs = {}
    for name, build in (("vision", build_vision), ("connector", build_connector)):
        parts = TileParts(GraphBuilder(name), state, config, shape.tile)
        build(parts)
        graphs[name] = parts.g.finish()
    decoder = decoder_components(
        lambda name: DecoderParts(
            GraphBuilder(name), state, config.decoder, LANGUAGE, HEAD, shape.prompt, shape.cache
        )
    )  # fmt: skip
    return graphs | decoder


def build_vision(parts: TileParts) -> None:
    """One tile `pixel_values` [1,3,T,T] to `vision_features` [L,D]. All tiles are full, so nothing is masked."""
    g, config, side = parts.g, parts.config.vision, parts.side
    width, rows = config.hidden_size, side**2
    path = f"{TOWER}.embeddings"
    pixels = g.input("pixel_values", (1, 3, parts.tile, parts.tile))
    x = patch_rows(parts, pixels, f"{path}.patch_embedding", width, config.patch_size, rows, bias=True)
    name = f"{path}.position_embedding.weight"
    x = g.node("Add", [x, g.weight(name, _positions(parts, name))], path)
    x = Encoder(config).build(parts, x, None, rows, f"{TOWER}.encoder.layers")
    g.output(parts.layer_norm(x, f"{TOWER}.post_layernorm", width, config.layer_norm_eps, output="vision_features"))


def build_connector(parts: TileParts) -> None:
    """Pixel shuffle (Shi et al. 2016, arXiv 1609.05158, backwards): squares of patches become one token each."""
    g, width, side, s = parts.g, parts.config.vision.hidden_size, parts.side, parts.config.shuffle
    less, joined = side // s, width * s * s
    x = g.input("vision_features", (side**2, width))
    x = g.transpose(g.reshape(x, (side, less, width * s), "shuffle.columns"), (1, 0, 2), "shuffle.turned")
    x = g.transpose(g.reshape(x, (less, less, joined), "shuffle.rows"), (1, 0, 2), "shuffle.back")
    x = g.reshape(x, (less**2, joined), "shuffle")
    weight = parts.weight(f"{CONNECTOR}.weight", parts.config.decoder.hidden_size, joined)
    g.output(g.node("Gemm", [x, weight], CONNECTOR, transB=1, output="vision_tokens"))


def _positions(parts: TileParts, name: str) -> Weight:
    """The rows of the position table that a full tile's patches take [L,D]: mostly the table itself."""
    config = parts.config.vision
    table = parts.tensor(name, config.side**2, config.hidden_size)
    ids = position_ids(parts.side, config.side)
    if np.array_equal(ids, np.arange(config.side**2)):
        return table
    return derived(lambda array: array[ids], table, shape=(len(ids), config.hidden_size))


def position_ids(side: int, buckets: int) -> NDArray[np.int64]:
    """Rows of a table of `buckets`² positions for `side`² patches: fractions of the side, put into buckets.

    In torch's float32, as published: where a fraction meets a bucket's border, its rounding decides.
    """
    borders = torch.arange(1 / buckets, 1.0, 1 / buckets)
    fractions = torch.arange(side, dtype=torch.float32) * (1.0 / torch.tensor(side))
    places = torch.bucketize(fractions.clamp(max=1.0 - 1e-6), borders, right=True)
    ids: NDArray[np.int64] = (places[:, None] * buckets + places).flatten().numpy()
    return ids
