"""The other side of the parity gate for models that transformers has: its own code, over the published tensors.

General to every kind of model: nothing here knows what a decoder or a vision tower is.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from pocketport.compress.sources.source import Source
from pocketport.errors import InputError, UsageError

NOT_STORED = ("*.rotary_emb.inv_freq", "*.position_ids")  # buffers that older checkpoints carry; they are computed


def transformers_model(
    source: Source, auto_class: str, *, ignored: Sequence[str] = NOT_STORED, absent: Sequence[str] = ()
) -> nn.Module:
    """The model that ``config.json`` describes, in transformers' own code, float32, in evaluation mode.

    Published names become module names by transformers' own rules, and every name must be met: a tensor that has no
    place, or a parameter that stays without one, is an error. No code comes from the checkpoint.

    Args:
        source: the published model; float tensors are read as float32, whole.
        auto_class: ``AutoModelForCausalLM``, ``AutoModelForImageTextToText``, ``AutoModel``, ...
        ignored: patterns (fnmatch) of tensors that need no place.
        absent: patterns of parameters that the checkpoint need not have (a part that the caller does not run).

    Raises:
        UsageError: transformers is not installed, or has no such model.
        InputError: names do not match, or the configuration is refused.
    """
    transformers = imported_transformers()
    tensors = {
        name: torch.from_numpy(tensor.numpy())
        for name, tensor in source.tensors.items()
        if not any(fnmatch(name, pattern) for pattern in ignored)
    }
    with quiet(transformers):
        config = _config(transformers, source)
        try:
            with torch.device("meta"):
                kind = type(getattr(transformers, auto_class).from_config(config, trust_remote_code=False))
            model, report = kind.from_pretrained(
                None, config=config, state_dict=tensors, output_loading_info=True, attn_implementation="eager",
                dtype=torch.float32,
            )  # fmt: skip
        except (ValueError, KeyError, RuntimeError, AttributeError) as error:
            raise InputError(
                f"transformers refuses it: {error}",
                where=str(source.path),
                fix="give the config.json that belongs to this checkpoint",
            ) from error
    _check_names(report, absent, source)
    model.eval()
    result: nn.Module = model
    return result


def _check_names(report: Mapping[str, Any], absent: Sequence[str], source: Source) -> None:
    missing = [n for n in report["missing_keys"] if not any(fnmatch(n, p) for p in absent)]
    kinds = (
        ("misses", missing),
        ("has no place for", report["unexpected_keys"]),
        ("expects another shape of", report["mismatched_keys"]),
    )
    for kind, names in kinds:
        for name in sorted(map(str, names)):
            raise InputError(
                f"transformers {kind} {name}",
                where=str(source.path),
                fix="give the whole checkpoint with its own config.json",
            )


def _config(transformers: Any, source: Source) -> Any:
    keys = {k: v for k, v in source.config.items() if k not in ("quantization_config", "auto_map", "model_type")}
    kind = source.config["model_type"]
    try:
        return transformers.AutoConfig.for_model(kind, **keys)
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"transformers {transformers.__version__} does not take this configuration of {kind!r}: {error}",
            where=f"{source.path}, config.json",
            fix="the parity gate needs a model that transformers has",
        ) from error


def imported_transformers() -> Any:
    """The package; UsageError when it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "transformers is not installed",
            where="parity gate and synthetic checkpoints",
            fix='pip install "pocketport[llm]"',
        ) from error
    return transformers


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """No progress bars, no advice and no load report: names are checked here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
