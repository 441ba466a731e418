"""Names and shapes of a checkpoint's tensors, from its configuration alone."""

from collections.abc import Mapping
from typing import Any

import torch

from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.modeling import MiniCPMV
from pocketport.errors import InputError, UsageError

INSTALL = 'pip install "pocketport[llm]"'


def layout_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Published tensor names and shapes, in the model's order; tied weights appear once.

    The model is built without memory (on torch's meta device): our own modelling for MiniCPM-V, transformers' for
    everything else.

    Raises:
        UsageError: transformers is needed and not installed.
        InputError: neither knows the architecture.
    """
    with torch.device("meta"):
        model = _model(config)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if config.get("tie_word_embeddings"):
        tied |= {name for name in model.state_dict() if name.endswith("lm_head.weight")}
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def _model(config: Mapping[str, Any]) -> torch.nn.Module:
    if config.get("model_type") == "minicpmv":
        return MiniCPMV(MiniCPMVConfig.model_validate(config))
    try:
        import transformers
    except ImportError as error:
        raise UsageError("this preset needs transformers", where="synth", fix=INSTALL) from error
    architecture = (config.get("architectures") or [""])[0]
    kind = getattr(transformers, architecture, None)
    if kind is None:
        raise InputError(
            f"transformers {transformers.__version__} has no architecture {architecture!r}",
            where="preset, architectures",
            fix="install a newer transformers",
        )
    settings = transformers.AutoConfig.for_model(**{k: v for k, v in config.items() if k != "architectures"})
    model: torch.nn.Module = kind(settings)
    return model
