"""Qualcomm's attributes and shape of a face, after their public definitions."""

import torch
from torch import Tensor, nn

from latency_models.base import Construction, conv, image
from latency_models.realtime import stage


def _pair(cin: int, mid: int, cout: int, groups: int, s: int = 1, *, act: bool = False) -> nn.Sequential:
    """A grouped 3×3 convolution and a pointwise one."""
    end = nn.PReLU() if act else nn.Identity()
    return nn.Sequential(nn.Conv2d(cin, mid, 3, s, 1, groups=groups), nn.Conv2d(mid, cout, 1), end)


class Sum(nn.Module):
    """Two branches, added, and an activation."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right, self.act = left, right, nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Of one shape."""
        return self.act(self.left(x) + self.right(x))


def _layers(width: int, n: int) -> nn.Sequential:
    """Blocks from `width` to twice the width at half the resolution, in groups of 32 channels."""
    wide, groups = 2 * width, width // 32
    first, last = _pair(width, 2 * wide, wide, groups, 2, act=True), _pair(wide, 2 * wide, wide, groups)
    blocks: list[nn.Module] = [Sum(_pair(width, wide, wide, groups, 2, act=True), nn.Sequential(first, last))]
    for _ in range(n - 1):
        first, last = (_pair(wide, 2 * wide, wide, wide // 32, act=act) for act in (True, False))
        blocks.append(Sum(nn.Sequential(first, last), nn.Identity()))
    return nn.Sequential(*blocks)


class Attributes(nn.Module):
    """Whether both eyes are open, and whether there are glasses, a mask or sunglasses."""

    def __init__(self) -> None:
        super().__init__()
        head = nn.Sequential(_pair(64, 64, 64, 2, 2, act=True), _pair(64, 64, 64, 2))
        self.middle = nn.Sequential(
            conv(3, 64, act=nn.PReLU()), Sum(head, _pair(64, 64, 64, 2, 2)), _layers(64, 2), _layers(128, 6)
        )
        self.last = _layers(256, 3)
        self.sides = nn.ModuleList(_pair(256, 128, 128, 8, 2, act=True) for _ in range(5))
        self.joins = nn.ModuleList(
            nn.Sequential(_pair(640, 320, 128, 20, 2, act=True), nn.AvgPool2d(4, 1)) for _ in range(5)
        )
        self.heads = nn.ModuleList(nn.Linear(128, 2) for _ in range(5))

    def forward(self, picture: Tensor) -> Tensor:
        """Five probabilities."""
        middle = self.middle((picture - 0.5) / 0.502)
        last = self.last(middle)
        found = []
        for side, join, head in zip(self.sides, self.joins, self.heads, strict=True):
            found.append(head(join(torch.cat([side(middle), last], 1)).flatten(1)))
        return torch.stack(found, 1).softmax(2)[:, :, 1]


class Shape(nn.Module):
    """The parameters of a face's shape: a ResNet-18 of half the width that reads gray."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 1, 1), conv(1, 32, 7, 2), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2),
            stage(32, 32, 2), stage(32, 64, 2, 2), stage(64, 128, 2, 2), stage(128, 256, 1, 2), stage(256, 512, 1),
            nn.AvgPool2d(4, 1),
        )  # fmt: skip
        self.out = nn.Linear(512, 265)

    def forward(self, picture: Tensor) -> Tensor:
        """[1, 265]."""
        return self.out(self.features(picture * 255.0).flatten(1))


FACES: dict[str, Construction] = {
    "face_attrib_net": Construction(Attributes, image(128), "attributes"),
    "facemap_3dmm": Construction(Shape, image(128), "resnet"),
}
