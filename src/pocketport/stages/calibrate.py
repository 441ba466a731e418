"""Stage 2: activation statistics of every component, in one pass over the data through the whole float chain."""

from pathlib import Path

from pocketport.calibration.capture import calibrate as run_calibration
from pocketport.calibration.statistics import Statistics
from pocketport.compress.plan import Plan
from pocketport.data import load_data
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


def load_statistics(result: StageResult) -> Statistics:
    """Open what `calibrate` made."""
    return Statistics.load(result.path / STATISTICS_FILE)
