"""OpenVINO IR that openvino-genai's LLMPipeline opens: model, tokenizer and detokenizer, configuration."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.formats.contract import Progress, SchemeChoice
from pocketport.compress.formats.language_model import LanguageModel, check_decoder
from pocketport.compress.formats.linear_weights import check_language, choose_linear
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.compress.sources.source import Source
from pocketport.errors import ToolchainError, UsageError
from pocketport.targets.x86.compile import name_stably
from pocketport.targets.x86.openvino_decoder import decoder_model
from pocketport.targets.x86.openvino_weights import OpenVinoWeights

BITS = (4, 8)
MODEL = "openvino_model"
SCRATCH = "constants.tmp"
TOKENIZER = "tokenizer.json"
PACKAGES = ("openvino", "openvino_tokenizers", "transformers")


class OpenVinoFormat:
    """See `pocketport.compress.formats.contract.Format`."""

    name = "openvino"
    variants: tuple[str, ...] = ()
    default_scheme = "w4b128fp16"

    def check(self, source: Source, bundle: ModelBundle, variant: str) -> None:
        """Language models whose layers attend by softmax; OpenVINO and its tokenizers must be installed."""
        check_language(self.name, source, {c.name for c in bundle})
        check_decoder(self.name, source, LanguageModel.of(bundle))
        lacking = [package for package in PACKAGES if find_spec(package) is None]
        if lacking:
            raise UsageError(
                f"it needs {' and '.join(lacking)}",
                where=f"format {self.name}",
                fix="pip install 'pocketport[x86,llm]'",
            )

    def choose(
        self, tensor: str, shape: tuple[int, ...], component: str, role: str, variant: str, wanted: str | None
    ) -> SchemeChoice:
        """Linear layers as the recipe says; embedding table and vocabulary projection in 8 bits per channel."""
        if role == "head" or (role == "table" and component == "embed"):
            return SchemeChoice("w8cfp16", "8 bits: every token passes through it")
        return choose_linear(self.name, self.default_scheme, BITS, tensor, shape, component, role, wanted)

    def write(
        self,
        source: Source,
        bundle: ModelBundle,
        weights: QuantizedWeights,
        directory: Path,
        variant: str,
        progress: Progress,
    ) -> list[Path]:
        """``openvino_model.xml`` and ``.bin``, the tokenizer's two models, and the published files."""
        scratch = directory / SCRATCH
        constants = OpenVinoWeights(source, weights, scratch, progress)
        model = decoder_model(constants, LanguageModel.of(bundle))
        files = _save(model, directory / MODEL)
        del model, constants  # in this order: the model points into the constants' maps
        scratch.unlink()
        for name, path in sorted(source.files.items()):
            shutil.copyfile(path, directory / name)
            files.append(directory / name)
        return [*files, *(_write_tokenizer(directory) if TOKENIZER in source.files else [])]


def _save(model: Any, path: Path) -> list[Path]:
    import openvino

    name_stably(model)
    openvino.save_model(model, path.with_suffix(".xml"), compress_to_fp16=False)
    return [path.with_suffix(".xml"), path.with_suffix(".bin")]


def _write_tokenizer(directory: Path) -> list[Path]:
    """The tokenizer in `directory` as two OpenVINO models.

    Raises:
        ToolchainError: openvino-tokenizers can't express it.
    """
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        models = convert_tokenizer(tokenizer, with_detokenizer=True)
    except Exception as error:  # both packages raise their own kinds
        raise ToolchainError(
            f"openvino-tokenizers: {type(error).__name__}: {error}",
            where=str(directory / TOKENIZER),
            fix="write onnxruntime-genai or gguf instead",
        ) from error
    names = ("openvino_tokenizer", "openvino_detokenizer")
    return [file for name, model in zip(names, models, strict=True) for file in _save(model, directory / name)]
