"""What a search for mixed precision is given and what it finds, over a checkpoint format or over a target."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from pocketport.compress.mixed_precision.allocation import Allocation, Layer, allocate
from pocketport.compress.mixed_precision.pairs import Effects, allocate_pairs
from pocketport.compress.mixed_precision.sensitivity import MODELS, Errors
from pocketport.compress.recipe import Recipe, Rule
from pocketport.errors import UsageError
from pocketport.files import write_json, write_text

Losses = tuple[dict[str, dict[str, Errors]], dict[str, Tensor]]
"""Weight → scheme → errors, and weight → what each of its schemes does to the loss of each sample, [C, samples], where that is known."""


def save_losses(losses: Losses, folder: Path) -> None:
    """Write what `load_losses` reads."""
    errors, effects = losses
    write_json(folder / "errors.json", errors)
    arrays: dict[str, Any] = {weight: own.cpu().numpy() for weight, own in effects.items()}
    np.savez(folder / "effects.npz", **arrays)


def load_losses(folder: Path, schemes: Mapping[str, Sequence[str]]) -> tuple[dict[str, dict[str, Errors]], Effects]:
    """Errors, and effects by weight and scheme, of the weights of which they are known.

    Args:
        folder: written by `save_losses`.
        schemes: of each weight, in the order in which its effects lie.
    """
    errors: dict[str, dict[str, Errors]] = json.loads((folder / "errors.json").read_text("utf-8"))
    with np.load(folder / "effects.npz") as stored:
        return errors, {w: dict(zip(schemes[w], stored[w], strict=True)) for w in stored.files}


@dataclass(frozen=True)
class Budget:
    """What the weights may take, one of three.

    Attributes:
        bytes: of the whole model.
        bits: mean of a weight that is searched.
        ms: milliseconds in which a device reads the weights of one token, or of one run.
    """

    bytes: float | None = None
    bits: float | None = None
    ms: float | None = None

    def of_layers(self, elements: int, fixed_bytes: float) -> float:
        """Bytes for the layers that are searched.

        Args:
            elements: of their weights.
            fixed_bytes: of everything else.

        Raises:
            UsageError: everything else takes more already.
        """
        if self.bits is not None:
            return self.bits * elements / 8
        left = (self.bytes or 0.0) - fixed_bytes
        if left <= 0:
            raise UsageError(
                f"tensors that are not searched take {fixed_bytes:,.0f} bytes already",
                where=f"--budget-bytes {self.bytes:,.0f}",
                fix="give a larger budget, or --budget-bits",
            )
        return left


@dataclass(frozen=True)
class Candidate:
    """One allocation.

    Attributes:
        allocation: see `Allocation`.
        rules: the same as rules of a recipe.
        figures: what it measures where it was tried; the first one decides, less is better.
    """

    allocation: Allocation
    rules: tuple[Rule, ...]
    figures: Mapping[str, float] = field(default_factory=dict)

    def measured(self, figures: Mapping[str, float]) -> "Candidate":
        """The same with what it measures."""
        return replace(self, figures=figures)


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        layers: that were chosen for.
        errors: weight → scheme → error model → error.
        candidates: the best first.
        fixed_bytes: of what was not searched.
        recipe: from a candidate's rules to the whole recipe.
    """

    layers: tuple[Layer, ...]
    errors: Mapping[str, Mapping[str, Errors]]
    candidates: tuple[Candidate, ...]
    fixed_bytes: float
    recipe: Callable[[Sequence[Rule]], Recipe]

    @property
    def best(self) -> Candidate:
        """The best measured one."""
        return self.candidates[0]

    @property
    def elements(self) -> int:
        """Of all weights that were searched."""
        return sum(layer.elements for layer in self.layers)

    def bytes_of(self, candidate: Candidate) -> float:
        """Of the layers that were searched."""
        return sum(layer.costs[candidate.allocation.schemes[layer.name]] for layer in self.layers)

    def write(self, path: Path, what: str) -> None:
        """Write the best one's recipe.

        Args:
            path: of the YAML file; its stem is the recipe's name.
            what: the model and what it is for, for a comment.
        """
        allocation = self.best.allocation
        recipe = self.recipe(self.best.rules).model_dump(
            exclude_defaults=True, exclude={"version", "name", "description"}
        )
        head = {
            "version": 1, "name": path.stem,
            "description": f"A scheme for each layer, chosen by `pocketport search` ({allocation.model} errors).",
        }  # fmt: skip
        figures = "".join(f", {name} {value:.5g}" for name, value in self.best.figures.items())
        comment = f"# {what}: {self.bytes_of(self.best):,.0f} bytes of layers that were searched{figures}\n"
        write_text(path, comment + yaml.safe_dump({**head, **recipe}, sort_keys=False, width=120))


def candidates(
    layers: Sequence[Layer],
    errors: Mapping[str, Mapping[str, Errors]],
    budget: float,
    effects: Effects | None = None,
    alone: Mapping[str, Mapping[str, Errors]] | None = None,
) -> list[Candidate]:
    """The best allocation by each error model, and where effects are known by pairs of layers, each once.

    Args:
        layers: that are searched.
        errors: of their weights.
        budget: of all layers.
        effects: of the weights on each sample.
        alone: the errors that go with the effects, where `errors` were put right by what groups measure (their pairs are in that already).

    Raises:
        UsageError: the budget is too small.
    """
    allocations = [allocate(layers, errors, budget, model) for model in MODELS]
    if effects is not None:
        allocations.append(allocate_pairs(layers, alone or errors, effects, allocations[0], budget))
    found: dict[tuple[str, ...], Candidate] = {}
    for allocation in allocations:
        chosen = tuple(allocation.schemes[layer.name] for layer in layers)
        found.setdefault(chosen, Candidate(allocation, tuple(allocation.rules(layers))))
    return list(found.values())


def ranked(measured: Iterable[Candidate]) -> list[Candidate]:
    """By the first figure."""
    return sorted(measured, key=lambda candidate: next(iter(candidate.figures.values())))
