"""A preset as a Source of shapes: what a model costs follows from them, and takes no checkpoint on disk."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from pocketport.compress.sources.source import Source
from pocketport.compress.synthesis.layout import layout_of
from pocketport.compress.synthesis.preset import Preset
from pocketport.compress.synthesis.write import write_small_files


def shape_source(preset: Preset, folder: Path) -> Source:
    """The preset's Source; every tensor is zeros without memory (strides of 0).

    Args:
        preset: see `load_preset`.
        folder: where configuration and tokenizer are written, and must stay while the Source is used.

    Raises:
        UsageError: transformers is not installed.
        InputError: it does not know the architecture.
    """
    write_small_files(preset, folder)
    zero = np.float32(0)
    tensors = {
        name: ir.Tensor(np.broadcast_to(zero, shape), name=name) for name, shape in layout_of(preset.config).items()
    }
    return Source(folder, preset.config, tensors, {p.name: p for p in sorted(folder.iterdir())})
