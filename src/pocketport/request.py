"""What the user asked for: one document, ``request.json`` in the run's directory, shared by `port` and the stage commands."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pocketport.errors import InputError, UsageError
from pocketport.files import write_json

REQUEST_FILE = "request.json"


class Request(BaseModel):
    """One run.

    Attributes:
        source: ``reference``, a checkpoint's folder, a GGUF or an ONNX file.
        shapes: input name → static shape, for ONNX files with dynamic dimensions.
        recipe: a named recipe or a YAML file.
        targets: ``vendor/soc[@sdk]`` identities.
        formats: checkpoint formats, ``name[:variant]``.
        data: an ``.npz`` file or a folder of them (arrays by input name), or a folder of images; None for the
            reference model's own generator.
        task: ``read-text``, ``ctc-recognition``, ``agreement`` or ``segmentation``; None chooses by family.
        budget: a ``budget.yaml``, ``default`` for the reference model's, None for no gate.
        calibration_samples: samples that ranges are taken from.
        task_samples: held-out samples of the task score on fast runtimes.
        emulated_task_samples: the same on slow emulators.
        seed: of everything random.
        sequence_length: tokens of a calibration sequence, where weights are calibrated block by block; at most half of
            the model's context is used.
        visual_weight: how much a vision token counts where a text token counts 1, when weights are calibrated on images.
        memory_limit: bytes that quantizing block by block may take; None: 70 % of what is free.
    """

    model_config = ConfigDict(extra="forbid")

    source: str
    shapes: dict[str, list[int]] = Field(default_factory=dict)
    recipe: str = "default"
    targets: list[str] = Field(default_factory=list)
    formats: list[str] = Field(default_factory=list)
    data: str | None = None
    task: str | None = None
    budget: str | None = None
    calibration_samples: int = Field(default=64, ge=1)
    task_samples: int = Field(default=200, ge=1)
    emulated_task_samples: int = Field(default=64, ge=1)
    seed: int = 0
    sequence_length: int = Field(default=512, ge=8)
    visual_weight: float = Field(default=1.0, ge=0)
    memory_limit: int | None = Field(default=None, ge=1 << 28)

    def save(self, directory: Path) -> None:
        """Write ``request.json`` into the run's directory."""
        write_json(directory / REQUEST_FILE, self.model_dump())

    @classmethod
    def load(cls, directory: Path) -> "Request":
        """Read a run directory's request.

        Raises:
            UsageError: `directory` is no run directory.
            InputError: the file is damaged.
        """
        path = directory / REQUEST_FILE
        if not path.is_file():
            raise UsageError(
                "not a run directory: it has no request.json",
                where=str(directory),
                fix="start with `pocketport ingest SOURCE --out DIR`",
            )
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ", ".join((str(path), *map(str, first["loc"])))
            raise InputError(
                f"damaged: {first['msg']}", where=where, fix="start again with `pocketport ingest`"
            ) from error
