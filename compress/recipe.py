"""Recipes: what a user wants quantized, and how, as a YAML file.

Rules are read from top to bottom, those of the target's own section last; of all rules that match a tensor's node, the
last one that sets a key wins. An empty recipe gives every component the default scheme of the target's legality.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pocketport.compress.formats.sizes import GGML_BLOCKS
from pocketport.compress.schemes import Scheme
from pocketport.errors import InputError, UsageError
from pocketport.suggest import nearest

SUFFIX = ".yaml"

ObserverName = Literal["min_max", "percentile", "mse", "entropy"]
RewriteName = Literal[
    "awq", "center_values", "equalize", "fold_gain", "reorder", "rotate", "rotate_online", "smoothquant", "split_hidden"
]
CacheName = Literal["float", "int8", "int4"]
AlgorithmName = Literal["rtn", "mse", "hqq", "gptq", "importance", "kmeans", "adaround", "brecq", "sequential_mse"]


def _scheme(text: str) -> str:
    if text in GGML_BLOCKS:
        return text
    try:
        return str(Scheme.parse(text))
    except UsageError as error:
        raise ValueError(f"{error.why}; {error.fix}") from None


SchemeText = Annotated[str, AfterValidator(_scheme)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Section):
    """What holds for the nodes that match; every pattern is a glob.

    Attributes:
        component: ``vision``, ``prefill``, ``*`` …
        op: ONNX op type.
        name: node name.
        scheme: numbers' format, e.g. ``w4b32a16``, or one of ggml's types (``q6_k``); ``float`` leaves the node alone.
        fallback: schemes tried in order where a target does not take `scheme`. Without it that is an error.
        algorithm: how weights are rounded.
        algorithm_options: the algorithm's keyword arguments.
        low_rank: rank of a correction beside the weights of linear layers, on targets that take one; 0: none.
        symmetric: in checkpoint formats, whether zero points lie in the middle of the integers; targets have their own.
        observer: how the ranges of activations are chosen.
        observer_options: the observer's keyword arguments.
    """

    component: str = "*"
    op: str = "*"
    name: str = "*"
    scheme: SchemeText | None = None
    fallback: list[SchemeText] = Field(default_factory=list)
    algorithm: AlgorithmName | None = None
    algorithm_options: dict[str, float] = Field(default_factory=dict)
    low_rank: int | None = Field(default=None, ge=0)
    symmetric: bool | None = None
    observer: ObserverName | None = None
    observer_options: dict[str, float] = Field(default_factory=dict)

    def matches(self, component: str, op: str, name: str) -> bool:
        """Whether the rule speaks about this node."""
        return fnmatchcase(component, self.component) and fnmatchcase(op, self.op) and fnmatchcase(name, self.name)


class Conditioning(_Section):
    """An exact rewrite of the float graphs before they are calibrated.

    Attributes:
        rewrite: which one.
        component: glob of the components that it changes.
        options: the rewrite's keyword arguments.
    """

    rewrite: RewriteName
    component: str = "*"
    options: dict[str, float | str] = Field(default_factory=dict)


class TargetSection(_Section):
    """What holds for one vendor, or one ``vendor/soc``.

    Attributes:
        rules: that come after the common ones.
        cache: what the key-value cache holds here; None: as for all targets.
    """

    rules: list[Rule] = Field(default_factory=list)
    cache: CacheName | None = None


class Recipe(_Section):
    """One recipe file.

    Attributes:
        version: of the format.
        name: for reports.
        description: one line on what it is for.
        conditioning: rewrites of the float graphs, in this order, for all targets.
        rules: for all targets.
        cache: what the key-value cache of a language model holds: floats, or integers of 8 or 4 bits.
        targets: vendor or ``vendor/soc`` → what holds there.
    """

    version: Literal[1] = 1
    name: str
    description: str = ""
    conditioning: list[Conditioning] = Field(default_factory=list)
    rules: list[Rule] = Field(default_factory=list)
    cache: CacheName = "float"
    targets: dict[str, TargetSection] = Field(default_factory=dict)

    def rules_for(self, target: str) -> Sequence[Rule]:
        """The common rules, then the vendor's, then those of the very chip (``vendor/soc``, an SDK is ignored)."""
        return [*self.rules, *(rule for section in self._sections(target) for rule in section.rules)]

    def cache_for(self, target: str) -> CacheName:
        """What the key-value cache holds: the chip's own section comes before the vendor's, that before the recipe."""
        own = [section.cache for section in self._sections(target) if section.cache is not None]
        return own[-1] if own else self.cache

    def _sections(self, target: str) -> Sequence[TargetSection]:
        """The vendor's, then the very chip's."""
        identity = target.partition("@")[0]
        keys = dict.fromkeys((identity.partition("/")[0], identity))
        return [self.targets[key] for key in keys if key in self.targets]


def with_rules(recipe: Recipe, target: str, rules: Sequence[Rule]) -> Recipe:
    """The recipe with further rules for one chip alone, behind all others."""
    identity = target.partition("@")[0]
    own = recipe.targets.get(identity, TargetSection())
    section = own.model_copy(update={"rules": [*own.rules, *rules]})
    return recipe.model_copy(update={"targets": {**recipe.targets, identity: section}})


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a shipped recipe by name, or a YAML file.

    Raises:
        UsageError: no such recipe or file, or a key that recipes don't have (with the nearest one).
        InputError: the file is not YAML.
    """
    text, where = _read(str(name_or_path))
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {error}", where=where, fix="correct the file") from error
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise UsageError("a recipe is a mapping of keys", where=where, fix="start it with `version: 1`")
    try:
        return Recipe.model_validate({"name": Path(where).stem, **document})
    except ValidationError as error:
        raise _explained(error, where) from error


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("pocketport.compress.recipes")
    return sorted(f.name.removesuffix(SUFFIX) for f in folder.iterdir() if f.name.endswith(SUFFIX))


def _read(name: str) -> tuple[str, str]:
    shipped = resources.files("pocketport.compress.recipes") / f"{name}{SUFFIX}"
    if "/" not in name and not name.endswith(SUFFIX):
        if shipped.is_file():
            return shipped.read_text(encoding="utf-8"), f"{name}{SUFFIX}"
        fix = f"{nearest(name, shipped_recipes())}; or give a path that ends in {SUFFIX}"
        raise UsageError(f"there is no recipe {name!r}", where="--recipe", fix=fix)
    try:
        return Path(name).read_text(encoding="utf-8"), name
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the recipe can't be read: {error}", where=name, fix="check the path") from error


def _explained(error: ValidationError, where: str) -> UsageError:
    """The first thing that is wrong, with the nearest key for one that does not exist."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = list(_model_at(first["loc"][:-1]).model_fields)
        fix = nearest(str(first["loc"][-1]), known)
        return UsageError("there is no such key", where=f"{where}, {path}", fix=fix)
    if first["type"] == "literal_error":
        choices = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        fix = nearest(str(first["input"]), choices)
        return UsageError(f"{first['input']!r} is not one of the choices", where=f"{where}, {path}", fix=fix)
    return UsageError(first["msg"], where=f"{where}, {path}", fix="correct the recipe")


def _model_at(location: Sequence[Any]) -> type[BaseModel]:
    """The section that a path of a validation error is in."""
    if "rules" in location:
        return Rule
    if "conditioning" in location:
        return Conditioning
    return TargetSection if "targets" in location else Recipe


def schema() -> Mapping[str, Any]:
    """The recipes' JSON schema, as shipped in ``recipes/recipe.schema.json``."""
    return Recipe.model_json_schema()
