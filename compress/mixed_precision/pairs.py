"""Errors of layers that meet each other: the best allocation by what layers lose alone, and by what pairs of them lose together.

To second order an allocation loses ½ Σₖ (Σ e)², with e = ⟨G, ΔW⟩ of each layer in sample k (`sensitivity`): one term a layer,
and one for each pair of layers, more where their errors meet and less where they cancel. A pair's term is the correlation
of its effects over the samples times the root of what both lose alone. Few samples know correlations badly, so that they are
shrunk towards none by as much as their own variances say (Schäfer and Strimmer 2005, doi 10.2202/1544-6115.1175): over the
reference model's layers to 0.07 of themselves with 96 images, 0.3 with 768 and 0.56 with 2,768.

The knapsack with terms for pairs has no quick exact solution. From a start two layers at a time change their schemes while
that gains anything; then some layers of the best solution are drawn anew, and so on (iterated local search, Lourenço, Martin
and Stützle 2003, doi 10.1007/0-306-48056-5_11).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketport.compress.mixed_precision.allocation import Allocation, Layer
from pocketport.compress.mixed_precision.knapsack import SLACK, Options, undominated
from pocketport.compress.mixed_precision.sensitivity import LOSS, Errors

PAIRS = "pairs"
RESTARTS = 100
DRAWN = 4  # layers at a time
ROWS = 64  # of a matrix of pairs, gone through at a time

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
Effects = Mapping[str, Mapping[str, NDArray[np.floating[Any]]]]
"""Weight → scheme → what it does to the loss of each sample, signed: ⟨G, ΔW⟩."""


def allocate_pairs(
    layers: Sequence[Layer], errors: Mapping[str, Mapping[str, Errors]], effects: Effects, start: Allocation, budget: float
) -> Allocation:  # fmt: skip
    """The best allocation found, no worse than `start` by this measure.

    Args:
        layers: see `allocate`.
        errors: what each weight loses alone, by the loss.
        effects: see `Effects`; of the same samples for every weight.
        start: within the budget.
        budget: in the unit of the layers' costs.
    """
    choices = Choices.of(layers, [_kept(layer, errors, start.schemes[layer.name]) for layer in layers], errors, effects)
    return choices.allocation(PAIRS, choices.best(choices.places(start.schemes), budget))


@dataclass(frozen=True)
class Choices:
    """What layers may become, and what that loses.

    Attributes:
        names: the layer and the scheme of each, C of them.
        owners: places of their layers, [C].
        costs: [C].
        matrix: see `losses`, [C, C].
    """

    names: Sequence[tuple[str, str]]
    owners: Places
    costs: Floats
    matrix: Floats

    @classmethod
    def of(
        cls, layers: Sequence[Layer], schemes: Sequence[Sequence[str]], errors: Mapping[str, Mapping[str, Errors]], effects: Effects
    ) -> "Choices":  # fmt: skip
        """Some schemes of each layer; the other arguments are those of `allocate_pairs`."""
        every = [
            (i, layer, scheme) for i, (layer, own) in enumerate(zip(layers, schemes, strict=True)) for scheme in own
        ]
        owners = np.array([i for i, _, _ in every])
        alone = np.array([layer.error(errors, scheme, LOSS) for _, layer, scheme in every], np.float64)
        together = [
            np.sum([_scaled(effects[w][scheme], errors[w][scheme][LOSS]) for w in layer.weights], axis=0)
            for _, layer, scheme in every
        ]
        costs = np.array([layer.costs[scheme] for _, layer, scheme in every], np.float64)
        names = [(layer.name, scheme) for _, layer, scheme in every]
        return cls(names, owners, costs, losses(alone, np.stack(together), owners))

    def places(self, schemes: Mapping[str, str]) -> Places:
        """Of an allocation's choices, one a layer."""
        return np.array([i for i, (layer, scheme) in enumerate(self.names) if schemes[layer] == scheme])

    def allocation(self, model: str, chosen: Places) -> Allocation:
        """Of one choice a layer."""
        schemes = dict(self.names[i] for i in chosen)
        return Allocation(model, schemes, float(self.costs[chosen].sum()), self.loss(chosen))

    def loss(self, chosen: Places) -> float:
        """Of one choice a layer."""
        return float(self.matrix[np.ix_(chosen, chosen)].sum())

    def changes(self, chosen: Places) -> Floats:
        """What each of the choices, in the place of its layer's, adds to what an allocation loses, [C]."""
        met = self.matrix[:, chosen]
        lost = 2 * (met.sum(1) - met[np.arange(len(self.owners)), self.owners]) + self.matrix.diagonal()
        found: Floats = lost - lost[chosen[self.owners]]
        return found

    def best(self, start: Places, budget: float) -> Places:
        """The best allocation found within the budget, no worse than one that is."""
        search = _Search(self, budget)
        generator = np.random.default_rng(0)
        best = search.descended(start)
        for _ in range(RESTARTS):
            found = search.descended(search.drawn(best, generator))
            if self.loss(found) < self.loss(best):
                best = found
        return best


