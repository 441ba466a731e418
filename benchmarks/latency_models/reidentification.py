"""Descriptors of persons."""

import torch
from torch import Tensor, nn

from latency_models.base import Construction, conv, image


class Light(nn.Module):
    """A 1×1 convolution, then a depthwise 3×3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), conv(width, width, groups=width))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return self.layers(x)


class Omni(nn.Module):
    """OSNet's block: four depths of light convolutions, weighted by one gate of channels, and a shortcut."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        mid = cout // 4
        self.first, self.out = conv(cin, mid, 1), nn.Conv2d(mid, cout, 1)
        self.streams = nn.ModuleList(nn.Sequential(*[Light(mid) for _ in range(n)]) for n in (1, 2, 3, 4))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(mid, mid // 16, 1), nn.ReLU(), nn.Conv2d(mid // 16, mid, 1), nn.Sigmoid()
        )
        self.shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Same resolution."""
        y, parts = self.first(x), []
        for stream in self.streams:
            part = stream(y)
            parts.append(part * self.gate(part))
        return torch.relu(self.out(sum(parts[1:], parts[0])) + self.shortcut(x))


class OsNet(nn.Module):
    """OSNet ×1.0 (Zhou et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
        for cin, cout in ((64, 256), (256, 384), (384, 512)):
            layers += [Omni(cin, cout), Omni(cout, cout)]
            if cout < 512:
                layers += [conv(cout, cout, 1), nn.AvgPool2d(2)]
        self.trunk = nn.Sequential(*layers, conv(512, 512, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.descriptor = nn.Sequential(nn.Linear(512, 512), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """[1, 512]."""
        return self.descriptor(self.trunk(x))


REIDENTIFICATION: dict[str, Construction] = {"osnet": Construction(OsNet, image(256, 128), "osnet")}
