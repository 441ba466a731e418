"""``pocketport.x86-configuration/1``: which settings of which engine run a model best on one machine, and what says so."""

from pathlib import Path
from typing import Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pocketport.errors import InputError, UsageError
from pocketport.files import write_json

Value: TypeAlias = str | int | float | bool | None
SettingValues: TypeAlias = dict[str, Value]
SCHEMA: Final = "pocketport.x86-configuration/1"
DEFAULT_NAME = "x86.json"
GGUF_NAME = "llama-cpp.json"  # of GGUF files, in their folder


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Gain(_Record):
    """How many times as long something else takes: median of the ratios turn by turn, with its 95 % interval."""

    value: float
    low: float
    high: float


class Contender(_Record):
    """One set of settings in the final measurement, in a process of its own.

    Attributes:
        name: ``onnxruntime as it comes``, …; of the chosen ones ``chosen``, and behind a colon what they are
        settings: of the engine.
        ms: median time of a run.
        mad_ms: median of the absolute deviations from it.
        gain: how many times as long as the chosen settings it takes; None for the chosen ones.
        fidelity_db: signal to noise ratio of its worst output against the graph run op by op; None where no setting changes what is computed.
        cold_ms: opening it and the first run in a fresh process, the file in the system's cache; None where the engine does not say.
        peak_bytes: most memory that its process ever had resident.
    """

    name: str
    settings: SettingValues
    ms: float
    mad_ms: float
    gain: Gain | None
    fidelity_db: float | None = None
    cold_ms: float | None = None
    peak_bytes: int | None = None


class OpTime(_Record):
    """All ops of one kind in one run of the chosen settings, as the engine itself counts (which slows it a little)."""

    op: str
    count: int
    ms: float


class Rejected(_Record):
    """Settings that were tried and are no candidates: the engine refuses them, or computes something else."""

    settings: SettingValues
    why: str


class ComponentConfiguration(_Record):
    """One component.

    Attributes:
        kind: of the artifact: ``onnx``, ``openvino-ir``, ``gguf``.
        artifact: where it lies: in a run relative to its folder.
        sha256: of the artifact.
        settings: the chosen ones.
        tried: how many sets of settings were opened.
        turns: of the final measurement.
        least_db: what was asked of every candidate's outputs, if anything.
        contenders: the final measurement, the chosen settings first.
        rejected: see there.
        ops: the most expensive kinds, in falling order.
    """

    kind: str
    artifact: str
    sha256: str
    settings: SettingValues
    tried: int
    turns: int
    least_db: float | None = None
    contenders: list[Contender] = Field(default_factory=list)
    rejected: list[Rejected] = Field(default_factory=list)
    ops: list[OpTime] = Field(default_factory=list)


class Configuration(_Record):
    """The whole document.

    Attributes:
        processor: on which it was found.
        threads: that the engines were allowed.
        engines: their versions.
        shapes: of inputs that the file leaves open; of a GGUF file the tokens of each phase.
        arguments: what programs of an engine are told, where it is programs that run the model.
        components: by name; of a GGUF file its phases, ``prefill`` and ``decode``.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_name: Literal["pocketport.x86-configuration/1"] = Field(default=SCHEMA, alias="schema")
    processor: str
    threads: int
    engines: dict[str, str]
    shapes: dict[str, list[int]] = Field(default_factory=dict)
    arguments: list[str] = Field(default_factory=list)
    components: dict[str, ComponentConfiguration]

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_json(path, self.model_dump(by_alias=True))


def load_configuration(path: Path) -> Configuration:
    """Read what `Configuration.save` wrote.

    Raises:
        UsageError: there is no such file.
        InputError: it is damaged, or of another version.
    """
    if not path.is_file():
        raise UsageError("no such file", where=str(path), fix="make it with `pocketport tune`")
    try:
        return Configuration.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise InputError(
            f"not a {SCHEMA} document: {error}", where=str(path), fix="make it with `pocketport tune`"
        ) from error
