"""Two predictors of latency behind one interface: from the graph alone, and from the vendor compiler's own estimate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from pocketport.compress.schemes import Scheme
from pocketport.errors import UsageError
from pocketport.profiles.device import DeviceProfile
from pocketport.profiles.measurement import Measurement, Provenance, ProvenanceKind
from pocketport.profiles.prediction.conformal import widened
from pocketport.profiles.prediction.devices import borrowed
from pocketport.profiles.prediction.estimates import UNCOSTED, certain, estimate_work, simulated
from pocketport.profiles.prediction.features import GraphFeatures, Kind
from pocketport.profiles.prediction.likeness import description
from pocketport.profiles.prediction.local import LOCAL, LocalDevice
from pocketport.profiles.prediction.parameters import Anchors, Model, Parameters, parameters
from pocketport.profiles.prediction.roofline import WIDTHS, Factors, Floats, Work, milliseconds

PRECISIONS = tuple(WIDTHS)
RUNTIMES = ("qnn_dlc", "qnn_context_binary", "onnx", "tflite")
BORROWED = {"w4a16": "w8a16"}  # too few measured graphs of its own: the other's rates, its own bytes
BORROWED_SPREAD = 0.3  # log half-width that borrowing rates adds
RARE = 0.05  # ops in fewer of the fitted models are unlike anything measured
WIDE = 1.5  # how much wider, in logarithms, the interval of such a graph is
SAME = {"Gemm": "MatMul"}  # ops that are one kernel, under the name that the measured models have
TOLD = 0.02  # shares of predicted time that are not worth a warning


@dataclass(frozen=True)
class ModelFeatures:
    """What is known of a model: its graph, and by name what the vendor's compiler estimated."""

    graph: GraphFeatures
    estimates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """Latency of one call.

    Attributes:
        ms: milliseconds.
        low: 5 % of the measurements of unseen models lie below.
        high: 5 % lie above.
        predictor: who spoke, ``graph`` or ``compiler``.
        evidence: what it is made from, and how well that held.
        warnings: what it is likely wrong about.
    """

    ms: float
    low: float
    high: float
    predictor: str
    evidence: str
    warnings: tuple[str, ...] = ()

    def measurement(self, name: str) -> Measurement:
        """As a figure of a report."""
        detail = "; ".join((self.evidence, *self.warnings))
        return Measurement(
            name, self.ms, "ms", Provenance(ProvenanceKind.PREDICTED, detail), low=self.low, high=self.high
        )


class Predictor(Protocol):
    """Predicts latency."""

    def predict(
        self, features: ModelFeatures, device: DeviceProfile, precision: str, runtime: str
    ) -> Prediction | None:
        """Latency of one call; None where nothing is known of the device or the features are not there.

        Raises:
            UsageError: a precision or runtime that does not exist.
        """
        ...


def group(features: GraphFeatures) -> str:
    """Groups whose errors differ: ``attention`` where a softmax or a product of two activations is, else ``convolution``."""
    attends = any(op.kind in (Kind.MATMUL, Kind.SOFTMAX, Kind.RECURRENT) for op in features.ops)
    return "attention" if attends else "convolution"


class GraphPredictor:
    """The roofline of a graph's ops."""

    name = "graph"

    def __init__(self, fitted: Parameters | None = None, local: Mapping[str, LocalDevice] | None = None) -> None:
        self._fitted, self._local = fitted or parameters(), local or {}

    def predict(
        self, features: ModelFeatures, device: DeviceProfile, precision: str, runtime: str
    ) -> Prediction | None:
        """See `Predictor`."""
        model = _model(self._fitted.graph, precision, runtime)
        work = Work.of([features.graph], precision)
        points = description(work, model.rates.rates())
        found = _predict(self._fitted, self._local, model, work, points, features.graph, device, precision, self.name)
        if found is None:
            return None
        warnings = unfamiliar(features.graph, model, work)
        if warnings:
            found = _doubted(found, *warnings)
        if (share := _plain_share(model, work)) > TOLD:
            told = f"{share:.0%} of it are means over overlapping windows, for which there is no fast integer kernel; Pocketport's artifacts have convolutions instead"
            found = replace(found, warnings=(*found.warnings, told))
        return _at_runtime(self._fitted, found, precision, runtime)


