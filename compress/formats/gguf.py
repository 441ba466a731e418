"""GGUF for llama.cpp: one file for a language model, and for MiniCPM-V a second one (``mmproj``) that sees."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.decoder.config import DecoderConfig
from pocketport.compress.families.decoder.published import decoder_paths
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.prompt import Template, jinja_template
from pocketport.compress.families.minicpmv.published import DECODER, HEAD
from pocketport.compress.families.minicpmv.versions import decoder_of, version_of
from pocketport.compress.formats.contract import Progress, SchemeChoice
from pocketport.compress.ggml.blocks import FORMS
from pocketport.compress.ggml.casting import computed_tensor, float_tensor, packed_tensor
from pocketport.compress.ggml.language_file import check_decoder, decoder_metadata, rotary_tensors
from pocketport.compress.ggml.mixtures import BASE, FILE_TYPES, FLOATS, Shape, mixed_type, with_fallback
from pocketport.compress.ggml.names import ARCHITECTURES, Form, NameTable, Place, projector_names, text_names
from pocketport.compress.ggml.projector_file import (
    BUCKETS,
    KEY_POSITIONS,
    POSITION_TABLE,
    check_projector,
    key_positions,
    position_table,
    projector_metadata,
    table_rows,
)
from pocketport.compress.ggml.tokenizer_metadata import tokenizer_metadata
from pocketport.compress.ggml.types import TYPES
from pocketport.compress.ggml.writer import TensorData, Value, write_gguf
from pocketport.compress.graph import dimensions
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.compress.schemes import Granularity, Scheme
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError, UsageError

NOT_WRITTEN = (".rotary_emb.inv_freq", ".position_ids", "resampler.pos_embed", "resampler.temporal_pos_embed")
"""Ends of the names of tensors that engines compute."""
SAME_NUMBERS: Mapping[int, str] = {8: "q8_0", 4: "q4_0"}
"""Bits of weights in blocks of 32 with float16 scales → the type that is just that."""
QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class _Model:
    """What a model's tensors are in GGUF.

    Attributes:
        architecture: ``general.architecture``.
        decoder: its language model.
        paths: of decoder and vocabulary projection among the published names.
        shape: what mixtures ask of it.
        vision: the configuration of a model that sees.
        names: of the language model's file, as if it lay on its own.
    """

    architecture: str
    decoder: DecoderConfig
    paths: tuple[str, str]
    shape: Shape
    vision: MiniCPMVConfig | None
    names: NameTable

    @classmethod
    def of(cls, source: Source, family: str) -> "_Model":
        """Read from a checkpoint's configuration."""
        vision = MiniCPMVConfig.of(source) if family == "minicpmv" else None
        if vision is not None:
            check_projector(vision)
            decoder, paths, kind = decoder_of(vision), (DECODER, HEAD), version_of(vision).decoder
        else:
            decoder, paths = DecoderConfig.from_hf(source.config), decoder_paths(source.tensors)
            text: Any = source.config.get("text_config") or {}
            kind = str(text.get("model_type") or source.config.get("model_type"))
        if kind not in ARCHITECTURES:
            raise InputError(
                f"no GGUF is written for the architecture {kind!r}",
                where=f"{source.path}, config.json",
                fix=f"known are {', '.join(ARCHITECTURES)}",
            )
        group = decoder.num_attention_heads // decoder.num_key_value_heads
        shape = Shape(decoder.num_hidden_layers, group, f"{paths[1]}.weight" not in source.tensors)
        return cls(ARCHITECTURES[kind], decoder, paths, shape, vision, text_names(ARCHITECTURES[kind]))

    def text_place(self, name: str) -> Place | None:
        """The place of a published tensor in the language model's file, None where it has none."""
        for path, plain in zip(self.paths, ("model", "lm_head"), strict=True):
            if name.startswith(f"{path}."):
                found = self.names.of_published(plain + name.removeprefix(path))
                return Place(found[0].gguf, name, found[0].form) if found else None
        return None

    def heads(self, place: Place) -> int:
        """Of a projection whose rows are reordered."""
        keys = place.form is Form.KEY_ROWS
        return self.decoder.num_key_value_heads if keys else self.decoder.num_attention_heads


