"""The plan: what will be done to every tensor of every component for one target, and why. Made before calibrating."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from pocketport.calibration.capture import Selection
from pocketport.calibration.observers import EXTREMES
from pocketport.calibration.statistics import side_by_side
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.cache.nodes import KEY
from pocketport.compress.planning.legality import Legality
from pocketport.compress.recipe import Recipe
from pocketport.compress.reconstruction.options import rounds_on_samples
from pocketport.compress.schemes import Granularity
from pocketport.errors import InputError


class TensorKind(StrEnum):
    """What a tensor is to quantization."""

    ACTIVATION = "activation"
    WEIGHT = "weight"
    TABLE = "table"
    BIAS = "bias"
    NORM = "norm"
    CONSTANT = "constant"


@dataclass(frozen=True)
class TensorPlan:
    """What happens to one tensor.

    Attributes:
        tensor: its name in the float graph.
        kind: see TensorKind.
        node: name of the node that makes an activation or computes with a constant; empty for graph inputs.
        op: that node's op type.
        scheme: scheme in force at the node.
        dtype: integer type it is written in (``uint3`` for the indices of a 3-bit palette), or ``float``.
        symmetric: zero point in the middle of the dtype.
        granularity: ``t``, ``c`` or ``b``: what shares a scale; ``p``: it has a palette.
        axis: channel dimension (``c``, ``p``) or the dimension cut in blocks (``b``).
        channel_axis: dimension of the output channels of a weight.
        block: block size, 0 if not blocked; of a palette, the output channels that share a table.
        block_scale_levels: see WeightRule.
        algorithm: of weights (``rtn``, ``mse``, ``gptq``, ``kmeans``), the observer of activations, ``product`` for int32 biases
            at s_x · s_w, ``fixed`` for encodings that are given.
        options: of the algorithm or observer.
        fixed: the range (low, high) or, for ``fixed``, (scale, zero point) that is given.
        group: activations of one group share one encoding.
        activation: activation that meets this constant at `node`: the x of s_x · s_w and of the Hessian.
        partner: for biases: the weight of the same node.
        rank: of the correction in 8 bits beside a weight; 0: it has none. See `compress.pivot.low_rank`.
        terms: for the weight of a layer whose output is added to others' which are rounded together with it: the activations
            of all of them, in the order of the graph; empty for any other. See `compress.pivot.summed_weights`.
        scaled: for an activation that is divided by a factor a channel before it is rounded: the tensor without that.
        why: the rule or legality that this comes from.
        elements: number of elements (0 where not static).
        bytes_before: stored bytes as float (constants only).
        bytes_after: stored bytes as planned, scales, zero points and tables included.
    """

    tensor: str
    kind: TensorKind
    node: str
    op: str
    scheme: str
    dtype: str
    why: str
    symmetric: bool = True
    granularity: str = "t"
    axis: int | None = None
    channel_axis: int | None = None
    block: int = 0
    block_scale_levels: int = 0
    algorithm: str = ""
    options: Mapping[str, float] = field(default_factory=dict)
    fixed: tuple[float, float] | None = None
    group: str = ""
    activation: str = ""
    partner: str = ""
    terms: tuple[str, ...] = ()
    scaled: str = ""
    rank: int = 0
    elements: int = 0
    bytes_before: int = 0
    bytes_after: int = 0

    @property
    def quantized(self) -> bool:
        """Whether it is written in integers."""
        return self.dtype != "float"

    @property
    def bits(self) -> int:
        """Of one integer; 0 for float."""
        return int(self.dtype.removeprefix("u").removeprefix("int")) if self.quantized else 0

    @property
    def on_samples(self) -> bool:
        """Whether the samples themselves decide about its integers, not statistics of them."""
        has_scales = self.quantized and self.granularity != Granularity.PALETTE
        return has_scales and rounds_on_samples(self.algorithm, self.options)

    def written_like(self, other: "TensorPlan") -> bool:
        """Whether both are for a weight of the same name in the same format, by the same algorithm."""
        return all(getattr(self, name) == getattr(other, name) for name in _WRITTEN)


_WRITTEN = (
    "tensor", "kind", "dtype", "symmetric", "granularity", "axis", "channel_axis", "block", "block_scale_levels",
    "algorithm", "options", "rank", "elements",
)  # fmt: skip


@dataclass(frozen=True)
class ComponentPlan:
    """One component's tensors, constants first in the order of their nodes, then activations in graph order."""

    component: str
    scheme: str
    tensors: tuple[TensorPlan, ...]

    @property
    def sources(self) -> dict[str, str]:
        """Scaled activations and what each is without its factors, in the float graph."""
        return {t.tensor: t.scaled for t in self.tensors if t.scaled}

    @property
    def bytes_before(self) -> int:
        """Stored bytes of the component's float constants."""
        return sum(t.bytes_before for t in self.tensors)

    @property
    def bytes_after(self) -> int:
        """The same as planned."""
        return sum(t.bytes_after for t in self.tensors)


