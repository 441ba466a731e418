"""What the component graphs of the Qwen-VL series share: configuration, static lengths and layers."""

from dataclasses import dataclass

import onnx_ir as ir

from pocketport.compress.families.layers import Layers
from pocketport.compress.families.qwen_vl.config import NORM_EPS, QwenVLConfig


@dataclass(frozen=True)
class StaticShape:
    """The lengths that are fixed at compile time.

    Attributes:
        patches: image patches (L), a multiple of those in one vision token; smaller images are padded.
        prompt: prompt tokens (S), left-padded.
        cache: columns of the KV cache that decode reads (C): prompt plus new tokens.
    """

    patches: int
    prompt: int
    cache: int


@dataclass(frozen=True)
class Parts(Layers):
    """`Layers` of this family.

    Attributes:
        config: the checkpoint's ``config.json``.
        visual: path of the vision tower in the checkpoint (``visual``, ``model.visual``).
        shape: the static lengths.
    """

    config: QwenVLConfig
    visual: str
    shape: StaticShape

    def norm(self, x: ir.Value, path: str, width: int) -> ir.Value:
        """The norm of this kind of tower over the last axis: RMSNorm in Qwen2.5-VL, else LayerNorm."""
        if self.config.kind != "qwen2_5_vl":
            return self.layer_norm(x, path, width, NORM_EPS)
        gamma = self.weight(f"{path}.weight", width)
        return self.g.node("RMSNormalization", [x, gamma], path, axis=-1, epsilon=NORM_EPS)
