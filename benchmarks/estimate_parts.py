"""Where the HTP compiler's estimate of a graph comes from: estimates of ever shorter parts of it.

    python benchmarks/estimate_parts.py MODEL.onnx [--precision w8a8] [--estimates 14] [--shown 8] [--unknown]

The vendor's compiler tells the time of a whole graph. The graph is cut behind one op, with all values that are still needed as outputs; the
stretch with the largest share is cut again, until `--estimates` are spent. What is shown of a stretch is how much longer the
graph takes with it: copying out what a shorter graph ends with, and what the compiler makes of it otherwise, is in it too (so it can be negative).
A single op with a large share in a graph that devices run faster is a slow form: see ``targets/qualcomm/slow_forms.py``. With ``--unknown`` what is
searched is not time but ops that the compiler has no cost for: its estimate is blind to them, and they may take very long.
"""

import argparse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pocketport.commands.console import out, table
from pocketport.compiler_estimate import compiler_estimate
from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.graph import clone_graph, static_shape
from pocketport.compress.ingest import ingest
from pocketport.compress.structure import is_float
from pocketport.errors import ToolchainError
from pocketport.latency import STAND_IN
from pocketport.profiles.prediction.deployed import normalize_pictures
from pocketport.profiles.prediction.estimates import ESTIMATE, UNCOSTED
from pocketport.profiles.prediction.extraction import graph_features

SECONDS = 600.0  # of one estimate
NEXT_TO = (0, 1, -1, 2, -2)  # where to cut instead, where the compiler refuses a part


@dataclass(frozen=True)
class Stretch:
    """Ops `first` to `last`, both counted in; the figure (such as microseconds) without and with them."""

    first: int
    last: int
    before: float
    after: float

    @property
    def share(self) -> float:
        """What there is more with these ops."""
        return self.after - self.before


@dataclass
class Parts:
    """The beginnings of one component's graph, and what the compiler says of them."""

    bundle: ModelBundle
    component: Component
    precision: str
    figure: str
    known: dict[int, float | None] = field(default_factory=dict)

    def estimate(self, last: int) -> float | None:
        """The figure of the ops up to `last`; None where the compiler refuses that part."""
        if last not in self.known:
            part = Component(self.component.name, beginning(self.component.graph, last))
            try:
                found = compiler_estimate(
                    self.bundle, part, graph_features(part.graph), STAND_IN, self.precision, SECONDS
                )
                self.known[last] = found[self.figure]
            except ToolchainError:
                self.known[last] = None
        return self.known[last]

    def stretches(self, estimates: int) -> list[Stretch]:
        """Cut where most of the time goes, the largest share first.

        Raises:
            ToolchainError: the compiler refuses the whole graph.
        """
        end = len(self.component.graph.graph) - 1
        total = self.estimate(end)
        if total is None:
            raise ToolchainError("the compiler refuses it", where=self.component.name, fix="see `pocketport inspect`")
        found = [Stretch(0, end, 0.0, total)]
        while len(self.known) <= estimates:
            widest = max((s for s in found if s.first < s.last), key=lambda s: s.share, default=None)
            cut = None if widest is None else self._cut(widest)
            if widest is None or cut is None:
                break
            middle, value = cut
            found.remove(widest)
            found += [
                Stretch(widest.first, middle, widest.before, value),
                Stretch(middle + 1, widest.last, value, widest.after),
            ]
        return sorted(found, key=lambda s: -s.share)

    def _cut(self, stretch: Stretch) -> tuple[int, float] | None:
        middle = (stretch.first + stretch.last - 1) // 2
        for at in (middle + step for step in NEXT_TO):
            if stretch.first <= at < stretch.last and (value := self.estimate(at)) is not None:
                return at, value
        return None


def beginning(graph: ir.Model, last: int) -> ir.Model:
    """A copy of a graph that ends behind op `last`: with all of its outputs till then, and all that later ops read."""
    model = clone_graph(graph)
    ops = list(model.graph)
    kept = [value for node in ops[: last + 1] for value in node.outputs]
    later = set(ops[last + 1 :])
    ends = [v for v in kept if v.is_graph_output() or (is_float(v) and any(user in later for user, _ in v.uses()))]
    model.graph.outputs[:] = ends
    RemoveUnusedNodesPass()(model)
    for value in [v for v in model.graph.inputs if not v.uses()]:
        model.graph.inputs.remove(value)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--precision", default="float")
    parser.add_argument("--estimates", type=int, default=14)
    parser.add_argument("--shown", type=int, default=8)
    parser.add_argument("--unknown", action="store_true", help="search ops without a cost, not time")
    arguments = parser.parse_args()
    bundle = ingest(arguments.model, keep_rows=False)
    for component in bundle:
        normalize_pictures(component.graph)  # once: parts that end in vectors would be, and others not
        parts = Parts(bundle, component, arguments.precision, UNCOSTED if arguments.unknown else ESTIMATE)
        found = parts.stretches(arguments.estimates)
        ops, unit = list(component.graph.graph), "ops without a cost" if arguments.unknown else "µs"
        total = next(s.after for s in found if s.last == len(ops) - 1)
        shown = table(
            f"{component.name} at {arguments.precision}: {total:,.0f} {unit}, {len(parts.known)} estimates",
            "ops",
            unit,
            "share",
            "what",
            "the last one's output",
            right=(1, 2),
        )
        for s in found[: arguments.shown]:
            kinds = Counter(node.op_type for node in ops[s.first : s.last + 1])
            names = ", ".join(f"{n} {kind}" if n > 1 else kind for kind, n in kinds.most_common(5))
            shape = static_shape(ops[s.last].outputs[0]) or ()
            shown.add_row(
                f"{s.first}–{s.last}",
                f"{s.share:,.0f}",
                f"{s.share / max(total, 1):.0%}",
                names,
                " × ".join(map(str, shape)),
            )
        out.print(shown)


if __name__ == "__main__":
    main()
