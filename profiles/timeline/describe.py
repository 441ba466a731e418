"""From a preset (shapes alone) or a bundle to its `ModelDescription`."""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.families.decoder.config import DecoderConfig
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.slicing import plan_slices
from pocketport.compress.families.minicpmv.versions import version_of
from pocketport.compress.families.registry import Lengths, chat_of, family_of, host_of
from pocketport.compress.ggml.types import TYPES
from pocketport.compress.graph import dimensions, shape_of
from pocketport.compress.ingest import ingest
from pocketport.compress.sources.source import Source
from pocketport.compress.synthesis.preset import Preset, load_preset, preset_names
from pocketport.errors import InputError, UsageError
from pocketport.files import cache_root, write_text
from pocketport.profiles.arena import arena_of
from pocketport.profiles.cost import LOOKUPS, ComponentCost, component_cost
from pocketport.profiles.prediction.extraction import graph_features
from pocketport.profiles.timeline.description import ImagePlan, ModelDescription, Part, PartDescription, Weights
from pocketport.suggest import nearest

Size = tuple[int, int]
ENCODERS: tuple[Part, ...] = ("vision", "connector")
LANGUAGE_PARTS = ("embed", "prefill", "decode")
MASKED_BELOW = -1.0  # attention biases are 0 where a patch is one of the picture's
IMAGE_ID_TOKENS = 3
VERSION = 1  # of what descriptions hold; another one is not taken from the cache


def describe(model: str) -> ModelDescription:
    """The description of a preset (kept in the user's cache), or of what `ingest` takes.

    Raises:
        UsageError: there is no such model, or it has no language model.
        InputError: it is damaged.
    """
    if model not in preset_names():
        return describe_bundle(_ingested(model))
    preset = load_preset(model)
    key = json.dumps([VERSION, preset.config, preset.files], sort_keys=True)
    note = cache_root() / "descriptions" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    if note.is_file():
        try:
            return ModelDescription.model_validate_json(note.read_text("utf-8"))
        except ValidationError:
            note.unlink()
    with _preset_bundle(preset) as (bundle, source):
        found = describe_bundle(bundle, source)
    write_text(note, found.model_dump_json(exclude_defaults=True) + "\n")
    return found


def plan_image(model: str, size: Size) -> ImagePlan:
    """What an image becomes in a preset, or in what `ingest` takes.

    Raises:
        UsageError: there is no such model, or it takes no images.
        InputError: the model is damaged, or the image does not fit its static graphs.
    """
    if model not in preset_names():
        return plan_by_shapes(_ingested(model), size)
    preset = load_preset(model)
    if preset.config.get("model_type") == "minicpmv":
        config = MiniCPMVConfig.model_validate(preset.config)
        if not str(config.version).startswith("1"):
            return plan_minicpmv(config, size)
    with _preset_bundle(preset) as (bundle, _):
        return plan_by_shapes(bundle, size)


@contextmanager
def _preset_bundle(preset: Preset) -> Iterator[tuple[ModelBundle, Source]]:
    from pocketport.compress.synthesis.shapes import shape_source  # torch; and most descriptions are in the cache

    with tempfile.TemporaryDirectory(prefix="pocketport-shapes-") as folder:
        source = shape_source(preset, Path(folder))
        yield family_of(source).load(source, preset.name, Lengths()), source


def _ingested(model: str) -> ModelBundle:
    if not Path(model).exists():
        raise UsageError(f"neither a preset nor a file: {model!r}", where="model", fix=nearest(model, preset_names()))
    return ingest(model)


