"""Stage 2: activation statistics of every component, in one pass over the data through the whole float chain."""

from collections.abc import Mapping
from pathlib import Path

import psutil

from pocketport.calibration.capture import calibrate as run_calibration
from pocketport.calibration.statistics import Statistics
from pocketport.compress.planning.plan import Plan
from pocketport.data import load_data
from pocketport.errors import UsageError
from pocketport.stages.context import Context
from pocketport.stages.ingest import load_bundle
from pocketport.store import StageResult

STATISTICS_FILE = "statistics.npz"


def calibrate(context: Context, ingested: StageResult, plans: dict[str, Plan]) -> StageResult:
    """``statistics.npz``. Made after the plans: legality is settled, and the plans say which Hessians are needed."""
    bundle = load_bundle(ingested)
    data = load_data(bundle, context.request)
    hessians: dict[str, list[str]] = {}
    for plan in plans.values():
        for component, tensors in plan.hessians().items():
            hessians[component] = sorted({*hessians.get(component, []), *tensors})
    context.progress.start("calibrate", f"calibrate on {data.count} samples", None)
    inputs = {"bundle": ingested.digest, "data": data.fingerprint, "hessians": hessians}

    def produce(directory: Path) -> None:
        graphs = {component.name: component.graph for component in bundle}
        statistics = run_calibration(
            graphs,
            data.calibration(),
            hessians=hessians,
            progress=lambda done: context.progress.advance("calibrate", done),
        )
        statistics.save(directory / STATISTICS_FILE)

    return context.record(
        "calibrate",
        context.store.run(
            "calibrate", inputs, produce, code=("compress", "calibration"), packages=("onnxruntime", "numpy")
        ),
    )


def float_bytes(plan: Plan) -> int:
    """Bytes of all components' weights in float32: what the float chain holds at least while it calibrates."""
    return sum(component.bytes_before for component in plan)


def check_memory(plans: Mapping[str, Plan]) -> None:
    """See to it that the float chain fits into memory, before anything long begins.

    Raises:
        UsageError: it does not.
    """
    needed, free = max(map(float_bytes, plans.values())), psutil.virtual_memory().available
    if needed > free:
        raise UsageError(
            f"its float graphs hold {needed / 1e9:.1f} GB of weights at once, {free / 1e9:.1f} GB of memory are free",
            where="calibrating for targets",
            fix="write a checkpoint format (--format), which goes layer by layer, or use a machine with more memory",
        )


def load_statistics(result: StageResult) -> Statistics:
    """Open what `calibrate` made."""
    return Statistics.load(result.path / STATISTICS_FILE)