def _kept(layer: Layer, errors: Mapping[str, Mapping[str, Errors]], own: str) -> list[str]:
    """Its schemes that no other one beats in both, and its own."""
    names = list(layer.costs)
    costs = np.array([layer.costs[s] for s in names], np.float64)
    best = undominated(Options(costs, np.array([layer.error(errors, s, LOSS) for s in names], np.float64)))
    return list(dict.fromkeys([*(names[i] for i in best), own]))


def _scaled(effects: NDArray[np.floating[Any]], loss: float) -> Floats:
    """So that half the sum of their squares is the loss."""
    own = np.asarray(effects, np.float64)
    size = float(np.square(own).sum()) / 2
    return own * np.sqrt(loss / size) if size > 0 else own


def losses(alone: Floats, effects: Floats, owners: Places) -> Floats:
    """The matrix [C, C] of which the entries of an allocation's choices sum up to what it loses.

    Args:
        alone: of every layer in every scheme, [C].
        effects: of them, sample by sample, [C, samples].
        owners: the layer of each, [C].
    """
    samples = effects.shape[1]
    sizes = np.sqrt(np.square(effects).mean(1, keepdims=True))
    normed = np.divide(effects, sizes, out=np.zeros_like(effects), where=sizes > 0)
    correlations = normed @ normed.T / samples
    variances = (np.square(normed) @ np.square(normed).T / samples - np.square(correlations)) / max(samples - 1, 1)
    others = owners[:, None] != owners
    known = float(np.square(correlations[others]).sum())
    kept = max(0.0, 1 - float(variances[others].sum()) / known) if known > 0 and samples > 1 else 0.0
    roots = np.sqrt(alone)
    found: Floats = kept * correlations * roots[:, None] * roots * others
    np.fill_diagonal(found, alone)
    return found


class _Search:
    """Iterated local search over one choice a layer."""

    def __init__(self, choices: Choices, budget: float) -> None:
        self._choices, self._budget = choices, budget * (1 + SLACK)

    def drawn(self, chosen: Places, generator: np.random.Generator) -> Places:
        """Some layers drawn anew, and then others, one after the other, made as cheap as can be until all fit."""
        drawn, owners, costs = chosen.copy(), self._choices.owners, self._choices.costs
        for layer in generator.permutation(len(chosen))[:DRAWN]:
            drawn[layer] = generator.choice(np.flatnonzero(owners == layer))
        for layer in generator.permutation(len(chosen)):
            if costs[drawn].sum() <= self._budget:
                break
            own = np.flatnonzero(owners == layer)
            drawn[layer] = own[np.argmin(costs[own])]
        return drawn

    def descended(self, start: Places) -> Places:
        """With one or two layers at a time changed, whichever gain most within the budget, while that gains anything."""
        choices, chosen = self._choices, start.copy()
        owners, crossed = choices.owners, self._crossed(start)
        diagonal = np.arange(len(owners))
        while True:
            gains, costs = choices.changes(chosen), choices.costs - choices.costs[chosen[owners]]
            crossed[diagonal, diagonal] = -gains  # one layer alone may change too, which adds its gain once
            best, first, second = self._best_pair(gains, costs, crossed, self._budget - choices.costs[chosen].sum())
            if not best < -SLACK * abs(choices.loss(chosen)):
                return chosen
            chosen[owners[first]], chosen[owners[second]] = first, second
            self._cross(crossed, chosen, (owners[first], owners[second]))

    @staticmethod
    def _best_pair(gains: Floats, costs: Floats, crossed: Floats, room: float) -> tuple[float, int, int]:
        """The least that two choices add together, and which; or one, twice. Pairs are gone through as a cache holds them."""
        found = []
        for start in range(0, len(gains), ROWS):
            rows = slice(start, start + ROWS)
            changes = np.add.outer(gains[rows], gains[start:])
            changes += crossed[rows, start:]
            taken = np.add.outer(costs[rows], costs[start:])
            np.fill_diagonal(taken, costs[rows])
            np.putmask(changes, taken > room, np.inf)
            first, second = divmod(int(np.argmin(changes)), changes.shape[1])
            found.append((float(changes[first, second]), start + first, start + second))
        return min(found)

    def _crossed(self, chosen: Places) -> Floats:
        """What two choices add together beyond what each of them adds, [C, C]; two of one layer there can't be."""
        matrix, owners = self._choices.matrix, self._choices.owners
        present = chosen[owners]
        crossed: Floats = 2 * (matrix - matrix[:, present] - matrix[present] + matrix[np.ix_(present, present)])
        crossed[owners[:, None] == owners] = np.inf
        return crossed

    def _cross(self, crossed: Floats, chosen: Places, layers: Iterable[int]) -> None:
        """The same again in place, where some layers have another choice now."""
        matrix, owners = self._choices.matrix, self._choices.owners
        present = chosen[owners]
        for layer in layers:
            own, now = owners == layer, chosen[layer]
            rows = 2 * (matrix[own] - matrix[own][:, present] - matrix[now] + matrix[now, present])
            rows[:, own] = np.inf
            crossed[own], crossed[:, own] = rows, rows.T