@dataclass(frozen=True)
class CachePlan:
    """What becomes of the key-value cache; see `integer_cache`.

    Attributes:
        name: as recipes have it, ``int8`` or ``int4``.
        bits: of an integer.
        why: what this comes from.
        states: ``key_i`` and ``value_i``.
        bytes_before: of the whole cache in float32.
        bytes_after: the same in integers, ranges of values included.
    """

    name: str
    bits: int
    why: str
    states: tuple[str, ...]
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Plan:
    """What will be done for one target; `cache` is None where it stays float."""

    target: str
    recipe: str
    components: tuple[ComponentPlan, ...]
    cache: CachePlan | None = None

    def __iter__(self) -> Iterator[ComponentPlan]:
        return iter(self.components)

    def __getitem__(self, component: str) -> ComponentPlan:
        return next(c for c in self.components if c.component == component)

    @property
    def on_samples(self) -> bool:
        """Whether `apply_plan` needs the samples."""
        return any(t.on_samples for c in self.components for t in c.tensors)

    def hessians(self) -> dict[str, list[str]]:
        """component → inputs of the layers that need a full Σ xᵀx, as `calibrate` takes them."""
        wanted: dict[str, list[str]] = {}
        for component in self.components:
            sources = component.sources
            inputs = {
                t.terms or (t.activation,) for t in component.tensors
                if t.rank or t.terms or (t.algorithm == "gptq" and not t.on_samples)
            }  # fmt: skip
            names = sorted({side_by_side(sources.get(name, name) for name in together) for together in inputs})
            if names:
                wanted[component.component] = names
        return wanted

    def selection(self) -> dict[str, Selection]:
        """component → what `apply_plan` reads of its calibration, as `calibrate` takes it."""
        counting = {
            t.group for c in self for t in c.tensors
            if t.kind is TensorKind.ACTIVATION and t.group and t.fixed is None and t.algorithm != EXTREMES
        }  # fmt: skip
        found = {}
        for component in self.components:
            sources = component.sources
            quantized = [t for t in component.tensors if t.quantized and t.kind is TensorKind.ACTIVATION]
            read = {t.activation for t in component.tensors if t.kind is TensorKind.WEIGHT and t.activation}
            keys = {f"present_{s}" for s in self.cache.states if s.startswith(KEY)} if self.cache else set[str]()
            found[component.component] = Selection(
                frozenset(sources.get(name, name) for name in read | keys | {t.tensor for t in quantized}),
                frozenset(t.tensor for t in quantized if t.group in counting),
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """The document form; `from_json` reads it back."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Plan":
        """Read what `to_json` gave; InputError when it is not such a document."""
        try:
            return cls(
                document["target"], document["recipe"],
                tuple(
                    ComponentPlan(c["component"], c["scheme"], tuple(_tensor(t) for t in c["tensors"]))
                    for c in document["components"]
                ),
                _cache(document["cache"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not a plan: {error}", where="plan", fix="plan again") from error


def _tensor(document: Mapping[str, Any]) -> TensorPlan:
    fixed = document["fixed"]
    return TensorPlan(
        **{
            **document,
            "kind": TensorKind(document["kind"]),
            "fixed": None if fixed is None else tuple(fixed),
            "terms": tuple(document["terms"]),
        }
    )


def _cache(document: Mapping[str, Any] | None) -> CachePlan | None:
    return None if document is None else CachePlan(**{**document, "states": tuple(document["states"])})


def make_plan(bundle: ModelBundle, recipe: Recipe, target: str, legality: Legality) -> Plan:
    """Settle everything about `bundle` on `target` (``vendor/soc``).

    Raises:
        UsageError: a scheme that the chip does not take, with the tensor and what is legal; or an integer cache that it
            does not take, or of a model without one; or online rotations where they give nothing.
        InputError: the channels of a cache don't fill bytes.
    """
    from pocketport.compress.cache.planning import plan_cache
    from pocketport.compress.planning.components import plan_components
    from pocketport.compress.planning.rotations import check_rotations

    components = plan_components(bundle, recipe, target, legality)
    check_rotations(recipe, target, legality, components)
    return Plan(target, recipe.name, components, plan_cache(bundle, recipe, target, legality))
