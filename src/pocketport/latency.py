"""What a model costs on a device that is not here: predicted latency of every component, by the better predictor there is."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketport.compiler_estimate import compiler_estimate
from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.ingest import ingest
from pocketport.diagnostics import Diagnostic, Severity
from pocketport.errors import InputError, PocketportError, ToolchainError, UsageError
from pocketport.profiles.device import DeviceProfile, find_device
from pocketport.profiles.prediction.conformal import LEVEL
from pocketport.profiles.prediction.deployed import normalized_pictures
from pocketport.profiles.prediction.estimates import simulated
from pocketport.profiles.prediction.extraction import graph_features
from pocketport.profiles.prediction.local import fitted_devices
from pocketport.profiles.prediction.parameters import parameters
from pocketport.profiles.prediction.predictors import (
    CompilerPredictor,
    GraphPredictor,
    ModelFeatures,
    Prediction,
    combined,
)
from pocketport.targets.contract import Target

SECONDS = 50.0  # wall time of reading a model and of the compiler's estimates together; then the graph speaks alone
STAND_IN = Target(
    "qualcomm", "sm8650"
)  # lowered for, whatever the chip: the mapping was fitted to estimates of this form


@dataclass(frozen=True)
class ComponentLatency:
    """Predictions of one component: the one to use, and what the graph alone says."""

    name: str
    chosen: Prediction
    graph: Prediction


@dataclass(frozen=True)
class LatencyReport:
    """Predicted latency of a model on a device.

    Attributes:
        device: its profile.
        precision: of the whole model.
        runtime: that runs it.
        components: in the bundle's order, one call each.
        diagnostics: what was put in, and why the compiler was not asked or did not answer.
    """

    device: DeviceProfile
    precision: str
    runtime: str
    components: tuple[ComponentLatency, ...]
    diagnostics: tuple[Diagnostic, ...]

    def to_json(self) -> dict[str, object]:
        """The document ``pocketport.latency/1``; with one component, its figures are at the top too."""
        listed = [{"name": c.name, **_figures(c.chosen), "graph_only": _figures(c.graph)} for c in self.components]
        return {
            "schema": "pocketport.latency/1",
            "device": self.device.name,
            "target": self.device.target,
            "precision": self.precision,
            "runtime": self.runtime,
            "level": LEVEL,
            **(_figures(self.components[0].chosen) if len(self.components) == 1 else {}),
            "components": listed,
            "diagnostics": [d.to_json() for d in self.diagnostics],
        }


def _figures(p: Prediction) -> dict[str, object]:
    return {
        "ms": p.ms, "low": p.low, "high": p.high, "predictor": p.predictor, "evidence": p.evidence, "warnings": list(p.warnings),
    }  # fmt: skip


def predict_latency(
    source: str | Path,
    device: str,
    *,
    precision: str = "float",
    runtime: str = "qnn_dlc",
    shapes: Mapping[str, Sequence[int]] | None = None,
    quick: bool = False,
) -> LatencyReport:
    """Predict the latency of every component of a float model.

    Args:
        source: whatever `ingest` takes.
        device: a phone, chip or target (see `find_device`), or a device fitted by ``pocketport devices fit``.
        precision: ``float``, ``w8a8``, ``w8a16`` or ``w4a16``.
        runtime: ``qnn_dlc``, ``qnn_context_binary``, ``onnx`` or ``tflite``.
        shapes: static shapes of ONNX inputs.
        quick: only look at the graph; the vendor's compiler is not asked.

    Raises:
        UsageError: no such device, precision or runtime; or nothing was ever measured that says something about it.
        InputError: the model cannot be read.
    """
    deadline = time.monotonic() + SECONDS
    local = fitted_devices()
    profile = local[device].profile if device in local else find_device(device)
    bundle = ingest(source, shapes=shapes, keep_rows=False)  # as deployments that were measured have it
    diagnostics: list[Diagnostic] = []
    if not bundle.components:
        raise InputError("no graph in it", where=str(source), fix="give a model with at least one component")
    found = []
    for component in bundle:
        diagnostics += [_normalized(component.name, v.name or "") for v in normalized_pictures(component.graph)]
        features = ModelFeatures(graph_features(component.graph))
        graph = GraphPredictor(local=local).predict(features, profile, precision, runtime)
        if graph is None:
            raise UsageError(
                f"nothing was measured that says how fast {profile.name} is at {precision}",
                where="--device",
                fix="measure five models on it and run `pocketport devices fit`",
            )
        chosen = graph
        if not quick:
            estimates = _estimates(bundle, component, features, profile, precision, deadline, diagnostics)
            informed = CompilerPredictor(local=local).predict(
                ModelFeatures(features.graph, estimates), profile, precision, runtime
            )
            chosen = combined(graph, informed)
        found.append(ComponentLatency(component.name, chosen, graph))
    return LatencyReport(profile, precision, runtime, tuple(found), tuple(diagnostics))


def _normalized(component: str, picture: str) -> Diagnostic:
    return Diagnostic(
        "latency.normalized-picture", Severity.NOTE, f"{component}, input {picture}",
        "predicted with the normalization of its colours inside the graph, as public classifiers are deployed and were measured",
        "nothing to do; where the host normalizes, the chip takes less",
    )  # fmt: skip


def _estimates(
    bundle: ModelBundle,
    component: Component,
    features: ModelFeatures,
    profile: DeviceProfile,
    precision: str,
    deadline: float,
    diagnostics: list[Diagnostic],
) -> dict[str, float]:
    """The compiler's figures, or a Diagnostic that says why there are none."""
    fitted = parameters()
    if profile.vendor != STAND_IN.vendor or precision not in fitted.compiler:
        return {}
    if not simulated(fitted.graph[precision], profile):
        return {}
    left = deadline - time.monotonic()
    try:
        if left < 1:
            raise ToolchainError("no time is left", where=component.name, fix="ask for fewer components")
        return compiler_estimate(bundle, component, features.graph, STAND_IN, precision, left)
    except PocketportError as error:
        diagnostics.append(
            Diagnostic(f"{STAND_IN.vendor}.no-estimate", Severity.NOTE, error.where, error.why, error.fix)
        )
        return {}
