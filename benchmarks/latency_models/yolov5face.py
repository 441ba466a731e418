"""YOLOv5n-face (Qi et al. 2022): faces and five points of each, with ShuffleNetV2's blocks, after the paper and the public configuration."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, image
from latency_models.detection import C3, aggregated, cbs


class Stem(nn.Module):
    """To a quarter of the resolution: a convolution, then two convolutions beside a pooling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.out = cbs(3, width, 3, 2), cbs(2 * width, width)
        self.beside = nn.Sequential(cbs(width, width // 2), cbs(width // 2, width, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        """[1, width, height / 4, width / 4]."""
        x = self.first(x)
        return self.out(torch.cat([self.beside(x), functional.max_pool2d(x, 2, ceil_mode=True)], 1))


class Shuffle(nn.Module):
    """ShuffleNetV2's block (Ma et al. 2018) with SiLU: one half of the channels is convolved, or both with a stride of two."""

    def __init__(self, cin: int, cout: int, s: int) -> None:
        super().__init__()
        half = cout // 2
        self.half, self.stride = half, s
        self.left = nn.Sequential(_depthwise(cin, s), cbs(cin, half)) if s == 2 else nn.Identity()
        self.right = nn.Sequential(cbs(cin if s == 2 else half, half), _depthwise(half, s), cbs(half, half))

    def forward(self, x: Tensor) -> Tensor:
        """Channels of both halves alternate."""
        left, right = (x, x) if self.stride == 2 else x.split((self.half, self.half), 1)
        x = torch.cat([self.left(left), self.right(right)], 1)
        _, c, h, w = x.shape
        return x.view(1, 2, c // 2, h, w).transpose(1, 2).reshape(1, c, h, w)


def _depthwise(width: int, s: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, s, 1, groups=width)


def _stage(cin: int, cout: int, n: int) -> nn.Sequential:
    return nn.Sequential(Shuffle(cin, cout, 2), *[Shuffle(cout, cout, 1) for _ in range(n - 1)])


class YoloV5Face(nn.Module):
    """YOLOv5n-face, three anchors a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.p3, self.p4, self.p5 = (
            nn.Sequential(Stem(32), _stage(32, 128, 4)),
            _stage(128, 256, 8),
            _stage(256, 512, 4),
        )
        self.reduce5, self.reduce4 = cbs(512, 128), cbs(128, 128)
        self.up4, self.up3 = C3(384, 128, 1, False), C3(256, 128, 1, False)
        self.down3, self.down4 = cbs(128, 128, 3, 2), cbs(128, 128, 3, 2)
        self.out4, self.out5 = C3(256, 128, 1, False), C3(256, 128, 1, False)
        self.heads = nn.ModuleList(nn.Conv2d(128, 48, 1) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes [1, 25200, 4], scores [1, 25200, 1] and points [1, 25200, 10]."""
        found = torch.cat(
            [self._decoded(head(level)) for head, level in zip(self.heads, aggregated(self, x), strict=True)], 1
        )
        return found[..., :4], found[..., 4:5] * found[..., 15:], found[..., 5:15]

    @staticmethod
    def _decoded(y: Tensor) -> Tensor:
        """[1, 48, height, width] → [1, anchors, 16]: center, size, whether there is a face, five points, how likely it is one."""
        _, _, h, w = y.shape
        y = y.view(1, 3, 16, h, w).permute(0, 1, 3, 4, 2)
        y = torch.cat([y[..., :5].sigmoid(), torch.cat([y[..., 5:15], y[..., 15:].sigmoid()], 4)], 4)
        where, anchor = torch.ones(1, 3, h, w, 2), torch.full((1, 3, h, w, 2), 1.5)
        center, size = (y[..., :2] * 2 - 0.5 + where) * 8.0, (y[..., 2:4] * 2) ** 2 * anchor
        points = [y[..., i : i + 2] * anchor + where for i in range(5, 15, 2)]
        return torch.cat([center, size, y[..., 4:5], *points, y[..., 15:]], 4).view(1, -1, 16)


YOLOV5FACE: dict[str, Construction] = {"yolov5_face": Construction(YoloV5Face, image(640), "yolo")}
