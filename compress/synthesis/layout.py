"""Names and shapes of a checkpoint's tensors, from its configuration alone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pocketport.compress.families.decoder.config import DEFAULTS
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.original import RESAMPLER, TOWER, Resampler, tower_of
from pocketport.compress.families.minicpmv.published import language_config
from pocketport.compress.families.transformers_reference import imported_transformers, quiet
from pocketport.errors import InputError

SAME_TENSORS: Mapping[str, str] = {"minicpm": "llama"}  # another arithmetic over tensors of the same names and shapes


def layout_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Published tensor names and shapes, in the model's order; tied weights appear once.

    The model is built without memory (on torch's meta device), out of what the parity gates compare with: transformers'
    code, and for MiniCPM-V its parts.

    Raises:
        UsageError: transformers is not installed.
        InputError: it does not know the architecture.
    """
    with torch.device("meta"), quiet(imported_transformers()):
        if config.get("model_type") == "minicpmv":
            return _minicpmv(MiniCPMVConfig.model_validate(config))
        return _published(_model(config, (config.get("architectures") or [""])[0]))


def _minicpmv(config: MiniCPMVConfig) -> dict[str, tuple[int, ...]]:
    language = language_config(config)
    parts = {"llm": _causal(language), TOWER: tower_of(config), RESAMPLER: Resampler(config)}
    return {f"{part}.{name}": shape for part, module in parts.items() for name, shape in _shapes(module).items()}


def _causal(config: Mapping[str, Any]) -> nn.Module:
    """A language model of transformers by its ``model_type`` alone."""
    transformers = imported_transformers()
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(_settings(transformers, config))
    return model


def _model(config: Mapping[str, Any], architecture: str) -> nn.Module:
    if config.get("model_type") in SAME_TENSORS:
        return _causal(config)
    transformers = imported_transformers()
    kind = getattr(transformers, architecture, None)
    if kind is None:
        raise InputError(
            f"transformers {transformers.__version__} has no architecture {architecture!r}",
            where="preset, architectures",
            fix="install a newer transformers",
        )
    model: nn.Module = kind(_settings(transformers, config))
    return model


def _settings(transformers: Any, config: Mapping[str, Any]) -> Any:
    kind = SAME_TENSORS.get(str(config["model_type"]), config["model_type"])
    kept = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    keys = {**DEFAULTS.get(str(config["model_type"]), {}), **kept} if kind != config["model_type"] else kept
    return transformers.AutoConfig.for_model(kind, **keys)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def _published(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names as transformers writes them: those of the published checkpoints, where its modules are called otherwise."""
    from transformers.core_model_loading import revert_weight_conversion

    shapes, tensors = _shapes(model), model.state_dict()
    stored = revert_weight_conversion(model, {name: tensors[name] for name in shapes})
    return {name: tuple(tensor.shape) for name, tensor in stored.items()}
