"""InternImage-T (Wang et al. 2023), whose deformable convolutions are deployed as samplings of a grid."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, image

PLACES = 9  # that a place looks at


class ChannelsLast(nn.Sequential):
    """A convolution and a normalization over channels, which it leaves last."""

    def __init__(self, cin: int, cout: int, s: int = 1, *, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 3, s, 1, groups=groups, bias=bias)
        self.norm = nn.LayerNorm(cout, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[1, height, width, cin] → [1, height, width, cout]."""
        return self.of_channels_first(x.permute(0, 3, 1, 2))

    def of_channels_first(self, x: Tensor) -> Tensor:
        """[1, cin, height, width] → [1, height, width, cout]."""
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class Deformable(nn.Module):
    """DCNv3: each group of channels, at each place, is a weighted mean of nine places that the picture chooses."""

    def __init__(self, width: int, groups: int, size: int) -> None:
        super().__init__()
        self.groups, self.padded = groups, size + 2
        self.given, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.near = nn.Sequential(ChannelsLast(width, width, groups=width), nn.GELU())
        self.moved, self.weights = nn.Linear(width, groups * PLACES * 2), nn.Linear(width, groups * PLACES)
        self.places = torch.rand(1, size, size, groups * PLACES * 2)
        self.scale = torch.full((1, 1, 1, groups * PLACES * 2), float(size + 2))

    def forward(self, x: Tensor) -> Tensor:
        """[1, height, width, channels], as before."""
        _, height, width, channels = x.shape
        near = self.near(x)
        weights = self.weights(near).reshape(1, height, width, self.groups, PLACES).softmax(-1)
        weights = weights.reshape(1, height, width, -1)
        grid = 2 * (self.places + self.moved(near) / self.scale) - 1
        grid = grid.view(1, height * width, self.groups, PLACES, 2).transpose(1, 2).flatten(0, 1)
        y = functional.pad(self.given(x), (0, 0, 1, 1, 1, 1)).view(1, self.padded**2, channels).transpose(1, 2)
        y = y.reshape(self.groups, channels // self.groups, self.padded, self.padded)
        y = functional.grid_sample(y, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weights = weights.view(1, height * width, self.groups, PLACES).transpose(1, 2)
        y = (y * weights.reshape(self.groups, 1, height * width, PLACES)).sum(-1).view(1, channels, height * width)
        return self.out(y.transpose(1, 2).reshape(1, height, width, channels))


class Block(nn.Module):
    """A deformable convolution and a perceptron, each of what is normalized, and shortcuts."""

    def __init__(self, width: int, groups: int, size: int) -> None:
        super().__init__()
        self.deformable = nn.Sequential(nn.LayerNorm(width, eps=1e-6), Deformable(width, groups, size))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        x = x + self.deformable(x)
        return x + self.mlp(x)


class InternImage(nn.Module):
    """A picture → 1000 classes."""

    def __init__(self) -> None:
        super().__init__()
        width, size = 64, 56
        self.first, self.second = ChannelsLast(3, width // 2, 2), ChannelsLast(width // 2, width, 2)
        layers: list[nn.Module] = []
        for i, depth in enumerate((4, 4, 18, 4)):
            layers += [*(Block(width, 4 * 2**i, size) for _ in range(depth)), nn.LayerNorm(width, eps=1e-6)]
            if i < 3:
                layers.append(ChannelsLast(width, 2 * width, 2, bias=False))
                width, size = 2 * width, size // 2
        self.layers, mid = nn.Sequential(*layers), width * 3 // 2
        self.head, self.classes = nn.Sequential(nn.Conv2d(width, mid, 1), nn.GELU()), nn.Linear(mid, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """[1, 1000]."""
        x = self.second(functional.gelu(self.first.of_channels_first(x)))
        x = self.head(self.layers(x).permute(0, 3, 1, 2))
        return self.classes(x.mean((2, 3)))


DEFORMABLE: dict[str, Construction] = {"internimage": Construction(InternImage, image(224), "internimage")}
