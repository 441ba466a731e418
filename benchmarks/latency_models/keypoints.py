"""Key points of a whole body: RTMPose-m (Jiang et al. 2023), after the paper and the public configuration."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, image
from latency_models.detection import cbs

POINTS, HIDDEN = 133, 256


class NextBlock(nn.Module):
    """A 3×3 convolution, a depthwise one of 5×5 and a pointwise one, with or without a shortcut."""

    def __init__(self, width: int, *, shortcut: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(cbs(width, width, 3), cbs(width, width, 5, groups=width), cbs(width, width))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x + self.layers(x) if self.shortcut else self.layers(x)


class NextStage(nn.Module):
    """CSPNeXt's cross-stage layer: half of the width through such blocks, all channels weighted by their means."""

    def __init__(self, width: int, n: int, *, shortcut: bool) -> None:
        super().__init__()
        half = width // 2
        self.left = nn.Sequential(cbs(width, half), *[NextBlock(half, shortcut=shortcut) for _ in range(n)])
        self.right, self.out = cbs(width, half), cbs(width, width)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        right = self.right(x)
        x = torch.cat([self.left(x), right], 1)
        return self.out(x * self.gate(x))


class Pooling(nn.Module):
    """Poolings of 5, 9 and 13 beside one another, concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.out = cbs(width, width // 2), cbs(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        x = self.first(x)
        return self.out(torch.cat([x, *[functional.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13)]], 1))


class ScaleNorm(nn.Module):
    """Divides tokens by their lengths."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.root, self.gain = width**-0.5, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x / (x.norm(dim=2, keepdim=True) * self.root).clamp(min=1e-5) * self.gain


class GatedAttention(nn.Module):
    """One head of attention with squared rectifiers, gated (Hua et al. 2022)."""

    def __init__(self, wide: int = 512, shared: int = 128) -> None:
        super().__init__()
        self.parts, self.root = (wide, wide, shared), shared**0.5
        self.norm, self.spread = ScaleNorm(HIDDEN), nn.Linear(HIDDEN, 2 * wide + shared, bias=False)
        self.gamma, self.beta = nn.Parameter(torch.ones(2, shared)), nn.Parameter(torch.ones(2, shared))
        self.out, self.scale = nn.Linear(wide, HIDDEN, bias=False), nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        gate, value, base = functional.silu(self.spread(self.norm(x))).split(self.parts, 2)
        query, key = (base.unsqueeze(2) * self.gamma + self.beta).unbind(2)
        share = torch.bmm(query, key.permute(0, 2, 1)) / self.root
        share = torch.square(share.relu())
        return x * self.scale + self.out(gate * torch.bmm(share, value))


class RtmPose(nn.Module):
    """A person's picture → for 133 points how likely every column and row is."""

    def __init__(self) -> None:
        super().__init__()
        layers = [cbs(3, 24, 3, 2), cbs(24, 24, 3), cbs(24, 48, 3)]
        for (cin, cout), n in zip(itertools.pairwise((48, 96, 192, 384, 768)), (2, 4, 4, 2), strict=True):
            last = cout == 768
            layers += [cbs(cin, cout, 3, 2), *([Pooling(cout)] if last else []), NextStage(cout, n, shortcut=not last)]
        self.trunk, self.points = nn.Sequential(*layers), nn.Conv2d(768, POINTS, 7, 1, 3)
        self.embed = nn.Sequential(ScaleNorm(48), nn.Linear(48, HIDDEN, bias=False))
        self.attention = GatedAttention()
        self.columns, self.rows = nn.Linear(HIDDEN, 384, bias=False), nn.Linear(HIDDEN, 512, bias=False)
        self.mean, self.deviation = torch.full((1, 3, 1, 1), 0.45), torch.full((1, 3, 1, 1), 0.22)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """[1, 133, 384] and [1, 133, 512]."""
        x = (picture[:, [2, 1, 0]] - self.mean) / self.deviation
        x = self.attention(self.embed(self.points(self.trunk(x)).flatten(2)))
        return self.columns(x), self.rows(x)


KEYPOINTS: dict[str, Construction] = {"rtmpose_body2d": Construction(RtmPose, image(256, 192), "rtmpose")}
