"""Configuration of MiniCPM-V 4.6 and 4.7, read from published ``config.json`` and ``preprocessor_config.json``.

Keys that a file leaves out have the value that transformers gives them for ``minicpmv4_6`` and ``minicpmv4_7``.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pocketport.compress.families.decoder.config import DecoderConfig
from pocketport.compress.sources.folder import read_json_object
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError

MODEL_TYPES = ("minicpmv4_6", "minicpmv4_7")
CANVAS = "minicpmv4_7"  # the version whose positions lie on a canvas
WINDOW = 2  # patches along each side of what one merger makes one of
HALF = (0.5, 0.5, 0.5)
PROCESSOR_FILE = "preprocessor_config.json"
Checked = TypeVar("Checked", bound=BaseModel)


class VisionConfig(BaseModel):
    """The SigLIP tower. `image_size` (pixels) sets the size of the position table, not of inputs."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    hidden_size: int = Field(768, gt=0)
    intermediate_size: int = Field(3072, gt=0)
    num_hidden_layers: int = Field(12, gt=0, le=1024)
    num_attention_heads: int = Field(12, gt=0)
    num_channels: Literal[3] = 3
    image_size: int = Field(224, gt=0)
    patch_size: int = Field(16, gt=0)
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    layer_norm_eps: float = Field(1e-6, gt=0)
    window_kernel_size: tuple[Literal[2], Literal[2]] = (2, 2)

    @property
    def buckets_per_side(self) -> int:
        """Rows (and columns) of the learned position table."""
        return self.image_size // self.patch_size


class MarkerTokens(BaseModel):
    """Ids of the tokens around views, to which version 4.7 gives places on the canvas."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    image_start_id: int = Field(ge=0)
    image_end_id: int = Field(ge=0)
    slice_start_id: int = Field(ge=0)
    slice_end_id: int = Field(ge=0)
    newline_id: int = Field(ge=0)


class MiniCPMV46Config(BaseModel):
    """The whole model.

    Attributes:
        insert_layer_id: the tower's layer behind which 2×2 windows of patches become one.
        downsample_mode: ``16x``, or ``4x`` to leave out that merger.
        image_token_id: the token in the places of vision tokens.
        text_config: the language model's own configuration, as published.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    model_type: Literal["minicpmv4_6", "minicpmv4_7"]
    vision_config: VisionConfig
    text_config: dict[str, Any]
    insert_layer_id: int = Field(6, ge=0)
    downsample_mode: Literal["16x", "4x"] = "16x"
    merge_kernel_size: tuple[Literal[2], Literal[2]] = (2, 2)
    merger_times: Literal[1] = 1
    image_token_id: int = Field(ge=0)
    tie_word_embeddings: bool = False
    image_start_id: int | None = None
    image_end_id: int | None = None
    slice_start_id: int | None = None
    slice_end_id: int | None = None
    newline_id: int | None = None

    @property
    def mergers(self) -> int:
        """How many times 2×2 become one: in the tower and in the connector, or in the connector only."""
        return 2 if self.downsample_mode == "16x" else 1

    @property
    def side(self) -> int:
        """Patches along each side of what becomes one vision token."""
        return int(WINDOW**self.mergers)

    def markers(self) -> MarkerTokens | None:
        """The marker tokens of version 4.7, None for 4.6.

        Raises:
            InputError: an id is missing.
        """
        if self.model_type != CANVAS:
            return None
        return checked(MarkerTokens, self.model_dump(exclude_none=True), "config.json")

    def decoder(self) -> DecoderConfig:
        """The language model.

        Raises:
            InputError: it has a form that the graphs do not have.
        """
        kind = {"model_type": "qwen3_5_text"}
        return DecoderConfig.from_hf(
            {"text_config": {**kind, **self.text_config}, "tie_word_embeddings": self.tie_word_embeddings}
        )

    @classmethod
    def of(cls, source: Source) -> "MiniCPMV46Config":
        """The configuration of a source.

        Raises:
            InputError: names the key whose value is missing, out of range, or not supported.
        """
        config = checked(cls, source.config, f"{source.path}, config.json")
        vision = config.vision_config
        problems = {
            "insert_layer_id": f"the tower has {vision.num_hidden_layers} layers only"
            if config.mergers == 2 and config.insert_layer_id >= vision.num_hidden_layers
            else "",
            "vision_config.num_attention_heads": "it does not divide hidden_size"
            if vision.hidden_size % vision.num_attention_heads
            else "",
        }
        for key, why in problems.items():
            if why:
                raise InputError(why, where=f"{source.path}, config.json, {key}", fix="give the published config.json")
        config.markers()
        return config


class ProcessorConfig(BaseModel):
    """How images become views, from ``preprocessor_config.json``.

    Attributes:
        max_slice_nums: slices of one image, at most.
        scale_resolution: a view has about its square in pixels.
        slice_mode: whether images are cut at all.
        use_image_id: the prompt numbers its images.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    max_slice_nums: int = Field(9, gt=0)
    scale_resolution: int = Field(448, gt=0)
    patch_size: int = Field(14, gt=0)
    slice_mode: bool = True
    downsample_mode: Literal["16x", "4x"] = "16x"
    use_image_id: bool = True
    image_mean: tuple[float, float, float] = HALF
    image_std: tuple[float, float, float] = HALF
    resample: Literal[3] = 3
    max_patches: int | None = Field(None, gt=0)
    max_prompt_tokens: int | None = Field(None, gt=0)

    @classmethod
    def of(cls, source: Source, config: MiniCPMV46Config) -> "ProcessorConfig":
        """The processor of a source, that of transformers where it has none.

        Raises:
            InputError: a value is not supported, or does not go with the model's.
        """
        where = f"{source.path}, {PROCESSOR_FILE}"
        published = read_json_object(source.files[PROCESSOR_FILE]) if PROCESSOR_FILE in source.files else {}
        processor = checked(cls, published, where)
        expected = {
            "patch_size": config.vision_config.patch_size, "downsample_mode": config.downsample_mode,
            "image_mean": HALF, "image_std": HALF,
        }  # fmt: skip
        for key, value in expected.items():
            if (found := getattr(processor, key)) != value:
                raise InputError(
                    f"{key} is {found!r}, the model takes {value!r}",
                    where=where,
                    fix="give the files of one published checkpoint",
                )
        return processor


def checked(model: type[Checked], values: Mapping[str, Any], where: str) -> Checked:
    """`values` as a `model`; InputError names the first key that is wrong."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(first["msg"], where=f"{where}, {key}", fix="give the published files of one model") from error