class CompilerPredictor:
    """The vendor compiler's estimate for a chip of a related architecture, mapped to the device, and the roofline's say in it."""

    name = "compiler"

    def __init__(self, fitted: Parameters | None = None, local: Mapping[str, LocalDevice] | None = None) -> None:
        self._fitted, self._local = fitted or parameters(), local or {}

    def predict(
        self, features: ModelFeatures, device: DeviceProfile, precision: str, runtime: str
    ) -> Prediction | None:
        """See `Predictor`."""
        key = precision if precision in self._fitted.compiler else BORROWED.get(precision, precision)
        if key not in self._fitted.compiler or not certain(features.estimates):
            return None
        model, alone = (_model(m, precision, runtime) for m in (self._fitted.compiler, self._fitted.graph))
        ops = Work.of([features.graph], precision)
        work = estimate_work([features.estimates], [features.graph], precision)
        points = description(ops, alone.rates.rates())
        found, graph = (
            _predict(self._fitted, self._local, m, w, points, features.graph, device, precision, name)
            for m, w, name in ((model, work, self.name), (alone, ops, GraphPredictor.name))
        )
        if found is None or graph is None or not simulated(alone, device):
            return None
        if blind := features.estimates.get(UNCOSTED, 0.0):
            told = f"the compiler has no cost for {blind:.0f} of its ops, which may take much longer"
            found = _doubted(found, told)
        scale = (graph.ms / found.ms) ** model.graph_share
        found = replace(found, ms=found.ms * scale, low=found.low * scale, high=found.high * scale)
        return _at_runtime(self._fitted, found, precision, runtime)


def _doubted(found: Prediction, *warnings: str) -> Prediction:
    """The same with a wider interval."""
    low, high = (found.ms * (v / found.ms) ** WIDE for v in (found.low, found.high))
    return replace(found, low=low, high=high, warnings=(*found.warnings, *warnings))


def _plain_share(model: Model, work: Work) -> float:
    """Share of the reference's time that plain kernels take."""
    rates = model.rates.rates()
    return float(rates.ms_per_visited * work.visited.sum() / milliseconds(work, rates, Factors())[0])


def precision_of(scheme: str) -> str:
    """The precision of `PRECISIONS` that computes like `scheme`: activations decide the kernels, weights move bytes."""
    parsed = Scheme.parse(scheme)
    if parsed.activation_bits is None:
        return "float"
    if parsed.activation_bits == 8:
        return "w8a8"
    return "w4a16" if (parsed.weight_bits or 8) <= 4 else "w8a16"


def combined(graph: Prediction, informed: Prediction | None) -> Prediction:
    """The compiler-informed prediction where there is one, since it is fitted only where it errs less; the graph's warnings stay told."""
    if informed is None:
        return graph
    return replace(informed, warnings=tuple(dict.fromkeys((*informed.warnings, *graph.warnings))))


def unfamiliar(features: GraphFeatures, model: Model, work: Work) -> tuple[str, ...]:
    """What in a graph is unlike anything measured: ops that (almost) no fitted model has, if they weigh anything."""
    rates = model.rates.rates()
    cost = rates.ms_per_work[work.kind] * work.work + rates.ms_per_op[1]
    by_op: dict[str, float] = {}
    for op, ms in zip(features.ops, cost, strict=True):
        name = SAME.get(op.op, op.op)
        by_op[name] = by_op.get(name, 0.0) + float(ms)
    total = sum(by_op.values())
    strange = [op for op, ms in by_op.items() if model.seen.get(op, 0.0) < RARE and ms > TOLD * total]
    if not strange:
        return ()
    return (f"{', '.join(sorted(strange))}: in (almost) none of the measured models, likely slower than predicted",)


