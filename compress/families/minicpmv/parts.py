"""What the component graphs of MiniCPM-V share: configuration, static lengths and layers."""

from dataclasses import dataclass

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
