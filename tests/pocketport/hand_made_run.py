"""A finished run that nobody has to wait for: float graphs as the pivot, onnxruntime's artifacts, figures given."""

import shutil
from pathlib import Path
from typing import Any

from pocketport.compress.bundle import ModelBundle
from pocketport.files import sha256_path, size_of, write_json
from pocketport.run_document import (
    ArtifactRecord,
    ComponentRecord,
    MeasurementRecord,
    MemoryPoint,
    ModelComponent,
    ModelRecord,
    ProfileRecord,
    RunDocument,
    TargetRecord,
    VerdictRecord,
)
from pocketport.targets.contract import CompileRequest, Target
from pocketport.targets.registry import backend_for


def measurement(name: str, value: float, unit: str, provenance: str) -> MeasurementRecord:
    """Without a spread."""
    return MeasurementRecord(name=name, value=value, unit=unit, provenance=provenance, detail="given")  # type: ignore[arg-type]


def profile(components: list[str], provenance: str, ms: float) -> ProfileRecord:
    """Every call of every component takes `ms`."""
    figures = [measurement(f"{name}_latency", ms, "ms", provenance) for name in components]
    figures += [
        measurement("peak_memory", 4e8, "bytes", provenance),
        measurement("artifact_size", 2e7, "bytes", "measured"),
    ]
    figures.append(measurement("time_to_first_token", 1.0, "ms", provenance))  # of the run's own request
    steps = [MemoryPoint(phase="language", step=step, bytes=size) for step, size in (("prefill", 900), ("decode", 700))]
    return ProfileRecord(device="given", measurements=figures, memory=steps)


def write_run(directory: Path, bundle: ModelBundle) -> Path:
    """``run.json``, the pivot and artifacts of the target ``x86``; gives `directory`."""
    target, folder = Target.parse("x86"), directory / "x86"
    bundle.save(folder / "pivot" / "bundle")
    records = []
    for name in bundle.components:
        work = directory / "work" / name
        work.mkdir(parents=True)
        lowered = backend_for(target).lower(
            CompileRequest(name, folder / "pivot" / "bundle" / f"{name}.onnx", target, work, work)
        )
        path = folder / name / f"{name}.onnxruntime"
        shutil.copytree(lowered.paths["onnx"], path)
        artifact = ArtifactRecord(
            path=path.relative_to(directory).as_posix(),
            kind="onnx",
            bytes=size_of(path),
            sha256=sha256_path(path),
            primary=True,
        )
        records.append(ComponentRecord(name=name, scheme="float", pivot_bytes=1, artifacts=[artifact]))
    shutil.rmtree(directory / "work")
    write_document(directory, bundle, [
        TargetRecord(id="x86", status="ok", components=records, profile=profile(list(bundle.components), "measured", 10.0))
    ])  # fmt: skip
    return directory


def write_document(directory: Path, bundle: ModelBundle, targets: list[TargetRecord]) -> None:
    """``run.json``."""
    components = [ModelComponent(name=name, parameters=1, macs=1, bytes=4) for name in bundle.components]
    model = ModelRecord(
        name=bundle.name, family=bundle.family, sha256=bundle.sha256, parameters=1, components=components
    )
    fields: dict[str, Any] = {"recipe": "default", "environment": {}, "verdict": VerdictRecord(status="none")}
    document = RunDocument(model=model, targets=targets, **fields)
    write_json(directory / "run.json", document.model_dump(by_alias=True))
