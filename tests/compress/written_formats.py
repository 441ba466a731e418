"""From a checkpoint to a checkpoint format, without cache or command line."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pocketport.compress.blockwise.engine import quantize_weights
from pocketport.compress.families.registry import Lengths, family_of, host_of
from pocketport.compress.formats.contract import WeightPlan
from pocketport.compress.planning.weights import plan_weights
from pocketport.compress.quantized_weights import QuantizedWeight, QuantizedWeights
from pocketport.compress.recipe import Recipe
from pocketport.compress.sources.open import open_source
from pocketport.formats import format_named

LENGTH = 16


@dataclass(frozen=True)
class Written:
    """A directory in the format, the plans by tensor, and the weights that went in."""

    directory: Path
    plans: dict[str, WeightPlan]
    weights: QuantizedWeights

    def weight(self, name: str) -> QuantizedWeight:
        weight = self.weights[name]
        assert isinstance(weight, QuantizedWeight)
        return weight


def written(root: Path, folder: Path, text: str, *rules: dict[str, object], sequences: int = 0) -> Written:
    """Write the model in `folder` in a format by a recipe's rules, under `root`; calibrated on random sequences, if any."""
    source = open_source(folder)
    bundle = family_of(source).load(source, "tiny", Lengths(prompt=LENGTH, cache=32))
    form, variant = format_named(text)
    form.check(source, bundle, variant)
    plans = plan_weights(source, bundle, Recipe.model_validate({"name": "test", "rules": rules}), form, variant)
    work, directory = root / f"{text}-work", root / text
    work.mkdir(parents=True)
    directory.mkdir()
    host, random = host_of(bundle), np.random.default_rng(0)
    table = np.asarray(source.tensors["model.embed_tokens.weight"].numpy(), np.float32) if sequences else np.empty(0)
    rows = random.integers(0, len(table), (sequences, LENGTH)) if sequences else []
    feeds = {"prefill": (host.prefill_feeds(table[row], LENGTH) for row in rows)}
    planned = [p for p in plans if p.quantized]
    quantize_weights(source, bundle, planned, work, feeds=feeds if sequences else None, memory_limit=1 << 30)
    weights = QuantizedWeights(work)
    files = form.write(source, bundle, weights, directory, variant, lambda done, total: None)
    assert sorted(files) == sorted(p for p in directory.rglob("*") if p.is_file())
    return Written(directory, {p.tensor: p for p in plans}, weights)
