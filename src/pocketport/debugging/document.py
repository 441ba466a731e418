"""What `pocketport debug` found: schema ``pocketport.debug/1``."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pocketport.run_document import ProvenanceName


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class OutputRecord(_Record):
    """One output of a component: SQNR to float of the pivot, and as the vendor's runtime executed it."""

    output: str
    pivot_db: float
    executed_db: float | None = None


class SizeRecord(_Record):
    """Bytes of a component's constants of one kind: as float, and packed as planned."""

    kind: str
    tensors: int
    float_bytes: int
    packed_bytes: int


class ComponentDebug(_Record):
    """One component on one target.

    Attributes:
        db: SQNR of the pivot's worst output.
        activations_db: the same with only activations rounded.
        constants_db: the same with only weights and other constants rounded.
        engine: that executed the artifact; empty where nothing did.
        executed_to_pivot_db: how faithfully it keeps the pivot's numbers.
        device_bytes: of the primary artifact; None where nothing was compiled.
        share: of the end-to-end noise that the component makes when it alone is quantized.
    """

    name: str
    scheme: str
    db: float
    activations_db: float
    constants_db: float
    outputs: list[OutputRecord]
    sizes: list[SizeRecord]
    engine: str = ""
    provenance: ProvenanceName | None = None
    executed_to_pivot_db: float | None = None
    device_bytes: int | None = None
    share: float = 0.0


class OutcomeRecord(_Record):
    """The whole model with some components quantized: task score, and SQNR of what comes out at its end."""

    score: float
    db: float


class AttributionRecord(_Record):
    """See `pocketport.debugging.attribution.Attribution`."""

    samples: int
    metric: str
    ends: list[str]
    float_score: float
    everything: OutcomeRecord
    alone: dict[str, OutcomeRecord]
    all_but: dict[str, OutcomeRecord]


class TensorRecord(_Record):
    """One quantized tensor.

    Attributes:
        how: observer or algorithm.
        local_db: SQNR of its own rounding, given float inputs.
        cumulative_db: SQNR in the pivot.
        share: noise at the component's worst output with this rounding alone, over that with all of them.
    """

    component: str
    tensor: str
    kind: str
    node: str
    op: str
    scheme: str
    dtype: str
    how: str
    local_db: float
    cumulative_db: float
    share: float


class WorstRecord(TensorRecord):
    """One of the worst.

    Attributes:
        gain_db: what the component's worst output gains when this rounding, with those of tensors that hold the same
            data, is left out.
        low, high: extremes of its values.
        calibrated_low, calibrated_high: extremes that calibration saw; None of constants.
        chosen_low, chosen_high: what its integers reach.
        clipped: share of the values cut off.
        levels: integers that are used, of `of_levels`.
        edges, before, after: histograms in float and once rounded.
        remedies: that the target would take, the most promising first; not measured unless the repair has them.
    """

    gain_db: float
    low: float
    high: float
    calibrated_low: float | None
    calibrated_high: float | None
    chosen_low: float
    chosen_high: float
    clipped: float
    levels: int
    of_levels: int
    edges: list[float]
    before: list[int]
    after: list[int]
    remedies: list[str]


class TrialRecord(_Record):
    """One remedy that was tried; `after_db` is None where it can't be done, and `why` says why."""

    component: str
    tensor: str
    remedy: str
    before_db: float
    after_db: float | None
    bytes_before: int
    bytes_after: int | None
    kept: bool
    why: str = ""


class RepairRecord(_Record):
    """What `--fix` did to one component.

    Attributes:
        before_db, after_db: SQNR of the pivot's worst output.
        executed_before_db, executed_after_db: the same as the vendor's runtime executes it; None where it was not.
        recipe: the file written; empty where nothing paid.
        refused: the vendor's reason, where its compiler does not take the result.
    """

    component: str
    before_db: float
    after_db: float
    bytes_before: int
    bytes_after: int
    executed_before_db: float | None = None
    executed_after_db: float | None = None
    trials: list[TrialRecord]
    refused: str = ""


class TargetDebug(_Record):
    """One target."""

    id: str
    attribution: AttributionRecord
    components: list[ComponentDebug]
    worst: list[WorstRecord]
    tensors: list[TensorRecord]
    repairs: list[RepairRecord] = Field(default_factory=list)
    recipe: str = ""


class DebugDocument(_Record):
    """The whole document."""

    schema_name: Literal["pocketport.debug/1"] = Field(default="pocketport.debug/1", alias="schema")
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    run: str
    model: str
    recipe: str
    targets: list[TargetDebug]
