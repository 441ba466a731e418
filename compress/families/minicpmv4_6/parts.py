"""What the component graphs of MiniCPM-V 4.6 share: configuration, static lengths and layers."""

from dataclasses import dataclass

from pocketport.compress.families.layers import Layers
from pocketport.compress.families.minicpmv4_6.config import WINDOW, MiniCPMV46Config


@dataclass(frozen=True)
class StaticShape:
    """The lengths that are fixed at compile time.

    Attributes:
        patches: image patches of one view (L), whole vision tokens; smaller views are padded.
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

    config: MiniCPMV46Config
    shape: StaticShape

    @property
    def features(self) -> int:
        """Rows of the tower's output: patches, or windows of them."""
        return self.shape.patches // (WINDOW**2 if self.config.mergers == 2 else 1)
