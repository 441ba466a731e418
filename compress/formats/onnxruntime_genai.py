"""Folders that onnxruntime-genai generates from: ``model.onnx``, its weights, ``genai_config.json``, the tokenizer.

Linear layers are MatMulNBits of our integers. Variants say in what activations are computed: ``int8`` (float32 outside
of linear layers, within which activations become int8: accuracy level 4, what onnxruntime-genai's own builder writes
for CPUs), ``fp32``, and ``fp16`` for GPUs and NPUs.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.formats.contract import Progress, SchemeChoice
from pocketport.compress.formats.language_model import LanguageModel, check_decoder
from pocketport.compress.formats.linear_weights import CONFIG, check_language, choose_linear
from pocketport.compress.formats.onnx_decoder import decoder_graph
from pocketport.compress.formats.onnx_linear import kernel_block
from pocketport.compress.graph import EXTERNAL_DATA_THRESHOLD
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.compress.schemes import Scheme
from pocketport.compress.sources.folder import read_json_object
from pocketport.compress.sources.source import Source
from pocketport.errors import UsageError
from pocketport.files import write_json

BITS = (4, 8)
TABLE_BLOCKS = (128, 64, 32)
MODEL = "model.onnx"
GENERATION = "generation_config.json"
# Of genai's own model types those that mean another tokenizer or cache than "llama", by our source's model_type.
TYPES: Mapping[str, str] = {
    "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3", "smollm3": "smollm3", "gemma3": "gemma3_text",
    "gemma3_text": "gemma3_text",
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """The type of activations, and MatMulNBits' accuracy level."""

    dtype: ir.DataType
    accuracy_level: int


VARIANTS: Mapping[str, Variant] = {
    "int8": Variant(ir.DataType.FLOAT, 4),
    "fp32": Variant(ir.DataType.FLOAT, 1),
    "fp16": Variant(ir.DataType.FLOAT16, 2),
}


class OnnxruntimeGenaiFormat:
    """See `pocketport.compress.formats.contract.Format`."""

    name = "onnxruntime-genai"
    variants: tuple[str, ...] = tuple(VARIANTS)
    default_scheme = "w4b32fp16"

    def check(self, source: Source, bundle: ModelBundle, variant: str) -> None:
        """Language models whose layers attend by softmax."""
        check_language(self.name, source, {c.name for c in bundle})
        check_decoder(self.name, source, LanguageModel.of(bundle))

    def choose(
        self, tensor: str, shape: tuple[int, ...], component: str, role: str, variant: str, wanted: str | None
    ) -> SchemeChoice:
        """Linear layers as the recipe says; embedding table and vocabulary projection in 8 bits."""
        floats = "fp16" if VARIANTS[variant].dtype is ir.DataType.FLOAT16 else "fp32"
        if role == "head" or (role == "table" and component == "embed"):
            block = next((b for b in TABLE_BLOCKS if shape[-1] % b == 0), 0)
            if not block:
                return SchemeChoice("source", f"{shape[-1]} columns do not divide into blocks")
            return SchemeChoice(f"w8b{block}{floats}", "8 bits: every token passes through it")
        choice = choose_linear(self.name, self.default_scheme, BITS, tensor, shape, component, role, wanted)
        if choice.scheme == "source":
            return choice
        if not kernel_block(Scheme.parse(choice.scheme).block or shape[-1]):
            return _refused(choice, shape, tensor, wanted)
        return replace(choice, scheme=choice.scheme.replace("fp16", floats).replace("fp32", floats))

    def write(
        self,
        source: Source,
        bundle: ModelBundle,
        weights: QuantizedWeights,
        directory: Path,
        variant: str,
        progress: Progress,
    ) -> list[Path]:
        """``model.onnx`` and ``model.onnx.data``, ``genai_config.json`` and the tokenizer's files."""
        model, form = LanguageModel.of(bundle), VARIANTS[variant]
        graph = decoder_graph(source, weights, model, form.dtype, form.accuracy_level)
        data = f"{MODEL}.data"
        ir.save(
            graph, directory / MODEL, external_data=data, size_threshold_bytes=EXTERNAL_DATA_THRESHOLD,
            callback=lambda _, info: progress(info.index + 1, info.total),
        )  # fmt: skip
        write_json(directory / "genai_config.json", genai_config(source, model, [v.name for v in graph.graph.inputs]))
        files = [directory / name for name in (MODEL, data, "genai_config.json")]
        for name, path in sorted(source.files.items()):
            if name != CONFIG:
                shutil.copyfile(path, directory / name)
                files.append(directory / name)
        return files


def _refused(choice: SchemeChoice, shape: tuple[int, ...], tensor: str, wanted: str | None) -> SchemeChoice:
    why = f"{choice.scheme} on {shape[-1]} columns: blocks must be multiples of 16"
    if wanted is None:
        return SchemeChoice("source", why)
    raise UsageError(why, where=f"recipe, tensor {tensor}", fix="use blocks of 32, 64 or 128, or a fallback")


def genai_config(source: Source, model: LanguageModel, inputs: Sequence[str | None]) -> dict[str, Any]:
    """``genai_config.json``: what the runtime needs to know of the graph, and how it searches."""
    config = model.config
    generation = read_json_object(source.files[GENERATION]) if GENERATION in source.files else {}
    text = {**source.config, **(source.config.get("text_config") or {})}
    tokens = {f"{name}_token_id": {**text, **generation}.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
    first = tokens["eos_token_id"][0] if isinstance(tokens["eos_token_id"], list) else tokens["eos_token_id"]
    tokens["pad_token_id"] = first if tokens["pad_token_id"] is None else tokens["pad_token_id"]
    return {
        "model": {
            **{name: value for name, value in tokens.items() if value is not None},
            "context_length": config.max_position_embeddings,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": MODEL,
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "inputs": {
                    **{name: name for name in ("input_ids", "attention_mask", "position_ids") if name in inputs},
                    "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value",
                },
                "num_attention_heads": config.num_attention_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "num_key_value_heads": config.num_key_value_heads,
            },
            "type": TYPES.get(str(source.config.get("model_type")), "llama"),
            "vocab_size": config.vocab_size,
        },
        "search": {
            "do_sample": bool(generation.get("do_sample", False)), "early_stopping": True,
            "max_length": config.max_position_embeddings, "min_length": 0, "num_beams": 1, "num_return_sequences": 1,
            "past_present_share_buffer": True, "repetition_penalty": generation.get("repetition_penalty", 1.0),
            "temperature": generation.get("temperature", 1.0), "top_k": generation.get("top_k", 50),
            "top_p": generation.get("top_p", 1.0),
        },
    }  # fmt: skip
