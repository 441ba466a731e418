"""The fitted numbers, with where they come from: ``parameters.json``, written by ``benchmarks/fit_latency.py`` alone."""

import math
from collections.abc import Mapping
from functools import cache
from importlib import resources

import numpy as np
from pydantic import BaseModel, ConfigDict

from pocketport.profiles.prediction.likeness import Correction
from pocketport.profiles.prediction.roofline import KINDS, Factors, Floats, Rates, Work, milliseconds

SCHEMA = "pocketport.latency-parameters/2"


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RatesData(_Data):
    """`Rates` by kind's name."""

    ms_per_work: Mapping[str, float]
    ms_per_mb: float
    ms_per_spilled_mb: float
    ms_per_visited: float
    ms_per_op: tuple[float, float]
    ms_per_io_mb: float
    offset_ms: float

    def rates(self) -> Rates:
        """As arrays."""
        by_kind = np.array([self.ms_per_work[kind.value] for kind in KINDS])
        return Rates(
            by_kind, self.ms_per_mb, self.ms_per_spilled_mb, self.ms_per_visited, self.ms_per_op, self.ms_per_io_mb, self.offset_ms
        )  # fmt: skip


class FactorsData(_Data):
    """`Factors` of a device, from `n` measurements; `log_spread` is the half-width (natural logarithm) that unsteady ones add."""

    matrix: float
    vector: float
    memory: float
    overhead: float
    n: int
    log_spread: float = 0.0

    def factors(self) -> Factors:
        """Without the count."""
        return Factors(self.matrix, self.vector, self.memory, self.overhead)


class Spread(_Data):
    """How measurements of held-out families lie around predictions: conformal bounds, as factors.

    Attributes:
        low: below `low` times the prediction lie at most half of the measurements that the level leaves out.
        high: the same above.
        median_ape: median absolute percentage error, as a share.
        n: held-out measurements behind it.
    """

    low: float
    high: float
    median_ape: float
    n: int


class Model(_Data):
    """One predictor at one precision.

    Attributes:
        reference: target whose factors are 1.
        rates: of the reference.
        devices: target → factors.
        spreads: group of graphs (see `predictors.group`) → spread on a measured device.
        device_spread: power class → half-width, in natural logarithms, that a device adds which was not measured.
        points: of the measured graphs (see `likeness`).
        weights: what each of them corrects on all devices.
        own: target → what each of them corrects there beside that.
        seen: ONNX op → share of the fitted models that have it.
        largest_ms: the longest measured time.
        graph_share: of the graph-only prediction in the geometric mean with this one; 0 where it is that prediction.
    """

    reference: str
    rates: RatesData
    devices: Mapping[str, FactorsData]
    spreads: Mapping[str, Spread]
    device_spread: Mapping[str, float]
    points: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    own: Mapping[str, tuple[float, ...]]
    seen: Mapping[str, float]
    largest_ms: float
    graph_share: float = 0.0

    def milliseconds(self, work: Work, points: Floats, factors: Factors, target: str = "") -> Floats:
        """Predictions of graphs at `points` (see `likeness.description`) on a device with `factors`; `target`: which of the measured it is."""
        return milliseconds(work, self.rates.rates(), factors) * self.correction(points, target)

    def correction(self, points: Floats, target: str = "") -> Floats:
        """What graphs alike are off by, as factors."""
        own = self.own.get(target)
        known = Correction(np.array(self.points), np.array(self.weights), np.array([own or ()]))
        return known.factors(points, None if own is None else 0)


class Runtime(_Data):
    """A runtime against ``qnn_dlc``: ``ms = scale·ms(qnn_dlc) + offset_ms``, and the spread of that (log half-width)."""

    scale: float
    offset_ms: float
    log_spread: float
    n: int


class Anchors(_Data):
    """A vendor without fitted devices of its own: factors of the reference times one number.

    Attributes:
        factor: median of published over predicted times.
        log_spread: half-width of the interval, natural logarithm.
        n: published times.
        evidence: in words.
    """

    factor: float
    log_spread: float
    n: int
    evidence: str


class Parameters(_Data):
    """Everything that was fitted.

    Attributes:
        provenance: data, their licence, and the command.
        level: of the intervals.
        graph: precision → the roofline.
        compiler: precision → the same over the compiler's estimate.
        runtimes: runtime → precision → how it differs from ``qnn_dlc``.
        anchors: target → precision → what little is published of it.
    """

    schema_name: str = SCHEMA
    provenance: str
    level: float
    graph: Mapping[str, Model]
    compiler: Mapping[str, Model]
    runtimes: Mapping[str, Mapping[str, Runtime]]
    anchors: Mapping[str, Mapping[str, Anchors]]


@cache
def parameters() -> Parameters:
    """Those that come with the package."""
    text = resources.files("pocketport.profiles.prediction").joinpath("parameters.json").read_text(encoding="utf-8")
    return Parameters.model_validate_json(text)


def rounded(value: float, digits: int = 4) -> float:
    """Significant digits that are worth keeping."""
    return 0.0 if value == 0 else round(value, digits - 1 - math.floor(math.log10(abs(value))))
