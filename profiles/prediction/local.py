"""Devices that a user measured: factors fitted to a handful of anchor models, kept in the user's data folder."""

import csv
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from pydantic import BaseModel, ConfigDict, ValidationError

from pocketport.errors import InputError, UsageError
from pocketport.files import write_text
from pocketport.profiles.device import DeviceProfile, load_device, slug
from pocketport.profiles.prediction.conformal import LEVEL
from pocketport.profiles.prediction.features import GraphFeatures
from pocketport.profiles.prediction.fit import fit_device
from pocketport.profiles.prediction.likeness import description
from pocketport.profiles.prediction.parameters import FactorsData, Parameters, parameters
from pocketport.profiles.prediction.roofline import WIDTHS, Floats, Rates, Work, milliseconds

FEWEST = 5  # anchor models of one precision
COLUMNS = ("model", "precision", "ms")
LOCAL = "local/"  # vendor of their targets


class LocalDevice(BaseModel):
    """A device of the user's.

    Attributes:
        profile: figures of the chip that it was said to have, or of the measured chip that fits best.
        factors: precision → factors.
        log_spread: precision → half-width that the few anchors add to the interval.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: DeviceProfile
    factors: Mapping[str, FactorsData]
    log_spread: Mapping[str, float]


@dataclass(frozen=True)
class Anchor:
    """One measured model: an ONNX file, a precision, milliseconds on ``qnn_dlc`` or the device's own runtime."""

    model: Path
    precision: str
    ms: float


def folder() -> Path:
    """``$POCKETPORT_DEVICES``, or a folder of the user's data."""
    override = os.environ.get("POCKETPORT_DEVICES")
    return Path(override) if override else Path(platformdirs.user_data_dir("pocketport")) / "devices"


def fitted_devices() -> dict[str, LocalDevice]:
    """Name (as `slug` writes it) → device.

    Raises:
        InputError: a file of the folder is damaged.
    """
    found = {}
    for path in sorted(folder().glob("*.json")):
        try:
            found[path.stem] = LocalDevice.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise InputError(f"not a fitted device: {error}", where=str(path), fix="fit it again") from error
    return found


def read_anchors(path: Path) -> list[Anchor]:
    """Read measurements: CSV with the columns ``model,precision,ms``; paths are relative to the file.

    Raises:
        InputError: no such file, a column is missing, or a value is none.
    """
    if not path.is_file():
        raise InputError("no such file", where=str(path), fix="check the path")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        try:
            names, rows = reader.fieldnames or (), list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"not a CSV file: {error}", where=str(path), fix="save it as UTF-8 CSV") from error
    missing = [c for c in COLUMNS if c not in names]
    if missing:
        raise InputError(f"no column {missing[0]!r}", where=str(path), fix=f"the columns are {','.join(COLUMNS)}")
    return [_anchor(row, path, line) for line, row in enumerate(rows, start=2)]


def _anchor(row: Mapping[str, str | None], path: Path, line: int) -> Anchor:
    where = f"{path}, line {line}"
    try:
        ms = float(row["ms"] or "")
    except ValueError:
        ms = math.nan
    if not (math.isfinite(ms) and ms > 0):
        raise InputError(f"{row['ms']!r} is no time", where=where, fix="write milliseconds, e.g. 3.2")
    if row["precision"] not in WIDTHS:
        raise InputError(f"no precision {row['precision']!r}", where=where, fix=f"use one of {', '.join(WIDTHS)}")
    return Anchor(path.parent / (row["model"] or ""), str(row["precision"]), ms)


def fit_local(
    name: str,
    anchors: Sequence[Anchor],
    features: Callable[[Path], GraphFeatures],
    *,
    like: DeviceProfile | None = None,
    fitted: Parameters | None = None,
) -> LocalDevice:
    """Fit a device to its anchors.

    Args:
        name: it is given.
        anchors: at least five of one precision.
        features: of an anchor's file.
        like: the chip that it has; None: the measured one that fits the anchors best, up to one factor.
        fitted: parameters; None: the package's.

    Raises:
        UsageError: fewer than five anchors.
    """
    fitted = fitted or parameters()
    factors: dict[str, FactorsData] = {}
    spreads: dict[str, float] = {}
    profile = like
    graphs = {a.model: features(a.model) for a in anchors}
    for precision in sorted({a.precision for a in anchors}):
        rows = [a for a in anchors if a.precision == precision]
        if len(rows) < FEWEST or precision not in fitted.graph:
            continue
        model = fitted.graph[precision]
        work = Work.of([graphs[a.model] for a in rows], precision)
        rates = model.rates.rates()
        log_ms = np.log([a.ms for a in rows]) - np.log(model.correction(description(work, rates)))
        residual = {t: _unlike(work, log_ms, model.devices[t], rates) for t in model.devices}
        nearest = (
            like.target if like is not None and like.target in residual else min(residual, key=residual.__getitem__)
        )
        profile = profile or load_device(nearest)
        own = fit_device(work, np.arange(len(rows)), log_ms, rates, model.devices[nearest].factors())
        error = np.log(milliseconds(work, rates, own)) - log_ms
        factors[precision] = FactorsData(
            matrix=own.matrix, vector=own.vector, memory=own.memory, overhead=own.overhead, n=len(rows)
        )
        spreads[precision] = float(np.quantile(np.abs(error), LEVEL) / math.sqrt(len(rows)))
    if not factors or profile is None:
        raise UsageError(
            f"at least {FEWEST} models of one precision are needed", where="--measurements", fix="measure more models"
        )
    named = profile.model_copy(update={"name": name, "target": f"{LOCAL}{slug(name)}", "phones": (), "measured_as": ""})
    return LocalDevice(profile=named, factors=factors, log_spread=spreads)


def _unlike(work: Work, log_ms: Floats, known: FactorsData, rates: Rates) -> float:
    """Spread of log errors with a measured device's factors: what one common factor cannot explain."""
    return float(np.std(np.log(milliseconds(work, rates, known.factors())) - log_ms))


def save_local(name: str, device: LocalDevice) -> Path:
    """Keep a fitted device; the file it is in."""
    path = folder() / f"{slug(name)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, device.model_dump_json(indent=1) + "\n")
    return path
