"""Metadata of GGUF files in the terms of ``config.json``.

Keys are those of ggml's ``docs/gguf.md``; what llama.cpp leaves out of a file because its own code knows it (Gemma's
pattern of sliding layers, MiniCPM's older scales) is taken from that code and named here.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from pocketport.compress.ggml.dequantize import dequantize
from pocketport.compress.ggml.reader import GgufFile
from pocketport.errors import InputError

T = TypeVar("T", int, float, str, bool)

MODEL_TYPES: Mapping[str, tuple[str, str]] = {
    "llama": ("llama", "LlamaForCausalLM"), "minicpm": ("minicpm", "MiniCPMForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"), "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"), "smollm3": ("smollm3", "SmolLM3ForCausalLM"),
    "bert": ("bert", "BertModel"),
}  # fmt: skip
"""``general.architecture`` → ``model_type`` and the class in ``architectures``."""

GEMMA3_27B_LAYERS = 62  # the one Gemma 3 whose scores are divided by another width than its heads'
GEMMA3_PATTERN, SMOLLM3_INTERVAL = 6, 4
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
MOST_LAYERS = 4096
FACTORS_TOLERANCE = 1e-4
SPECIAL_TOKENS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}


class Metadata:
    """A file's metadata, checked for type as it is read.

    Args:
        file: the file.

    Attributes:
        architecture: ``general.architecture``.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.architecture = self.require("general.architecture", str)

    def require(self, key: str, kind: type[T]) -> T:
        """A value that must be there.

        Raises:
            InputError: it is missing, or of another type.
        """
        value = self.get(key, kind)
        if value is None:
            raise self.refused(key, "it is missing")
        return value

    def get(self, key: str, kind: type[T]) -> T | None:
        """A value, or None.

        Raises:
            InputError: it is of another type, or no finite number.
        """
        value: Any = self.file.metadata.get(key)
        if value is None:
            return None
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (type(value) is float and not math.isfinite(value)):
            raise self.refused(key, f"it is {str(value)[:100]!r}, not a {kind.__name__}")
        result: T = value
        return result

    def own(self, key: str, kind: type[T]) -> T | None:
        """A value of the architecture: `get` of ``<architecture>.<key>``."""
        return self.get(f"{self.architecture}.{key}", kind)

    def size(self, key: str) -> int:
        """A positive integer of the architecture; of one for each layer the value, if it is the same for all.

        Raises:
            InputError: it is missing, not positive, or differs between layers.
        """
        name = f"{self.architecture}.{key}"
        value: Any = self.file.metadata.get(name)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and len(value) and (value == value[0]).all():
            value = int(value[0])
        if type(value) is not int or value <= 0:
            raise self.refused(name, "it is missing" if value is None else "it is not one positive integer")
        return value

    def refused(self, key: str, why: str) -> InputError:
        """An error about one key."""
        return InputError(
            why, where=f"{self.file.path}, metadata {key}", fix="convert the original checkpoint again"
        )  # fmt: skip


def text_config(metadata: Metadata) -> dict[str, Any]:
    """The ``config.json`` of a language model's (or BERT's) file.

    Raises:
        InputError: the architecture is not known, a key is missing, or the file asks for what can't be expressed.
    """
    kind = metadata.architecture
    if kind not in MODEL_TYPES:
        raise metadata.refused(
            "general.architecture", f"the architecture {kind!r} is not known (known: {', '.join(MODEL_TYPES)})"
        )
    config: dict[str, Any] = {
        "model_type": MODEL_TYPES[kind][0],
        "architectures": [MODEL_TYPES[kind][1]],
        "hidden_size": metadata.size("embedding_length"),
        "intermediate_size": metadata.size("feed_forward_length"),
        "num_hidden_layers": metadata.size("block_count"),
        "num_attention_heads": metadata.size("attention.head_count"),
        "max_position_embeddings": metadata.size("context_length"),
        "vocab_size": _rows(metadata, "token_embd.weight"),
        **_special_tokens(metadata),
    }
    if config["num_hidden_layers"] > MOST_LAYERS:
        raise metadata.refused(f"{kind}.block_count", f"it is over {MOST_LAYERS}")
    return config | (_bert(metadata) if kind == "bert" else _decoder(metadata, config))


