"""What becomes of the key-value cache on one target: the recipe's wish, checked against the model and legality."""

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.cache.integer_cache import DECODE, cache_states, check_cache, stored_bytes
from pocketport.compress.graph import shape_of
from pocketport.compress.planning.legality import Legality
from pocketport.compress.planning.plan import CachePlan
from pocketport.compress.recipe import Recipe
from pocketport.errors import UsageError


def plan_cache(bundle: ModelBundle, recipe: Recipe, target: str, legality: Legality) -> CachePlan | None:
    """The plan of an integer cache; None where the recipe leaves it float.

    Raises:
        UsageError: the target does not take it, or the model has no cache.
        InputError: 4-bit channels are odd in number.
    """
    name = recipe.cache_for(target)
    if name == "float":
        return None
    bits = int(name.removeprefix("int"))
    check_cache(bundle, bits)
    if bits not in legality.cache.bits:
        raise UsageError(
            f"it takes no key-value cache in {bits}-bit integers: {legality.cache.why}", where=f"{target}, cache {name}",
            fix=f"write `cache: float` for it under `targets:` of the recipe {recipe.name}",
        )  # fmt: skip
    inputs = {str(v.name): v for v in bundle[DECODE].graph.graph.inputs}
    shapes = {state: shape_of(inputs[f"past_{state}"]) for state in cache_states(inputs.values())}
    return CachePlan(
        name, bits, f"cache of the recipe {recipe.name}", states=tuple(shapes),
        bytes_before=sum(stored_bytes(state, shape, 0) for state, shape in shapes.items()),
        bytes_after=sum(stored_bytes(state, shape, bits) for state, shape in shapes.items()),
    )  # fmt: skip
