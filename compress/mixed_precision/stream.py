"""A float graph layer by layer, forwards over all samples and backwards again: values and gradients out of core.

Memory holds one layer's weights; what goes from layer to layer is in `Activations`. On the way back each layer is run
again with gradients (Chen et al. 2016, arXiv 1604.06174).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.blockwise.samples import ROW_WEIGHTS
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.executors.torch_executor import Values, WeightCache, last_uses, run_nodes
from pocketport.compress.mixed_precision.route import Part, Route
from pocketport.errors import UsageError

Visit = Callable[[int, ir.Node, Tensor, Tensor], None]
"""Called with a sample, a node, its input and the gradient of its output."""

GRADIENT = "gradient of "


class Stream:
    """All samples on their way through the nodes that `wanted` needs.

    Args:
        graph: of a sample, in its static shapes and in ops of the torch executor; those of other shapes differ in nothing else.
        feeds: all samples, as `take` has them, read once; None: they are given to `take`, and then it is opened.
        wanted: values to be computed.
        activations: takes what goes from layer to layer.
        device: where it computes.

    Raises:
        UsageError: there are no samples.
    """

    def __init__(
        self, graph: Callable[[Arrays], ir.Model], feeds: Iterator[Arrays] | None, wanted: Sequence[str],
        activations: Activations, device: torch.device,
    ) -> None:  # fmt: skip
        self.activations, self.device = activations, device
        self.counting: list[Tensor | None] = []
        """Of each sample which rows count, bool [S]; None: all."""
        self._graph, self._wanted = graph, wanted
        self._by_shapes: dict[tuple[tuple[str, torch.Size], ...], Route] = {}
        self._routes: list[Route] = []
        self._parts: list[tuple[Part, ...]] = []
        self._made_with: list[bytes] = []
        if feeds is not None:
            for arrays in feeds:
                self.take(arrays)
            self.open()

    @property
    def count(self) -> int:
        """Samples."""
        return len(self.counting)

    def take(self, arrays: Arrays) -> None:
        """Another sample: its inputs, and where not all rows count their `ROW_WEIGHTS` [S]."""
        rows = arrays.get(ROW_WEIGHTS)
        self.counting.append(
            None if rows is None else torch.from_numpy(np.asarray(rows, np.float32) > 0).to(self.device)
        )
        values = {n: torch.from_numpy(np.asarray(a)) for n, a in arrays.items() if n != ROW_WEIGHTS}
        shapes = tuple((n, v.shape) for n, v in values.items())
        if shapes not in self._by_shapes:
            self._by_shapes[shapes] = Route(self._graph(arrays), self._wanted, self.activations)
        self._by_shapes[shapes].take(self.count - 1, values)

    def open(self) -> None:
        """All samples are taken.

        Raises:
            UsageError: there are none.
        """
        if not self._by_shapes:
            raise UsageError("there are no calibration samples", where="mixed precision", fix="give data")
        self._routes = list(self._by_shapes.values())
        self._parts = list(zip(*(route.opened(self.device) for route in self._routes), strict=True))

    @torch.no_grad()
    def forward(self, replaced: Mapping[str, Tensor] | None = None, samples: Sequence[int] | None = None) -> None:
        """Run every part over samples; `wanted` is in `activations` then.

        Over all samples, what the last such run computed with the same weights stays: parts run from the first one on that has
        others.

        Args:
            replaced: other weights, by the initializers' names.
            samples: which; None: all.
        """
        replaced, first = replaced or {}, 0
        if samples is None:
            known = self._made_with
            self._made_with = [_digest(parts[0], replaced) for parts in self._parts]
            first = next((i for i, d in enumerate(self._made_with) if known[i : i + 1] != [d]), len(self._parts))
        else:
            self._made_with = []
        for parts in self._parts[first:]:
            weights = _replaced(parts[0], replaced)
            for route, part in zip(self._routes, parts, strict=True):
                self._run(route, part, weights, samples)

    def _run(self, route: Route, part: Part, replaced: Mapping[str, Tensor], samples: Sequence[int] | None) -> None:
        weights = _cache(replaced, self.device)
        uses = last_uses(part.segment.nodes, set(part.gives) | route.shared.keys())
        for sample in route.among(samples):
            values = self._values(route, part, sample)
            run_nodes(part.segment.nodes, values, weights, uses)
            for name in part.gives:
                self.activations.put(name, sample, values[name])

    def backward(
        self, visited: Callable[[ir.Node], bool], visit: Visit, finished: Callable[[Part], None],
        replaced: Mapping[str, Tensor] | None = None, samples: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """Run every part again, from the last to the first; gradients of `wanted` have been put under `GRADIENT`.

        Args:
            visited: which nodes `visit` is called for.
            visit: see `Visit`; called for every sample.
            finished: called behind the last sample of a part, with that part in the shapes of one.
            replaced: other weights, by the initializers' names.
            samples: which; None: all.
        """
        for parts in reversed(self._parts):
            own = _replaced(parts[0], replaced or {})
            for route, part in zip(self._routes, parts, strict=True):
                weights = _cache(own, self.device)
                seen = [node for node in part.segment.nodes if visited(node)]
                for sample in route.among(samples):
                    self._back(route, part, sample, seen, weights, visit)
            finished(parts[0])

    def _back(
        self, route: Route, part: Part, sample: int, seen: Sequence[ir.Node], weights: WeightCache, visit: Visit
    ) -> None:
        values = self._values(route, part, sample)
        starts = [n for n in part.reads if values[n].is_floating_point()]
        values |= {name: values[name].detach().requires_grad_() for name in starts}
        with torch.enable_grad():
            run_nodes(part.segment.nodes, values, weights, {})
        known = self.activations.names(sample)
        ends = [n for n in part.gives if GRADIENT + n in known]
        given = [self.activations.get(GRADIENT + n, sample, self.device) for n in ends]
        outputs = [values[node.outputs[0].name or ""] for node in seen]
        inputs = [*outputs, *(values[n] for n in starts)]
        found = torch.autograd.grad([values[n] for n in ends], inputs, given, allow_unused=True)
        for node, gradient in zip(seen, found, strict=False):
            if gradient is not None:
                x = values[node.inputs[0].name or ""].detach()  # type: ignore[union-attr]
                visit(sample, node, x, gradient)
        for name, gradient in zip(starts, found[len(seen) :], strict=True):
            if gradient is not None:
                before = GRADIENT + name in known
                more = self.activations.get(GRADIENT + name, sample, self.device) if before else 0
                self.activations.put(GRADIENT + name, sample, gradient + more)
        for name in ends:
            self.activations.drop(GRADIENT + name, sample)

    def _values(self, route: Route, part: Part, sample: int) -> Values:
        """What a sample starts a part with."""
        return {**route.shared, **{name: self.activations.get(name, sample, self.device) for name in part.reads}}


def _replaced(part: Part, replaced: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the weights that a part has."""
    names = {v.name or "" for node in part.segment.nodes for v in node.inputs if v is not None}
    return {name: replaced[name] for name in sorted(names & replaced.keys())}


def _digest(part: Part, replaced: Mapping[str, Tensor]) -> bytes:
    """Of the weights that a part has, where they are replaced."""
    digest = hashlib.sha256()
    for name, weight in _replaced(part, replaced).items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().numpy().data)
    return digest.digest()


def _cache(replaced: Mapping[str, Tensor], device: torch.device) -> WeightCache:
    weights = WeightCache(device)
    for name, weight in replaced.items():
        weights.replace(name, weight.to(device))
    return weights
