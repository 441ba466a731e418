"""What a construction is, and the blocks that several of them share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Construction:
    """One measured model.

    Attributes:
        build: makes it, with random weights.
        inputs: what it takes; values only matter where they are indices.
        family: models that must not be on both sides of a split.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    family: str


def image(height: int, width: int | None = None, *, channels: int = 3) -> tuple[Tensor, ...]:
    """One image [1, channels, height, width]."""
    return (torch.zeros(1, channels, height, width or height),)


class First(nn.Module):
    """A model that returns the named outputs alone, or its first one."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The model's outputs."""
        out = self.model(*inputs)
        if self.names:
            return tuple(getattr(out, n) for n in self.names)
        return out[0] if not isinstance(out, Tensor) else out


class Normalized(nn.Module):
    """A model that takes pictures of 0 to 1 and normalizes them itself, as the deployed ones of maps and key points do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.mean, self.deviation = torch.full((1, 3, 1, 1), 0.45), torch.full((1, 3, 1, 1), 0.22)

    def forward(self, picture: Tensor) -> Tensor:
        """What the model makes of the normalized picture."""
        return self.model((picture - self.mean) / self.deviation)


class Centered(nn.Module):
    """A model that takes pictures of 0 to 1 and brings them to −1 to 1 itself, as the deployed ones do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, picture: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the model makes of the centered picture."""
        return self.model(picture * 2.0 - 1.0)


def conv(
    cin: int, cout: int, k: int = 3, s: int = 1, *, groups: int = 1, dilation: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    """Convolution with a folded normalization, and an activation."""
    pad = dilation * (k - 1) // 2
    layer = nn.Conv2d(cin, cout, k, s, pad, groups=groups, dilation=dilation)
    return nn.Sequential(layer, nn.ReLU() if act is None else act)


def resized(x: Tensor, like: Tensor, mode: str = "bilinear") -> Tensor:
    """`x` at the height and width of `like`."""
    corners = None if mode == "nearest" else False
    return functional.interpolate(x, size=like.shape[2:], mode=mode, align_corners=corners)
