"""OpenVINO IR that openvino-genai's LLMPipeline opens: model, tokenizer and detokenizer, configuration."""

import shutil
from pathlib import Path
from typing import Any

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.formats.contract import Progress, SchemeChoice
from pocketport.compress.formats.language_model import LanguageModel, check_decoder
from pocketport.compress.formats.linear_weights import check_language, choose_linear
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.compress.sources.source import Source
from pocketport.errors import UsageError
from pocketport.targets.x86.openvino_decoder import decoder_model
from pocketport.targets.x86.openvino_weights import OpenVinoWeights

BITS = (4, 8)
MODEL = "openvino_model"
SCRATCH = "constants.tmp"
TOKENIZER = "tokenizer.json"


class OpenVinoFormat:
    """See `pocketport.compress.formats.contract.Format`."""

    name = "openvino"
    variants: tuple[str, ...] = ()
    default_scheme = "w4b128fp16"

    def check(self, source: Source, bundle: ModelBundle, variant: str) -> None:
        """Language models whose layers attend by softmax."""
        check_language(self.name, source, {c.name for c in bundle})
        check_decoder(self.name, source, LanguageModel.of(bundle))

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
        import openvino

        scratch = directory / SCRATCH
        constants = OpenVinoWeights(source, weights, scratch)
        model = decoder_model(constants, LanguageModel.of(bundle))
        openvino.save_model(model, directory / f"{MODEL}.xml", compress_to_fp16=False)
        del model, constants  # in this order: the model points into the constants' maps
        scratch.unlink()
        files = [directory / f"{MODEL}.xml", directory / f"{MODEL}.bin"]
        for name, path in sorted(source.files.items()):
            shutil.copyfile(path, directory / name)
            files.append(directory / name)
        return files
