"""``run.json``: everything a run found out, schema ``pocketport.run/1``.

The JSON schema is shipped as ``run.schema.json`` beside this module; a test holds the two together.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pocketport.errors import InputError, UsageError

RUN_FILE = "run.json"
ProvenanceName = Literal["measured", "emulated", "predicted", "published"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelComponent(_Record):
    """A component of the float model. `macs` are multiply-accumulates of one run, `bytes` the float32 weights."""

    name: str
    parameters: int
    macs: int
    bytes: int


class ModelRecord(_Record):
    """What was ported. `parameters` counts weights that several components share once."""

    name: str
    family: str
    sha256: str
    parameters: int
    components: list[ModelComponent]
    parity: dict[str, Any] = Field(default_factory=dict)


class RewriteRecord(_Record):
    """One conditioning rewrite: how many streams of channels it changed, in which components."""

    rewrite: str
    streams: int
    components: list[str]


class ConditioningRecord(_Record):
    """Exact rewrites before calibration. `sqnr_db`: each component's conditioned float against float, held out."""

    rewrites: list[RewriteRecord]
    sqnr_db: dict[str, float]


class DiagnosticRecord(_Record):
    """See `pocketport.diagnostics.Diagnostic`."""

    code: str
    severity: Literal["error", "warning", "note"]
    where: str
    why: str
    fix: str


class ArtifactRecord(_Record):
    """One output file or directory, relative to the run's directory."""

    path: str
    kind: str
    bytes: int
    sha256: str
    primary: bool
    facts: dict[str, str | int | float] = Field(default_factory=dict)


class OffloadRecord(_Record):
    """Ops of the lowered graph that the accelerator takes, and who counted."""

    npu_ops: int
    total_ops: int
    source: str
    elsewhere: list[str] = Field(default_factory=list)


class VerifyRecord(_Record):
    """SQNR of what an artifact computed against the float graph on the same feeds, dB, the least over its outputs.

    `pivot_db` compares with the pivot on the reference executor: how faithfully the vendor's runtime keeps our numbers.
    """

    engine: str
    kind: str
    provenance: ProvenanceName
    sqnr_db: float
    pivot_db: float
    outputs: dict[str, float] = Field(default_factory=dict)
    n: int


class TensorError(_Record):
    """SQNR of one tensor between float and pivot, dB: cumulative along the graph."""

    tensor: str
    sqnr_db: float


class ComponentRecord(_Record):
    """One component on one target."""

    name: str
    scheme: str
    pivot_bytes: int
    artifacts: list[ArtifactRecord] = Field(default_factory=list)
    offload: OffloadRecord | None = None
    verify: VerifyRecord | None = None
    verify_others: list[VerifyRecord] = Field(default_factory=list)
    estimates: dict[str, float] = Field(default_factory=dict)
    layers: list[TensorError] = Field(default_factory=list)
    seconds: float = 0.0


class ReadSample(_Record):
    """One held-out sample as a target saw it."""

    index: int
    expected: str
    float_text: str
    text: str


class TaskRecord(_Record):
    """The end-to-end score of the quantized model as this target runs it. `extra` holds further figures (CER, …)."""

    metric: str
    value: float
    float_value: float
    n: int
    provenance: ProvenanceName
    engine: str
    extra: dict[str, float] = Field(default_factory=dict)
    samples: list[ReadSample] = Field(default_factory=list)


class MeasurementRecord(_Record):
    """See `pocketport.profiles.measurement.Measurement`."""

    name: str
    value: float
    unit: str
    provenance: ProvenanceName
    detail: str
    low: float | None = None
    high: float | None = None


class MemoryPoint(_Record):
    """Planned resident bytes after one step of a request."""

    phase: str
    step: str
    bytes: int


class ProfileRecord(_Record):
    """What the model costs on a device."""

    device: str
    measurements: list[MeasurementRecord] = Field(default_factory=list)
    memory: list[MemoryPoint] = Field(default_factory=list)


class CacheRecord(_Record):
    """The key-value cache of a language model whose recipe has it in integers: ``int8`` or ``int4``, ranges included."""

    name: str
    bytes: int
    float_bytes: int


class TargetRecord(_Record):
    """Everything about one target. `status` is ``ok``, ``failed`` (nothing usable) or ``partial``."""

    id: str
    status: Literal["ok", "partial", "failed"]
    diagnostics: list[DiagnosticRecord] = Field(default_factory=list)
    components: list[ComponentRecord] = Field(default_factory=list)
    cache: CacheRecord | None = None
    task: TaskRecord | None = None
    profile: ProfileRecord | None = None


class CheckRecord(_Record):
    """One limit of the budget against one figure: of the run, or of one of the budget's requests (`scenario`)."""

    target: str
    scenario: str = ""
    name: str
    limit: str
    value: float | None
    unit: str
    shown: str
    provenance: str
    status: Literal["pass", "warn", "fail"]
    hard: bool
    reason: str


class VerdictRecord(_Record):
    """The gate's answer. ``none`` when no budget was given."""

    status: Literal["pass", "warn", "fail", "none"]
    checks: list[CheckRecord] = Field(default_factory=list)


class StageRecord(_Record):
    """One stage: its content address, the digest of its output, and the seconds it took when it ran."""

    name: str
    key: str
    digest: str
    seconds: float


class RunDocument(_Record):
    """The whole document."""

    schema_name: Literal["pocketport.run/1"] = Field(default="pocketport.run/1", alias="schema")
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    model: ModelRecord
    recipe: str
    conditioning: ConditioningRecord | None = None
    targets: list[TargetRecord]
    verdict: VerdictRecord
    environment: dict[str, str]
    stages: list[StageRecord] = Field(default_factory=list)


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``run.json``."""
    return RunDocument.model_json_schema(by_alias=True)


def load_document(directory: Path) -> RunDocument:
    """Read a run directory's ``run.json``.

    Raises:
        UsageError: there is none yet.
        InputError: it is damaged, or of another schema version.
    """
    path = directory / RUN_FILE
    if not path.is_file():
        raise UsageError(
            "it holds no finished run", where=str(directory), fix="run `pocketport port … --out DIR` first"
        )
    try:
        return RunDocument.model_validate_json(path.read_bytes())
    except ValidationError as error:
        schema, first = RunDocument.model_fields["schema_name"].default, error.errors()[0]
        where = ", ".join((str(path), *map(str, first["loc"])))
        raise InputError(
            f"not a {schema} document: {first['msg']}", where=where, fix="run `pocketport port` again"
        ) from error


def folder_of(target: str) -> str:
    """The target's folder in a run's directory: ``qualcomm-sm8650``."""
    return target.replace("/", "-").replace("@", "-")
