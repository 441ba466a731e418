"""Where rotations that the device computes (`conditioning.rotate_online`) are taken, checked before anything is done."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from pocketport.compress.planning.legality import Legality
from pocketport.compress.planning.plan import ComponentPlan, TensorKind
from pocketport.compress.recipe import Recipe
from pocketport.errors import UsageError

ONLINE = "rotate_online"


def check_rotations(recipe: Recipe, target: str, legality: Legality, components: Iterable[ComponentPlan]) -> None:
    """Refuse online rotations where they would cost time and give nothing.

    Raises:
        UsageError: the target would round what is to be rotated, or the recipe rotates components with float activations.
    """
    patterns = [step.component for step in recipe.conditioning if step.rewrite == ONLINE]
    if not patterns:
        return
    where = f"{target}, conditioning {ONLINE} of recipe {recipe.name}"
    idle = [
        c.component for c in components
        if any(fnmatchcase(c.component, pattern) for pattern in patterns) and _weights_only(c)
    ]  # fmt: skip
    if idle:
        raise UsageError(
            f"activations of {', '.join(idle)} stay float, and rotating them gains nothing: with 4-bit weights in blocks"
            " of 32 alone the reference model keeps 20.8 dB with it and 21.2 without", where=where,
            fix="ask for 8-bit activations there (`scheme: w8a8`), or name the components that have them (`component`)",
        )  # fmt: skip
    if not legality.online_rotations:
        raise UsageError(
            "it does not compute in float before a layer's input is rounded, so outliers would be rounded before they"
            " are spread", where=where, fix="use the recipe for targets that do (x86), and `rotate` for this one",
        )  # fmt: skip


def _weights_only(component: ComponentPlan) -> bool:
    """Whether layers' weights are integers and no activation is."""
    quantized = {t.kind for t in component.tensors if t.quantized}
    return TensorKind.WEIGHT in quantized and TensorKind.ACTIVATION not in quantized
