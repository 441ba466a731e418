"""A finished run, opened again: the float side from the store, the quantized side from the run's own folder."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pocketport.calibration.encodings import EncodingTable
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.cache.float_cache import with_float_ends
from pocketport.compress.planning.plan import Plan
from pocketport.data import Feeds, load_data
from pocketport.errors import UsageError
from pocketport.run_document import RunDocument, TargetRecord, folder_of
from pocketport.stages.calibrate import calibrate
from pocketport.stages.condition import condition
from pocketport.stages.context import Context
from pocketport.stages.held_out import HeldOut, collect_held_out, load_held_out
from pocketport.stages.ingest import ingest, load_bundle
from pocketport.stages.quantize import load_pivot, load_plan
from pocketport.store import StageResult
from pocketport.targets.contract import Target


@dataclass(frozen=True)
class OpenedTarget:
    """What a run made for one target.

    Attributes:
        record: of the run's document.
        plan: by which the pivot was made.
        pivot: the quantized bundle; an integer cache is rounded in its graphs, which take and give floats.
        encodings: of all its tensors.
    """

    record: TargetRecord
    plan: Plan
    pivot: ModelBundle
    encodings: EncodingTable

    @classmethod
    def read(cls, directory: Path, record: TargetRecord) -> "OpenedTarget":
        """Open the target's folder; UsageError when the run never made its pivot."""
        folder = directory / folder_of(record.id) / "pivot"
        if not (folder / "plan.json").is_file():
            raise UsageError(
                "the run has no pivot for it", where=f"{directory}, {record.id}", fix="port the model again"
            )
        made = StageResult("quantize", "", folder, "", 0.0, cached=True)
        pivot = load_pivot(made)
        pivot = pivot.with_graphs({c.name: with_float_ends(c.graph) for c in pivot})
        return cls(record, load_plan(made), pivot, EncodingTable.load(folder / "encodings.npz"))


@dataclass
class OpenedRun:
    """A run and what it was made from.

    Attributes:
        context: of the run's request; its stages come from the store, or are made again.
        document: ``run.json``.
        bundle: the float graphs that were quantized.
        ingested: the stage that made them: conditioned where the recipe asks for that.
        held_out: samples that calibration did not see.
        targets: by identity.
    """

    context: Context
    document: RunDocument
    bundle: ModelBundle
    ingested: StageResult
    held_out: StageResult
    targets: dict[str, OpenedTarget]

    def samples(self, component: str) -> HeldOut:
        """Held-out samples of a component."""
        return load_held_out(self.held_out, component)

    def calibration(self) -> Iterable[tuple[str, Feeds]]:
        """The samples of all components that were calibrated on, made anew."""
        return load_data(self.bundle, self.context.request).calibration()

    def calibrated(self, plans: dict[str, Plan]) -> StageResult:
        """A calibration that keeps the Hessians that these plans need."""
        return calibrate(self.context, self.ingested, plans)


def open_run(context: Context, document: RunDocument, targets: list[str] | None) -> OpenedRun:
    """Open a run's directory, which `context` has as `out`.

    Raises:
        UsageError: it has no such target, or its source is another model now.
    """
    known = {Target.parse(t.id): t for t in document.targets}
    wanted = [Target.parse(text) for text in targets or ()] or list(known)
    if unknown := [t for t in wanted if t not in known]:
        names = ", ".join(t.id for t in document.targets)
        raise UsageError(f"the run has no target {unknown[0]}", where=str(context.out), fix=f"name one of {names}")
    ingested = condition(context, ingest(context))
    bundle = load_bundle(ingested)
    if bundle.sha256 != document.model.sha256:
        raise UsageError(
            "its source is another model now", where=f"{context.out}, {context.request.source}", fix="port it again"
        )
    opened = {known[t].id: OpenedTarget.read(context.out, known[t]) for t in dict.fromkeys(wanted)}
    return OpenedRun(context, document, bundle, ingested, collect_held_out(context, ingested), opened)