class GgufFormat:
    """See `pocketport.compress.formats.contract.Format`; `check` comes first: `choose` needs to know the model."""

    name = "gguf"
    variants: tuple[str, ...] = (*BASE, *FLOATS)
    default_scheme = "q4_k"

    def __init__(self) -> None:
        self._model: _Model | None = None
        self._seeing = projector_names()

    def check(self, source: Source, bundle: ModelBundle, variant: str) -> None:
        """Language models of the architectures in `ARCHITECTURES`, and MiniCPM-V 2.5 to 4.5."""
        if "prefill" not in {component.name for component in bundle}:
            raise InputError(
                "GGUF is a format for language models, and this model has none",
                where=str(source.path),
                fix="port it to a target instead",
            )
        self._model = model = _Model.of(source, bundle.family)
        check_decoder(model.decoder, model.architecture)
        for name in source.tensors:
            if not name.endswith(NOT_WRITTEN) and not self._places(name):
                raise InputError(
                    f"llama.cpp's {model.architecture} has no place for it",
                    where=f"{source.path}, tensor {name}",
                    fix="give the language model alone, or port it to another format",
                )
        self._tokenizer(source)

    def choose(
        self, tensor: str, shape: tuple[int, ...], component: str, role: str, variant: str, wanted: str | None
    ) -> SchemeChoice:
        """llama.cpp's own mixtures for the language model, floats for vision unless the recipe says otherwise."""
        places = self._places(tensor)
        if not places:
            return SchemeChoice("source", "not written: engines compute it")
        matrix = len(shape) == 2 and tensor.endswith(".weight") and "norm" not in places[0].gguf
        if role == "linear" and wanted is not None and matrix:
            kind = _wanted_type(wanted, tensor)
            if kind is not None:
                return SchemeChoice(*with_fallback(kind, shape[-1], "the recipe's scheme"))
            return SchemeChoice(_float_type(places[0].gguf, shape, variant), "the recipe keeps it float")
        if places[0].gguf == POSITION_TABLE and self._vision.vision_config.buckets_per_side != BUCKETS:
            exact = table_rows(self._vision.vision_config.buckets_per_side)[1]
            why = f"as the {BUCKETS}² table that llama.cpp reads; exact for views of up to {exact} patches a side"
            return SchemeChoice(_float_type(POSITION_TABLE, shape, variant), why)
        if variant in FLOATS or not matrix or places[0].gguf.startswith(("v.", "resampler.")):
            return SchemeChoice(_float_type(places[0].gguf, shape, variant), "stays float in llama.cpp's files")
        assert self._model is not None
        return SchemeChoice(*mixed_type(variant, places[0].gguf, shape[-1], self._model.shape))

    def write(
        self,
        source: Source,
        bundle: ModelBundle,
        weights: QuantizedWeights,
        directory: Path,
        variant: str,
        progress: Progress,
    ) -> list[Path]:
        """``<name>-<VARIANT>.gguf``, and ``mmproj-<name>-<type>.gguf`` beside it for a model that sees.

        Raises:
            InputError: a number is too large for float16.
        """
        if self._model is None:
            self.check(source, bundle, variant)
        language, seeing = self._tensors(source, weights, variant)
        total, done = len(language) + len(seeing), iter(range(1, len(language) + len(seeing) + 1))

        def advance(_: int) -> None:
            progress(next(done), total)

        files = [directory / f"{bundle.name}-{variant.upper()}.gguf"]
        write_gguf(files[0], self._language_metadata(source, bundle, variant), language, advance)
        if seeing:
            quantized = {tensor.type for tensor in seeing} - set(FLOATS)
            kind = min(quantized, default="f32" if variant == "f32" else "f16")
            files.append(directory / f"mmproj-{bundle.name}-{kind.upper()}.gguf")
            metadata = {**projector_metadata(self._vision, FILE_TYPES.get(kind, 1)), "general.name": bundle.name}
            write_gguf(files[1], metadata, seeing, advance)
        return files

    @property
    def _vision(self) -> MiniCPMVConfig:
        assert self._model is not None and self._model.vision is not None
        return self._model.vision

    def _places(self, name: str) -> tuple[Place, ...]:
        """Of a published tensor: one in the language model's file, or one or more in the projector's."""
        assert self._model is not None, "check comes before"
        place = self._model.text_place(name)
        if place is not None:
            return (place,)
        return () if self._model.vision is None or name.endswith(NOT_WRITTEN) else self._seeing.of_published(name)

    def _tokenizer(self, source: Source) -> dict[str, Value]:
        assert self._model is not None
        template: Template | None = None if self._model.vision is None else version_of(self._model.vision).template
        words = dimensions(source.tensors[f"{self._model.paths[0]}.embed_tokens.weight"])[0]
        return tokenizer_metadata(source, words, None if template is None else jinja_template(template))

    def _language_metadata(self, source: Source, bundle: ModelBundle, variant: str) -> dict[str, Value]:
        assert self._model is not None
        model = self._model
        words = dimensions(source.tensors[f"{model.paths[0]}.embed_tokens.weight"])[0]
        general: dict[str, Value] = {
            "general.architecture": model.architecture, "general.type": "model", "general.name": bundle.name,
            "general.file_type": FILE_TYPES[variant], "general.quantization_version": QUANTIZATION_VERSION,
        }  # fmt: skip
        return general | decoder_metadata(model.decoder, model.architecture, words) | self._tokenizer(source)

    def _tensors(
        self, source: Source, weights: QuantizedWeights, variant: str
    ) -> tuple[list[TensorData], list[TensorData]]:
        """Those of the language model's file and of the projector's."""
        assert self._model is not None
        language, seeing = rotary_tensors(self._model.decoder), list[TensorData]()
        for name, tensor in source.tensors.items():
            for place in self._places(name):
                own = seeing if place.gguf.startswith(("v.", "resampler.")) else language
                heads = self._model.heads(place)
                if name in weights:
                    own.append(packed_tensor(place, weights, heads))
                elif place.gguf == POSITION_TABLE:
                    own.append(self._position_table(tensor, variant))
                else:
                    kind = _float_type(place.gguf, dimensions(tensor), variant)
                    own.append(float_tensor(place, tensor, kind, heads))
        if seeing:
            width, kind = self._vision.hidden_size, _float_type(f"{KEY_POSITIONS}.weight", (BUCKETS, BUCKETS), variant)
            shape = (BUCKETS**2, width)
            seeing.append(computed_tensor(KEY_POSITIONS, kind, shape, lambda: key_positions(self._vision)))
        return language, seeing

    def _position_table(self, tensor: ir.TensorProtocol, variant: str) -> TensorData:
        buckets, width = self._vision.vision_config.buckets_per_side, dimensions(tensor)[-1]
        shape = (BUCKETS**2, width)
        kind = _float_type(POSITION_TABLE, shape, variant)
        return computed_tensor(POSITION_TABLE, kind, shape, lambda: position_table(tensor.numpy(), buckets))


def _float_type(name: str, shape: tuple[int, ...], variant: str) -> str:
    """Of a tensor that is not quantized: ggml takes vectors, norms and what is added as float32 only."""
    if len(shape) < 2 or not name.endswith(".weight") or variant == "f32":
        return "f32"
    return "bf16" if variant == "bf16" and not name.startswith(("v.", "resampler.")) else "f16"


def _wanted_type(wanted: str, tensor: str) -> str | None:
    """The ggml type of a recipe's scheme, None for float.

    Raises:
        UsageError: there is none.
    """
    if wanted in FORMS:
        return wanted
    scheme = Scheme.parse(wanted)
    if scheme.weight_bits is None:
        return None
    blocks = scheme.granularity is Granularity.BLOCK and scheme.block == TYPES["q8_0"].block
    if not blocks or scheme.activation_bits is not None or scheme.weight_bits not in SAME_NUMBERS:
        raise UsageError(
            f"gguf has no type for {scheme}",
            where=f"recipe, tensor {tensor}",
            fix=f"name a type ({', '.join(FORMS)}), or use w4b32fp16, w8b32fp16 or float",
        )
    return SAME_NUMBERS[scheme.weight_bits]
