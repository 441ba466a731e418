"""What the component graphs of MiniCPM-V share: configuration, static lengths and layers."""

from dataclasses import dataclass

import onnx_ir as ir

from pocketport.compress.families.layers import Layers
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig


@dataclass(frozen=True)
class StaticShape:
    """The lengths that are fixed at compile time.

    Attributes:
        patches: image patches of one slice (L); smaller slices are padded.
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
        shape: the static lengths.
    """

    config: MiniCPMVConfig
    shape: StaticShape

    def rms_norm(self, x: ir.Value, path: str) -> ir.Value:
        """RMSNormalization over the last axis, as wide as the language model."""
        gamma = self.weight(f"{path}.weight", self.config.hidden_size)
        return self.g.node("RMSNormalization", [x, gamma], path, axis=-1, epsilon=self.config.rms_norm_eps)
