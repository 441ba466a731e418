"""What every backend says in the same words: a name that does not exist, an op that is not taken."""

from collections.abc import Iterable

import onnx_ir as ir

from pocketport.compress.pivot.palettes import stored_palettes
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import UsageError
from pocketport.suggest import nearest
from pocketport.targets.contract import UNNAMED, Target
from pocketport.targets.legality import Legality

UNCOUNTED = frozenset({"Constant", "QuantizeLinear", "DequantizeLinear"})


def unknown_soc(target: Target, known: Iterable[str]) -> UsageError:
    """The error for a SoC that a vendor's backend doesn't know."""
    if target.soc == UNNAMED:
        fix = f"write {target.vendor}/SOC, with one of {', '.join(sorted(known))}"
        return UsageError(f"{target.vendor} compiles for one SoC, and none is named", where="--target", fix=fix)
    return UsageError(
        f"{target.vendor} has no SoC {target.soc!r} here", where=f"target {target}", fix=nearest(target.soc, known)
    )


def check_ops(vendor: str, component: str, graph: ir.Model, legality: Legality) -> tuple[Diagnostic, ...]:
    """One ERROR for every node whose op type is not in `legality.ops`, with the legality's reason if it has one, and
    one for palettes where the legality has none.

    This is the part of `Backend.check` that follows from the legality data alone; a backend adds its own rules.
    """
    found = _check_palettes(vendor, component, graph, legality)
    for node in graph.graph.all_nodes():
        if node.op_type in UNCOUNTED or (node.op_type in legality.ops and node.domain in ("", "ai.onnx")):
            continue
        rule = legality.refused.get(node.op_type)
        name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        found.append(
            Diagnostic(
                code=f"{vendor}.unsupported-op",
                severity=Severity.ERROR,
                where=f"{component}, node {node.name or node.outputs[0].name}, op {name}",
                why=rule.why if rule else f"{name} is not among the ops tested with {legality.tested_with}",
                fix=rule.fix if rule else "replace the op in the model, or leave this target out",
            )
        )
    return tuple(found)


def _check_palettes(vendor: str, component: str, graph: ir.Model, legality: Legality) -> list[Diagnostic]:
    palettes = stored_palettes(graph.graph)
    if not palettes or legality.palettes is not None:
        return []
    names = [str(palette.indices.name) for palette in palettes.values()]
    return [
        Diagnostic(
            f"{vendor}.palettes", Severity.ERROR, f"{component}, {len(names)} weight(s): {', '.join(names[:3])}",
            "weights that are indices into tables are not taken: they would be expanded to float",
            "quantize for this target anew, with a scheme of integers",
        )
    ]  # fmt: skip
