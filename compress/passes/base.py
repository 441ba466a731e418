"""Passes: small graph rewrites with checked pre- and postconditions. One pass, one file."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from pocketport.errors import PocketportError, VerificationError


@dataclass(frozen=True)
class PassResult:
    """The graph after a pass, and whether the pass changed it."""

    graph: ir.Model
    modified: bool


class Pass(ABC):
    """A callable graph rewrite. `rewrite` may change the model it is given in place; callers who keep theirs clone it."""

    @property
    def name(self) -> str:
        """The class name, for messages."""
        return type(self).__name__

    def requires(self, graph: ir.Model) -> None:  # noqa: B027
        """Check the precondition: raise a PocketportError when `graph` can't be rewritten."""

    @abstractmethod
    def rewrite(self, graph: ir.Model) -> PassResult:
        """Do the work."""

    def ensures(self, graph: ir.Model) -> None:  # noqa: B027
        """Postcondition: raise a PocketportError when the result is not what the pass promises."""

    def __call__(self, graph: ir.Model) -> PassResult:
        """Check, rewrite, check. The interface (names of inputs and outputs) must survive every pass."""
        self.requires(graph)
        before = _interface(graph)
        result = self.rewrite(graph)
        if _interface(result.graph) != before:
            raise VerificationError(
                f"it changed the graph's inputs or outputs from {before} to {_interface(result.graph)}",
                where=f"pass {self.name}", fix="report this as a bug with the model",
            )  # fmt: skip
        self.ensures(result.graph)
        return result


def _interface(graph: ir.Model) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    return tuple(v.name for v in graph.graph.inputs), tuple(v.name for v in graph.graph.outputs)


def run_passes(graph: ir.Model, passes: Sequence[Pass], *, rounds: int = 1) -> PassResult:
    """Apply passes in order, and all of them again while any changed something, at most `rounds` times."""
    modified = False
    for _ in range(rounds):
        changed = False
        for step in passes:
            try:
                result = step(graph)
            except (PocketportError, MemoryError):
                raise
            except Exception as error:
                raise VerificationError(
                    f"it failed: {type(error).__name__}: {error}",
                    where=f"pass {step.name}",
                    fix="report this as a bug with the model",
                ) from error
            graph, changed = result.graph, changed or result.modified
        modified = modified or changed
        if not changed:
            break
    return PassResult(graph, modified)