def _bert(metadata: Metadata) -> dict[str, Any]:
    if metadata.own("attention.causal", bool):
        raise metadata.refused("bert.attention.causal", "a BERT attends both ways")
    return {
        "layer_norm_eps": shortest(metadata.require("bert.attention.layer_norm_epsilon", float)),
        "type_vocab_size": _rows(metadata, "token_types.weight"),
    }


def _decoder(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    kind, heads = metadata.architecture, config["num_attention_heads"]
    tensors = metadata.file.tensors
    keys = "attention.head_count_kv"
    head_dim = metadata.own("attention.key_length", int) or config["hidden_size"] // heads
    if (metadata.own("attention.value_length", int) or head_dim) != head_dim:
        raise metadata.refused(f"{kind}.attention.value_length", "values are not as wide as keys")
    if metadata.own("expert_count", int):
        raise metadata.refused(f"{kind}.expert_count", "mixtures of experts are not supported")
    decoder: dict[str, Any] = {
        "num_key_value_heads": metadata.size(keys) if f"{kind}.{keys}" in metadata.file.metadata else heads,
        "head_dim": head_dim,
        "rms_norm_eps": shortest(metadata.require(f"{kind}.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": shortest(metadata.own("rope.freq_base", float) or 10000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
    }
    turning = metadata.own("rope.dimension_count", int) or head_dim
    if turning != head_dim:
        decoder["partial_rotary_factor"] = turning / head_dim
    scaling = _rope_scaling(metadata, config, head_dim)
    if scaling:
        decoder["rope_scaling"] = scaling
    return decoder | _particulars(metadata, config, head_dim)


def _particulars(metadata: Metadata, config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """What one architecture has and the others have not."""
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    if metadata.architecture == "minicpm":  # older files lack the scales: llama.cpp's defaults
        logit = metadata.own("logit_scale", float) or width / 256
        residual = metadata.own("residual_scale", float) or 1.4 / math.sqrt(layers)
        return {
            "scale_emb": shortest(metadata.own("embedding_scale", float) or 12.0),
            "scale_depth": shortest(residual * math.sqrt(layers)),
            "dim_model_base": shortest(width / logit),
        }
    if metadata.architecture == "smollm3":
        return {"no_rope_layer_interval": SMOLLM3_INTERVAL, "use_sliding_window": False, "sliding_window": None}
    if metadata.architecture != "gemma3":
        return {}
    pattern = metadata.own("attention.sliding_window_pattern", int) or GEMMA3_PATTERN
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": metadata.own("attention.sliding_window", int) or None,
        "sliding_window_pattern": pattern,
        "layer_types": ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(layers)],
        "rope_local_base_freq": shortest(metadata.own("rope.freq_base_swa", float) or 10000.0),
        "query_pre_attn_scalar": (
            width // config["num_attention_heads"] if layers == GEMMA3_27B_LAYERS else head_dim
        ),
        "final_logit_softcapping": metadata.own("final_logit_softcapping", float) or None,
    }  # fmt: skip


def _rope_scaling(metadata: Metadata, config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """The keys of ``rope_scaling``, empty where positions are plain."""
    kind = metadata.own("rope.scaling.type", str) or "none"
    longest = config["max_position_embeddings"]
    original = metadata.own("rope.scaling.original_context_length", int) or longest
    divisors = {name: _factors(metadata, f"rope_{name}.weight", head_dim) for name in ("freqs", "factors_long", "factors_short")}  # fmt: skip
    if kind == "longrope" or divisors["factors_long"]:
        long, short = divisors["factors_long"], divisors["factors_short"]
        if not long or not short:
            raise metadata.refused(
                "rope.scaling.type", "it says longrope, but the tensors rope_factors_long and _short are missing"
            )
        tempered = metadata.own("rope.scaling.attn_factor", float)
        return {
            "rope_type": "longrope", "long_factor": long, "short_factor": short,
            "original_max_position_embeddings": original, **({"attention_factor": tempered} if tempered else {}),
        }  # fmt: skip
    if divisors["freqs"]:
        return _divided(divisors["freqs"], shortest(metadata.own("rope.freq_base", float) or 1e4), longest)
    if kind == "linear":
        return {
            "rope_type": "linear",
            "factor": metadata.require(f"{metadata.architecture}.rope.scaling.factor", float),
        }
    if kind == "yarn":
        optional = {
            "attention_factor": "yarn_attn_factor", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow",
        }  # fmt: skip
        given = {key: metadata.own(f"rope.scaling.{name}", float) for key, name in optional.items()}
        return {
            "rope_type": "yarn",
            "factor": metadata.require(f"{metadata.architecture}.rope.scaling.factor", float),
            "original_max_position_embeddings": original,
            **{key: value for key, value in given.items() if value is not None},
        }
    if kind != "none":
        raise metadata.refused(f"{metadata.architecture}.rope.scaling.type", f"{kind!r} is not known")
    return {}


def _divided(factors: list[float], theta: float, longest: int) -> dict[str, Any]:
    """Divisors of the frequencies: Llama 3's where they are its, else one for each pair of channels."""
    found = np.asarray(factors)
    if (found == 1).all():
        return {}
    frequencies = theta ** -(np.arange(len(found)) / len(found))
    rotations = LLAMA3["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    share = np.clip((rotations - 1) / (LLAMA3["high_freq_factor"] - 1), 0, 1)
    factor = float(found.max())
    if np.allclose(1 / found, share + (1 - share) / factor, rtol=FACTORS_TOLERANCE, atol=0):
        return {"rope_type": "llama3", "factor": factor, **LLAMA3}
    return {
        "rope_type": "longrope", "long_factor": factors, "short_factor": factors,
        "original_max_position_embeddings": longest, "attention_factor": 1.0,
    }  # fmt: skip


def _factors(metadata: Metadata, name: str, head_dim: int) -> list[float]:
    """The numbers of a tensor that says how to rotate, empty if there is none."""
    tensor = metadata.file.tensors.get(name)
    if tensor is None:
        return []
    where = f"{metadata.file.path}, tensor {name}"
    if tensor.type.name != "f32" or len(tensor.shape) != 1 or tensor.shape[0] > head_dim:
        raise InputError(
            f"it is {tensor.type.name} {list(tensor.shape)}, not at most {head_dim} float32 numbers",
            where=where,
            fix="convert the original checkpoint again",
        )
    data = np.fromfile(metadata.file.path, np.uint8, tensor.nbytes, offset=tensor.offset)
    numbers = dequantize(tensor.type, data, where)
    if not (np.isfinite(numbers).all() and (numbers > 0).all()):
        raise InputError("its numbers are not positive", where=where, fix="convert the original checkpoint again")
    return [shortest(number) for number in numbers]


def _special_tokens(metadata: Metadata) -> dict[str, int]:
    found = {key: metadata.get(f"tokenizer.ggml.{name}_token_id", int) for name, key in SPECIAL_TOKENS.items()}
    return {key: value for key, value in found.items() if value is not None}


def _rows(metadata: Metadata, name: str) -> int:
    tensor = metadata.file.tensors.get(name)
    if tensor is None or len(tensor.shape) != 2:
        raise InputError(
            "it has no such matrix", where=f"{metadata.file.path}, tensor {name}", fix="give a whole model's file"
        )
    return tensor.shape[0]


def shortest(number: float) -> float:
    """The shortest decimal that rounds to the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(np.format_float_positional(np.float32(number), unique=True))
