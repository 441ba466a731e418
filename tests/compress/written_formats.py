"""From a checkpoint to a checkpoint format, without cache or command line."""

from dataclasses import dataclass
from pathlib import Path

from pocketport.compress.blockwise.engine import quantize_weights
from pocketport.compress.families.registry import Lengths, family_of
from pocketport.compress.formats.contract import WeightPlan
from pocketport.compress.planning.weights import plan_weights
from pocketport.compress.quantized_weights import QuantizedWeight, QuantizedWeights
from pocketport.compress.recipe import Recipe
from pocketport.compress.sources.open import open_source
from pocketport.formats import format_named


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


def written(root: Path, folder: Path, text: str, *rules: dict[str, object]) -> Written:
    """Write the model in `folder` in a format by a recipe's rules, under `root`."""
    source = open_source(folder)
    bundle = family_of(source).load(source, "tiny", Lengths(prompt=16, cache=32))
    form, variant = format_named(text)
    form.check(source, bundle, variant)
    plans = plan_weights(source, bundle, Recipe.model_validate({"name": "test", "rules": rules}), form, variant)
    work, directory = root / f"{text}-work", root / text
    work.mkdir(parents=True)
    directory.mkdir()
    quantize_weights(source, bundle, [p for p in plans if p.quantized], work, memory_limit=1 << 30)
    weights = QuantizedWeights(work)
    files = form.write(source, bundle, weights, directory, variant, lambda done, total: None)
    assert sorted(files) == sorted(p for p in directory.rglob("*") if p.is_file())
    return Written(directory, {p.tensor: p for p in plans}, weights)
