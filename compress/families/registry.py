"""Model families: which loader and which parity check a checkpoint's config.json asks for."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.families.chat import ChatFactory
from pocketport.compress.families.decoder.host import DecoderHost, Rows, prompt_rows
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError, UsageError

Pair: TypeAlias = tuple[str, str, NDArray[np.generic], NDArray[np.generic]]
"""Component, tensor, what the original computes, what the graph computes."""


@dataclass(frozen=True)
class Lengths:
    """The static lengths of a bundle's graphs; None: the family's default for the checkpoint.

    Attributes:
        prompt: tokens of a prompt.
        cache: columns of the KV cache.
        patches: image patches of one view.
    """

    prompt: int | None = None
    cache: int | None = None
    patches: int | None = None


ImageFeeds: TypeAlias = Callable[[Image.Image], Iterable[tuple[str, Arrays]]]
"""An image → components and their feeds."""


def _none(bundle: ModelBundle) -> None:
    return None


def _always(config: Mapping[str, Any]) -> bool:
    return True


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        name: the bundle's `family`.
        model_types: values of config.json's ``model_type``.
        load: Source, name and lengths → bundle; reads no weight.
        compare: the parity gate: bundle and Source → pairs of the original's outputs and the graphs'.
        accepts: a further look at config.json, where families share a ``model_type``.
        host: what the host computes for the language model of a bundle, where there is one.
        chat: answers about images, of models that do.
        image_feeds: what makes an image into the feeds of every component, of bundles that need nothing else.
        meaningful_rows: component, feeds and names of its outputs → which rows of an output are no padding; outputs
            that are not named are used whole.
        original: what the gate compares with, in words.
    """

    name: str
    model_types: tuple[str, ...]
    load: Callable[[Source, str, Lengths], ModelBundle]
    compare: Callable[[ModelBundle, Source], Iterator[Pair]]
    accepts: Callable[[Mapping[str, Any]], bool] = _always
    host: Callable[[ModelBundle], DecoderHost] | None = None
    chat: ChatFactory | None = None
    image_feeds: Callable[[ModelBundle], ImageFeeds | None] = _none
    meaningful_rows: Callable[[str, Arrays, Iterable[str]], Rows] = prompt_rows
    original: str = "transformers"


PACKAGES = ("minicpmv", "minicpmv4_6", "bert", "language", "qwen_vl", "vision", "idefics3", "whisper")


def families() -> tuple[Family, ...]:
    """Every family; each folder here has a ``family.py`` with its `FAMILY`."""
    modules = (import_module(f"pocketport.compress.families.{package}.family") for package in PACKAGES)
    return tuple(module.FAMILY for module in modules)


def family_of(source: Source) -> Family:
    """The family that a checkpoint's config.json asks for.

    Raises:
        InputError: no family knows its ``model_type``.
    """
    kind = source.config.get("model_type")
    for family in families():
        if kind in family.model_types and family.accepts(source.config):
            return family
    known = ", ".join(sorted({kind for family in families() for kind in family.model_types}))
    raise InputError(
        f"the model family {kind!r} is not known",
        where=f"{source.path}, config.json",
        fix=f"known: {known}; or export it to ONNX",
    )


def family_named(name: str) -> Family | None:
    """The family of a bundle, None for plain ONNX graphs."""
    return next((family for family in families() if family.name == name), None)


def host_of(bundle: ModelBundle) -> DecoderHost:
    """What the host computes for a bundle's language model.

    Raises:
        UsageError: it has none.
    """
    family = family_named(bundle.family)
    if family is None or family.host is None:
        raise UsageError(
            "it has no language model to calibrate with token sequences",
            where=f"bundle {bundle.name}",
            fix="use an algorithm that needs no data (rtn, mse)",
        )
    return family.host(bundle)


def chat_of(bundle: ModelBundle) -> ChatFactory | None:
    """What answers about images, over executors of the bundle's components; None for models that don't."""
    family = family_named(bundle.family)
    return family.chat if family else None


def image_feeds_of(bundle: ModelBundle) -> ImageFeeds | None:
    """What makes an image into the feeds of every component; None where images are not all that a bundle needs."""
    family = family_named(bundle.family)
    return family.image_feeds(bundle) if family else None
