"""Which data each weight of a plan is rounded on: its own layer's, that of other components which have it, that of a sum."""

import hashlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from pocketport.calibration.statistics import SecondMoment, Statistics, side_by_side
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.graph import constant
from pocketport.compress.pivot.summed_weights import SummedWeights, residuals, rounding_order
from pocketport.compress.pivot.weights import QuantizedTensor, as_laid, as_matrix, quantize_weight
from pocketport.compress.planning.plan import Plan, TensorPlan
from pocketport.errors import InputError

Weight = NDArray[np.float32]
Twin = tuple[str, TensorPlan]
"""A component and its plan of a weight."""


class WeightRounding:
    """Rounds the weights of a plan one by one, a component's in the order of `ordered`.

    Args:
        bundle: float graphs, inputs scaled as the plan has it.
        plan: of them.
        statistics: of their calibration.
        factors: of scaled inputs, see `input_factors`.
        known: remembers weights from one plan to the next.
    """

    def __init__(
        self, bundle: ModelBundle, plan: Plan, statistics: Statistics, factors: Mapping[str, NDArray[np.float64]],
        known: MutableMapping[str, QuantizedTensor] | None,
    ) -> None:  # fmt: skip
        self._bundle, self._plan, self._statistics = bundle, plan, statistics
        self._factors, self._known = factors, known
        self._rounded: dict[str, QuantizedTensor] = {}
        self._sums: dict[tuple[str, tuple[str, ...]], SummedWeights] = {}

    def ordered(self, component: str, tensors: Sequence[TensorPlan]) -> list[TensorPlan]:
        """A component's tensors, but those of each sum in the order in which they must be rounded."""
        result = list(tensors)
        for terms in {t.terms: None for t in tensors if t.terms}:
            places = [place for place, tensor in enumerate(tensors) if tensor.terms == terms]
            by_term = {tensors[place].activation: tensors[place] for place in places}
            for place, term in zip(places, self._order(component, terms), strict=True):
                result[place] = by_term[terms[term]]
        return result

    def round(
        self, component: str, tensor: TensorPlan, real: Weight, least: NDArray[np.float64] | None
    ) -> QuantizedTensor:
        """The same weight in several components is rounded once, on the data of them all.

        Each component counts alike: decode's few rows make every token but the first.

        Args:
            component: where the weight is.
            tensor: its plan.
            real: as it lies in the graph.
            least: [channels], see `WeightProblem.least_scale`.

        Raises:
            InputError: see `quantize_weight`; or calibration lacks the moments of a sum.
        """
        twins = [(component, tensor), *self.twins(component, tensor, real)]
        keys = sorted(f"{name}/{twin.tensor}" for name, twin in twins)
        if least is None and keys[0] in self._rounded:
            return self._rounded[keys[0]]
        if tensor.terms:
            done = self._term(keys, twins, real, least)
        else:
            moment = self._moment([f"{name}/{twin.activation}" for name, twin in twins])
            done = self._round(keys, real, tensor, moment, least)
        if least is None and len(keys) > 1:
            self._rounded[keys[0]] = done
        return done

    def twins(self, component: str, tensor: TensorPlan, real: Weight) -> Iterator[Twin]:
        """The weights of other components that have the same name, plan and values."""
        for other in self._plan:
            for twin in other.tensors if other.component != component else ():
                if twin.written_like(tensor):
                    value = self._bundle[other.component].graph.graph.initializers.get(twin.tensor)
                    values = constant(value)
                    if values is not None and np.array_equal(values, real):
                        yield other.component, twin

    def _moment(self, keys: Sequence[str]) -> SecondMoment | None:
        """The mean of what calibration saw under these keys, as far as it has them."""
        moments = [m.mean() for key in keys if (m := self._statistics.moments.get(key)) is not None]
        return reduce(SecondMoment.merged, moments) if moments else None

    def _term(
        self, keys: Sequence[str], twins: Sequence[Twin], real: Weight, least: NDArray[np.float64] | None
    ) -> QuantizedTensor:
        """One weight of a sum, which makes up for those before it."""
        component, tensor = twins[0]
        key = component, tensor.terms
        if key not in self._sums:
            self._sums[key] = self._summed(twins)
        together = self._sums[key]
        place = tensor.terms.index(tensor.activation)
        wanted = together.wanted(place, as_matrix(real, tensor))
        done = self._round(keys, as_laid(wanted, tensor), tensor, together.moment(place), least)
        together.rounded(place, wanted - as_matrix(done.encoding.dequantize(done.integers), tensor))
        if not together.later(place):
            del self._sums[key]  # its moments are large
        return done

    def _summed(self, twins: Sequence[Twin]) -> SummedWeights:
        component, tensor = twins[0]
        moment = self._moment([f"{name}/{side_by_side(twin.terms)}" for name, twin in twins])
        if moment is None:
            raise InputError(
                f"it is rounded together with others, and calibration did not see {side_by_side(tensor.terms)}",
                where=f"tensor {component}/{tensor.tensor}", fix="calibrate with the `hessians` of this plan",
            )  # fmt: skip
        widths = [len(self._statistics.moments[f"{component}/{x}"].diagonal) for x in tensor.terms]
        return SummedWeights(residuals(moment, widths, self._order(component, tensor.terms)))

    def _order(self, component: str, terms: Sequence[str]) -> list[int]:
        """Of the terms of a sum; by the inputs of the float model, so that all schemes have the same."""
        sources = self._plan[component].sources
        return rounding_order([self._statistics.moments[f"{component}/{sources.get(x, x)}"] for x in terms])

    def _round(
        self, keys: Sequence[str], real: Weight, tensor: TensorPlan, moment: SecondMoment | None,
        least: NDArray[np.float64] | None,
    ) -> QuantizedTensor:  # fmt: skip
        if self._known is None:
            return quantize_weight(real, tensor, moment, least)
        factors = self._factors.get(f"{keys[0].partition('/')[0]}/{tensor.activation}")
        own = real if tensor.terms else None  # of a sum it depends on how the others were rounded
        bounds = [hashlib.sha256(v.tobytes()).hexdigest() for v in (least, factors, own) if v is not None]
        key = f"{keys} {tensor} {bounds}"
        if key not in self._known:
            self._known[key] = quantize_weight(real, tensor, moment, least)
        return self._known[key]