def plan_minicpmv(config: MiniCPMVConfig, size: Size) -> ImagePlan:
    """Slices and tokens of MiniCPM-V 2.0 to 4.5, from the configuration alone (arXiv 2408.01800, section 3.1)."""
    patch, grid = config.slice_config.patch_size, None
    views = [tuple(max(side // patch, 1) * patch for side in size)]
    if config.slice_mode:
        plan = plan_slices(size, config.slice_config)
        views, grid = [tuple(view) for view in plan.sizes], plan.grid
    marked = version_of(config).template.marked_slices
    between = 0 if grid is None else grid[1] - 1 + (0 if marked else 2)  # newlines, and a pair around all slices
    return ImagePlan(
        width=size[0], height=size[1], views=len(views),
        patches=max((width // patch) * (height // patch) for width, height in views),
        tokens=(config.query_num + 2) * len(views) + between + (IMAGE_ID_TOKENS if config.use_image_id else 0),
    )  # fmt: skip


def describe_bundle(bundle: ModelBundle, source: Source | None = None) -> ModelDescription:
    """The description of a bundle with a language model.

    Args:
        bundle: float, static shapes.
        source: of the bundle; with it llama.cpp's mixtures are known.

    Raises:
        UsageError: it has no language model.
    """
    if "prefill" not in bundle.components:
        raise UsageError(
            "it has no language model, so there is no request to follow",
            where=bundle.name, fix="profile its latency: give an ONNX file",
        )  # fmt: skip
    costs = {c.name: component_cost(c.graph) for c in bundle}
    mixtures = _mixtures(bundle, source) if source is not None else {}
    parts: dict[Part, PartDescription] = {}
    for part in ENCODERS:
        if part in costs:
            parts[part] = _encoder(bundle, part, costs[part], mixtures.get(part, {}))
    parts["language"] = _language(bundle, costs, mixtures)
    return ModelDescription(name=bundle.name, parts=parts)


def plan_by_shapes(bundle: ModelBundle, size: Size) -> ImagePlan:
    """What an image becomes, by the family's own preprocessing: its components are run as shapes alone.

    Raises:
        UsageError: the model takes no images.
        InputError: the image does not fit the static graphs.
    """
    factory = chat_of(bundle)
    if factory is None:
        raise UsageError("it takes no images", where=bundle.name, fix="leave --image out")
    shapes = {c.name: _Shapes(c.graph) for c in bundle}
    prompt = factory(shapes, bundle.config, bundle.files).encode(Image.new("RGB", size), "")
    vision = shapes["vision"]
    before = prompt.spans[0][0]
    return ImagePlan(
        width=size[0], height=size[1], views=vision.runs, patches=vision.patches or vision.rows,
        tokens=prompt.spans[-1][1] - before + 2,
    )  # fmt: skip


class _Shapes:
    """Stands for a component's executor: zeros of the right shapes, and a look at what is asked of it."""

    def __init__(self, graph: ir.Model) -> None:
        self._outputs = {str(v.name): shape_of(v) for v in graph.graph.outputs}
        self.rows = next(iter(self._outputs.values()))[0]
        self.runs, self.patches = 0, 0

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        self.runs += 1
        bias = feeds.get("attention_bias")
        if bias is not None:
            self.patches = max(self.patches, int((np.asarray(bias, np.float32) > MASKED_BELOW).sum()))
        zero = np.float32(0)
        return {name: np.broadcast_to(zero, shape).copy() for name, shape in self._outputs.items()}


def _encoder(bundle: ModelBundle, name: str, cost: ComponentCost, gguf: Mapping[str, int]) -> PartDescription:
    graph = bundle[name].graph
    arena = arena_of(graph)
    linear, attention = _macs(cost)
    rows = _rows(graph, "vision_features" if name == "connector" else None)
    matrices, _, other = _weights(bundle, (name,))
    return PartDescription(
        linear=matrices, table=Weights(elements=0, channels=0), other=other, gguf=gguf,
        gguf_table=dict.fromkeys(gguf, 0), rows=rows, row_macs=linear / rows,
        pair_macs=attention / rows**2, ops=cost.ops, arena_bytes=arena.high, io_bytes=arena.io_bytes,
        features=graph_features(graph).to_json(),
    )  # fmt: skip


def _language(
    bundle: ModelBundle, costs: Mapping[str, ComponentCost], mixtures: Mapping[str, Mapping[str, int]]
) -> PartDescription:
    graph, step = bundle["prefill"].graph, bundle["decode"].graph
    rows = shape_of(next(v for v in graph.graph.inputs if v.name == "inputs_embeds"))[0]
    prefill, attention = _macs(costs["prefill"])
    decode, _ = _macs(costs["decode"])
    row = (prefill - decode) / (rows - 1) if rows > 1 else decode
    caches = [shape_of(v) for v in step.graph.inputs if str(v.name).startswith(("past_key_", "past_value_"))]
    columns = caches[0][-2] if caches else 1
    arena, step_arena = arena_of(graph), arena_of(step)
    matrices, table, other = _weights(bundle, LANGUAGE_PARTS)
    outputs = {str(v.name): math.prod(shape_of(v)) * 2 for v in graph.graph.outputs}
    cached = sum(size for name, size in outputs.items() if name.startswith("present_"))
    return PartDescription(
        linear=matrices, table=table, other=other, gguf=mixtures.get("language", {}),
        gguf_table=mixtures.get("table", {}), rows=rows, row_macs=row, pair_macs=attention / rows**2,
        last_macs=max(decode - row, 0), ops=costs["prefill"].ops, arena_bytes=arena.high,
        io_bytes=max(arena.io_bytes - cached, 0),
        cache_elements=sum(math.prod(shape) for shape in caches) // columns, step_arena_bytes=step_arena.high,
        shape=_shape(host_of(bundle).config),
    )  # fmt: skip


def _shape(config: DecoderConfig) -> dict[str, int]:
    """Fields of `pocketport.profiles.prediction.llm.LanguageShape`."""
    return {
        "layers": config.num_hidden_layers, "hidden": config.hidden_size, "inner": config.intermediate_size,
        "heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads, "head_size": config.head_dim,
        "vocabulary": config.vocab_size,
    }  # fmt: skip


def _macs(cost: ComponentCost) -> tuple[int, int]:
    """Multiply-accumulates with constants, and between activations."""
    linear = sum(op.macs for op in cost.per_op if op.weight_bytes)
    return linear, cost.macs - linear


def _rows(graph: ir.Model, name: str | None) -> int:
    """Rows of the input `name`, or of the first output."""
    if name is not None:
        return shape_of(next(v for v in graph.graph.inputs if v.name == name))[0]
    return shape_of(graph.graph.outputs[0])[-2]


def _weights(bundle: ModelBundle, components: Sequence[str]) -> tuple[Weights, Weights, int]:
    """Matrices, tables, and elements of everything else that is learned; what components share counts once."""
    matrices: dict[str, tuple[int, ...]] = {}
    tables: dict[str, tuple[int, ...]] = {}
    other: dict[str, int] = {}
    for name in components:
        for value in bundle[name].graph.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or not tensor.dtype.is_floating_point() or tensor.size == 1:  # a number, not learned
                continue
            shape = dimensions(tensor)
            looked_up = any(node.op_type in LOOKUPS and index == 0 for node, index in value.uses())
            if looked_up:
                tables[str(value.name)] = shape
            elif len(shape) > 1:
                matrices[str(value.name)] = shape
            else:
                other[str(value.name)] = math.prod(shape)
    return _counted(matrices), _counted(tables), sum(other.values())


def _counted(shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    return Weights(elements=sum(math.prod(s) for s in shapes.values()), channels=sum(s[0] for s in shapes.values()))


def _mixtures(bundle: ModelBundle, source: Source) -> dict[str, dict[str, int]]:
    """Bytes of each part in llama.cpp's files, by mixture; empty where there are no such files."""
    from pocketport.compress.formats.gguf import GgufFormat  # torch

    found: dict[str, dict[str, int]] = {}
    for variant in GgufFormat.variants:
        kind = GgufFormat()
        try:
            kind.check(source, bundle, variant)
        except InputError:
            return {}
        for name, tensor in source.tensors.items():
            shape = tuple(int(d) for d in tensor.shape if isinstance(d, int))
            chosen = kind.choose(name, shape, "", "", variant, None).scheme
            part = _part_of(name)
            if chosen in TYPES:
                stored = math.prod(shape) // TYPES[chosen].block * TYPES[chosen].size
                found.setdefault(part, dict.fromkeys(GgufFormat.variants, 0))[variant] += stored
    return found


def _part_of(name: str) -> str:
    """Part of a published tensor name, the table apart."""
    if "embed_tokens" in name:
        return "table"
    return {"vpm": "vision", "resampler": "connector"}.get(name.partition(".")[0], "language")
