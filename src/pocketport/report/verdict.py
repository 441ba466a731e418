"""A finished run against a budget."""

from pathlib import Path

from pocketport.profiles.budget import Budget, default_budget, load_budget
from pocketport.profiles.gate import gate
from pocketport.profiles.measurement import Measurement, Provenance, ProvenanceKind
from pocketport.profiles.units import format_quantity
from pocketport.report.requests import request_figures
from pocketport.run_document import CheckRecord, RunDocument, TargetRecord, VerdictRecord
from pocketport.targets.contract import Target

DEFAULT_BUDGET = "default"


def read_budget(name: str) -> Budget:
    """``default`` or a file."""
    return default_budget() if name == DEFAULT_BUDGET else load_budget(Path(name))


def gate_document(document: RunDocument, budget: Budget, directory: Path) -> VerdictRecord:
    """Hold a run's figures, and those of the budget's requests, against a budget; `directory` is the run's."""
    figures = {t.id: run_figures(t) for t in document.targets}
    requests = request_figures(document, budget, figures, directory)
    verdict = gate(budget, {str(Target.parse(name)): known for name, known in figures.items()}, requests)
    checks = [
        CheckRecord(
            target=c.target, scenario=c.scenario, name=c.name, limit=format_quantity(c.limit, c.unit), value=c.value, unit=c.unit,
            shown="–" if c.value is None else format_quantity(c.value, c.unit), provenance=c.provenance or "", status=c.status.value,
            hard=c.hard, reason=c.reason,
        )
        for c in verdict.checks
    ]  # fmt: skip
    return VerdictRecord(status=verdict.status.value, checks=checks)


def run_figures(target: TargetRecord) -> dict[str, Measurement]:
    """All that a budget may speak about: profile figures, score drop, offload share."""
    figures = {
        m.name: Measurement(m.name, m.value, m.unit, Provenance(ProvenanceKind(m.provenance), m.detail), m.low, m.high)
        for m in (target.profile.measurements if target.profile else [])
    }
    if target.task:
        drop = 100 * (target.task.float_value - target.task.value)
        detail = f"{target.task.engine}, n = {target.task.n}"
        figures["score_drop"] = Measurement(
            "score_drop", drop, "points", Provenance(ProvenanceKind(target.task.provenance), detail)
        )
    offloads = [c.offload for c in target.components if c.offload]
    if offloads and len(offloads) == len(target.components):
        share = sum(o.npu_ops for o in offloads) / max(1, sum(o.total_ops for o in offloads))
        source = Provenance(ProvenanceKind.PREDICTED, offloads[0].source)
        figures["npu_offload"] = Measurement("npu_offload", share, "share", source)
    return figures
