"""What sets the versions of MiniCPM-V apart: language model, vision tower, resampler, chat template."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pocketport.compress.families.decoder.config import DecoderConfig
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.prompt import CHATML, CHATML_SYSTEM, LLAMA3, MINICPM, QWEN3, Template
from pocketport.errors import InputError


@dataclass(frozen=True)
class Version:
    """One version.

    Attributes:
        name: as ``config.json`` has it.
        decoder: the language model's ``model_type``.
        template: of the prompt.
        timm: the tower has timm's names, a fused qkv, and a position table that is resampled to each view.
        positioned_queries: the resampler adds its own 2D positions (a tensor of the checkpoint) to the queries.
        resampled_positions: keys get those same positions, resampled to the view, rather than computed ones.
    """

    name: str
    decoder: str
    template: Template
    timm: bool = False
    positioned_queries: bool = False
    resampled_positions: bool = False


VERSIONS: Mapping[str, Version] = {
    version.name: version
    for version in (
        Version("1.0", "minicpm", MINICPM, timm=True, positioned_queries=True, resampled_positions=True),
        Version("2.0", "minicpm", MINICPM, timm=True, positioned_queries=True),
        Version("2.5", "llama", LLAMA3),
        Version("2.6", "qwen2", CHATML_SYSTEM),
        Version("4.0", "llama", CHATML),
        Version("4.5", "qwen3", QWEN3),
    )
}


def version_of(config: MiniCPMVConfig) -> Version:
    """The version that a configuration names.

    Raises:
        InputError: it is not known.
    """
    name = str(config.version)
    name = name if "." in name else f"{name}.0"
    if name not in VERSIONS:
        raise InputError(
            f"MiniCPM-V version {config.version} is not known",
            where="config.json, version",
            fix=f"known: {', '.join(VERSIONS)}; version 4.6 and later have a model_type of their own",
        )
    return VERSIONS[name]


def decoder_of(config: MiniCPMVConfig) -> DecoderConfig:
    """The language model.

    Every version multiplies embeddings by ``scale_emb`` where the file has it, whatever the language model is.

    Raises:
        InputError: the version is not known, or the decoder has a form that the graphs do not have.
    """
    keys = {key: value for key, value in config.model_dump().items() if not key.endswith("_config")}
    version = version_of(config)
    decoder = DecoderConfig.from_hf({**keys, "model_type": version.decoder})
    scale = keys.get("scale_emb")
    return decoder if scale is None else replace(decoder, embedding_scale=float(scale))
