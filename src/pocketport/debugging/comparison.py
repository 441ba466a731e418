"""Two runs of one model side by side: what was asked, what was planned, the encodings, the errors, what it cost."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pocketport.calibration.encodings import Encoding, EncodingTable, Palette
from pocketport.compress.planning.plan import Plan, TensorPlan
from pocketport.debugging.opened import OpenedTarget
from pocketport.errors import UsageError
from pocketport.report.figures import artifact_bytes
from pocketport.request import Request
from pocketport.run_document import RunDocument, TargetRecord, load_document
from pocketport.targets.contract import Target

NOT_SETTINGS = frozenset({"targets", "formats", "budget", "memory_limit"})  # what does not change a target's numbers

PRODUCT_DTYPE = "int32"  # of biases, whose scales follow from others


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Setting(_Record):
    """One setting of the two requests."""

    name: str
    a: str
    b: str


class Figure(_Record):
    """One figure of both runs. `better` says which way is; None in `a` or `b` where a run does not have it."""

    name: str
    unit: str
    better: Literal["more", "less"]
    a: float | None
    b: float | None
    provenance: str


class ComponentPair(_Record):
    """One component: scheme, SQNR as executed, bytes packed and on device; None where nothing was compiled or executed."""

    name: str
    scheme_a: str
    scheme_b: str
    sqnr_a: float | None
    sqnr_b: float | None
    packed_a: int
    packed_b: int
    device_a: int | None
    device_b: int | None


class TensorPair(_Record):
    """Cumulative SQNR of one tensor in both pivots."""

    component: str
    tensor: str
    sqnr_a: float
    sqnr_b: float


class PlanChange(_Record):
    """Tensors of one component and kind that are written otherwise in B than in A."""

    component: str
    kind: str
    a: str
    b: str
    tensors: list[str]


class EncodingChange(_Record):
    """One tensor whose range changed: what its integers reach in both runs; `octaves` is log2 of the ratio of mean steps."""

    tensor: str
    range_a: tuple[float, float]
    range_b: tuple[float, float]
    octaves: float


class TargetPair(_Record):
    """One target of A beside one of B. Tensors, plans and encodings: the largest changes first."""

    a: str
    b: str
    figures: list[Figure]
    components: list[ComponentPair]
    tensors: list[TensorPair]
    plans: list[PlanChange]
    encodings: list[EncodingChange]
    same_encodings: int


class CompareDocument(_Record):
    """The whole document."""

    schema_name: Literal["pocketport.compare/1"] = Field(default="pocketport.compare/1", alias="schema")
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    model: str
    a: str
    b: str
    settings: list[Setting]
    targets: list[TargetPair]
    only_a: list[str]
    only_b: list[str]


def compare_runs(a: Path, b: Path) -> CompareDocument:
    """Compare two finished runs' directories.

    Raises:
        UsageError: one is no finished run, they are of different models, or they have no target in common.
        InputError: a document of theirs is damaged.
    """
    documents = [load_document(a), load_document(b)]
    first, second = documents
    if first.model.sha256 != second.model.sha256:
        raise UsageError(
            f"they are runs of different models: {first.model.name} {first.model.sha256[:12]} and"
            f" {second.model.name} {second.model.sha256[:12]}",
            where=f"{a}, {b}", fix="compare two runs of one model",
        )  # fmt: skip
    pairs = _paired(first, second)
    if not pairs:
        names = [", ".join(t.id for t in d.targets) or "no target" for d in documents]
        raise UsageError(
            f"they have no target in common: {names[0]}; {names[1]}",
            where=f"{a}, {b}",
            fix="port to the same target twice",
        )
    taken_a, taken_b = {x.id for x, _ in pairs}, {y.id for _, y in pairs}
    return CompareDocument(
        model=first.model.name,
        a=str(a),
        b=str(b),
        settings=_settings(Request.load(a), Request.load(b)),
        targets=[_pair(OpenedTarget.read(a, x), OpenedTarget.read(b, y)) for x, y in pairs],
        only_a=[t.id for t in first.targets if t.id not in taken_a],
        only_b=[t.id for t in second.targets if t.id not in taken_b],
    )


def _paired(a: RunDocument, b: RunDocument) -> list[tuple[TargetRecord, TargetRecord]]:
    """The same targets; of runs that have one each, those two."""
    if len(a.targets) == len(b.targets) == 1:
        return [(a.targets[0], b.targets[0])]
    known = {Target.parse(t.id): t for t in b.targets}
    return [(t, known[Target.parse(t.id)]) for t in a.targets if Target.parse(t.id) in known]


def _settings(a: Request, b: Request) -> list[Setting]:
    left, right = a.model_dump(), b.model_dump()
    return [
        Setting(name=name.replace("_", " "), a=str(left[name]), b=str(right[name]))
        for name in left if name not in NOT_SETTINGS and left[name] != right[name]
    ]  # fmt: skip


def _pair(a: OpenedTarget, b: OpenedTarget) -> TargetPair:
    encodings, same = encoding_changes(a.encodings, b.encodings)
    return TargetPair(
        a=a.record.id,
        b=b.record.id,
        figures=list(_figures(a.record, b.record)),
        components=_components(a.record, b.record),
        tensors=_tensors(a.record, b.record),
        plans=_plans(a.plan, b.plan),
        encodings=encodings,
        same_encodings=same,
    )


def _figures(a: TargetRecord, b: TargetRecord) -> Iterator[Figure]:
    if a.task and b.task and a.task.metric == b.task.metric:
        provenance = _either(a.task.provenance, b.task.provenance)
        yield Figure(
            name=a.task.metric.replace("_", " "),
            unit="",
            better="more",
            a=a.task.value,
            b=b.task.value,
            provenance=provenance,
        )
    for name, measure in (("artifacts", artifact_bytes), ("packed weights", _packed)):
        sizes = (measure(a) or None, measure(b) or None)
        yield Figure(name=name, unit="bytes", better="less", a=sizes[0], b=sizes[1], provenance="measured")
    known = {m.name: m for m in (b.profile.measurements if b.profile else [])}
    for m in a.profile.measurements if a.profile else []:
        other = known.get(m.name)
        if m.name == "artifact_size" or other is None or other.unit != m.unit:
            continue
        better: Literal["more", "less"] = "more" if m.unit == "tok/s" else "less"
        provenance = _either(m.provenance, other.provenance)
        yield Figure(
            name=m.name.replace("_", " "), unit=m.unit, better=better, a=m.value, b=other.value, provenance=provenance
        )


def _either(a: str, b: str) -> str:
    return a if a == b else f"{a}, {b}"


def _packed(target: TargetRecord) -> int:
    return sum(c.pivot_bytes for c in target.components)


def _components(a: TargetRecord, b: TargetRecord) -> list[ComponentPair]:
    known = {c.name: c for c in b.components}
    found = []
    for x in a.components:
        y = known[x.name]
        device = [sum(f.bytes for f in c.artifacts if f.primary) or None for c in (x, y)]
        found.append(
            ComponentPair(
                name=x.name, scheme_a=x.scheme, scheme_b=y.scheme, sqnr_a=x.verify.sqnr_db if x.verify else None,
                sqnr_b=y.verify.sqnr_db if y.verify else None, packed_a=x.pivot_bytes, packed_b=y.pivot_bytes,
                device_a=device[0], device_b=device[1],
            )
        )  # fmt: skip
    return found


def _tensors(a: TargetRecord, b: TargetRecord) -> list[TensorPair]:
    known = {(c.name, e.tensor): e.sqnr_db for c in b.components for e in c.layers}
    pairs = [
        TensorPair(component=c.name, tensor=e.tensor, sqnr_a=e.sqnr_db, sqnr_b=known[c.name, e.tensor])
        for c in a.components for e in c.layers if (c.name, e.tensor) in known
    ]  # fmt: skip
    return sorted(pairs, key=lambda p: -abs(p.sqnr_b - p.sqnr_a))


def _plans(a: Plan, b: Plan) -> list[PlanChange]:
    known = {(c.component, t.tensor): t for c in b for t in c.tensors}
    changes: dict[tuple[str, str, str, str], list[str]] = {}
    for component in a:
        for tensor in component.tensors:
            other = known.get((component.component, tensor.tensor))
            left, right = _written(tensor), "not there" if other is None else _written(other)
            if left != right:
                key = (component.component, tensor.kind.value, left, right)
                changes.setdefault(key, []).append(tensor.tensor)
    ordered = sorted(changes.items(), key=lambda item: -len(item[1]))
    return [PlanChange(component=c, kind=k, a=x, b=y, tensors=names) for (c, k, x, y), names in ordered]


def _written(tensor: TensorPlan) -> str:
    """How a tensor is written, in a few words: ``int4 in blocks of 32, gptq``."""
    if not tensor.quantized:
        return "float"
    groups = {"b": f" in blocks of {tensor.block}", "p": f" into palettes of {tensor.block} channels"}
    share = {"t": "", "c": " per channel", **groups}[tensor.granularity]
    options: Mapping[str, Any] = tensor.options
    told = " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in sorted(options.items()))
    return f"{tensor.dtype}{share}, {tensor.algorithm}" + (f" ({told})" if told else "")


def encoding_changes(a: EncodingTable, b: EncodingTable) -> tuple[list[EncodingChange], int]:
    """The tensors that two runs write in the same way with other numbers, the largest changes first; how many are alike."""
    changes, same = [], 0
    pairs: list[tuple[str, Encoding | Palette, Encoding | Palette]] = [
        *((name, a[name], b[name]) for name in a if name in b and a[name].dtype != PRODUCT_DTYPE),
        *((name, x, b.palettes[name]) for name, x in a.palettes.items() if name in b.palettes),
    ]
    for name, x, y in pairs:
        if _equal(x, y):
            same += 1
            continue
        octaves = math.log2(_step(y) / _step(x))
        changes.append(EncodingChange(tensor=name, range_a=_reach(x), range_b=_reach(y), octaves=round(octaves, 4)))
    return sorted(changes, key=lambda c: -abs(c.octaves)), same


def _equal(x: Encoding | Palette, y: Encoding | Palette) -> bool:
    if isinstance(x, Palette) or isinstance(y, Palette):
        return isinstance(x, Palette) and isinstance(y, Palette) and np.array_equal(x.table, y.table)
    return x.dtype == y.dtype and np.array_equal(x.scale, y.scale) and np.array_equal(x.zero_point, y.zero_point)


def _step(encoding: Encoding | Palette) -> float:
    """From one integer to the next, in the mean."""
    if isinstance(encoding, Palette):
        return float((encoding.table[:, -1] - encoding.table[:, 0]).mean()) / encoding.bounds[1] or 1.0
    return float(encoding.scale.mean())


def _reach(encoding: Encoding | Palette) -> tuple[float, float]:
    """What the integers reach; of several scales or tables, the widest."""
    if isinstance(encoding, Palette):
        return float(encoding.table.min()), float(encoding.table.max())
    scale, zero = encoding.scale.astype(np.float64), encoding.zero_point
    low, high = encoding.bounds
    return float(((low - zero) * scale).min()), float(((high - zero) * scale).max())