def _model(models: Mapping[str, Model], precision: str, runtime: str) -> Model:
    if precision not in PRECISIONS:
        raise UsageError(f"no precision {precision!r}", where="--precision", fix=f"use one of {', '.join(PRECISIONS)}")
    if runtime not in RUNTIMES:
        raise UsageError(f"no runtime {runtime!r}", where="--runtime", fix=f"use one of {', '.join(RUNTIMES)}")
    return models[precision if precision in models else BORROWED[precision]]


def _predict(
    fitted: Parameters,
    local: Mapping[str, LocalDevice],
    model: Model,
    work: Work,
    points: Floats,
    graph: GraphFeatures,
    device: DeviceProfile,
    precision: str,
    predictor: str,
) -> Prediction | None:
    """On ``qnn_dlc``, or whatever a vendor's own runtime is."""
    spread = model.spreads[group(graph)]
    interval = (spread.low, spread.high)
    warnings: list[str] = []
    what = f"{precision} {'roofline' if predictor == 'graph' else 'compiler estimate, mapped to the device'}"
    evidence = f"{what}; families held out: median error {spread.median_ape:.0%}, n {spread.n}"
    published = fitted.anchors.get(device.target, {})
    anchors = published.get(precision) or published.get(BORROWED.get(precision, ""))
    own = local.get(device.target.removeprefix(LOCAL))
    if own is not None and device.target.startswith(LOCAL):
        key = precision if precision in own.factors else BORROWED.get(precision, "")
        if key not in own.factors:
            return None
        factors = own.factors[key].factors()
        interval = widened(interval, own.log_spread[key])
    elif device.target in model.devices:
        measured = model.devices[device.target]
        factors = measured.factors()
        if measured.log_spread:
            interval = widened(interval, measured.log_spread)
            warnings.append(f"measurements of {device.name} moved by up to {math.exp(measured.log_spread):.1f} times")
    elif (lent := borrowed(device, model.devices)) is not None:
        factors, apart, whose = lent
        interval = widened(interval, model.device_spread[device.kind] * max(1.0, apart))
        warnings.append(f"{device.name} was not measured: factors of {whose}")
    elif anchors is not None and predictor == "graph":
        factors, interval = _anchored(anchors, interval)
        warnings.append(anchors.evidence)
    else:
        return None
    if precision in BORROWED and precision not in (fitted.graph if predictor == "graph" else fitted.compiler):
        interval = widened(interval, BORROWED_SPREAD)
        warnings.append(f"rates of {BORROWED[precision]}: too few {precision} graphs were measured")
    ms = float(model.milliseconds(work, points, factors, device.target)[0])
    if ms > 2 * model.largest_ms:
        warnings.append(f"longer than anything measured ({model.largest_ms:.0f} ms)")
    return Prediction(ms, ms * interval[0], ms * interval[1], predictor, evidence, tuple(warnings))


def _anchored(anchors: Anchors, interval: tuple[float, float]) -> tuple[Factors, tuple[float, float]]:
    f = anchors.factor
    return Factors(f, f, f, f), widened(interval, anchors.log_spread)


def _at_runtime(fitted: Parameters, found: Prediction, precision: str, runtime: str) -> Prediction:
    if runtime == "qnn_dlc":
        return found
    by_precision = fitted.runtimes[runtime]
    line = by_precision.get(precision) or by_precision.get(BORROWED.get(precision, ""))
    if line is None:
        fix = (
            f"use one of {', '.join(r for r in RUNTIMES if r == 'qnn_dlc' or precision in fitted.runtimes.get(r, {}))}"
        )
        raise UsageError(f"{runtime} was not measured at {precision}", where="--runtime", fix=fix)
    ms = line.scale * found.ms + line.offset_ms
    low, high = widened((found.low / found.ms, found.high / found.ms), line.log_spread)
    evidence = f"{found.evidence}; {runtime} from qnn_dlc, n {line.n}"
    return replace(found, ms=ms, low=ms * low, high=ms * high, evidence=evidence)
