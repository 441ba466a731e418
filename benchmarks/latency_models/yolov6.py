"""YOLOv6-n 3.0 (Li et al. 2023), after the paper and the public configuration.

Its blocks of RepVGG have all their branches: devices count 124 layers more than with these in one convolution, and at ``w8a16`` two more
for each of the 30 free-standing normalizations, which stay float.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, conv, image
from latency_models.detection import cbs


class RepVgg(nn.Module):
    """A 3×3 and a pointwise convolution and, where shapes stay, a all added (Ding et al. 2021)."""

    def __init__(self, cin: int, cout: int, s: int = 1) -> None:
        super().__init__()
        self.wide, self.point = nn.Conv2d(cin, cout, 3, s, 1), nn.Conv2d(cin, cout, 1, s)
        self.same = nn.BatchNorm2d(cin) if cin == cout and s == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """With an activation."""
        y = self.wide(x) + self.point(x)
        return torch.relu(y if self.same is None else y + self.same(x))


def _row(cin: int, cout: int, n: int, s: int = 1) -> nn.Sequential:
    """`n` blocks, the first from `cin` and with the stride."""
    return nn.Sequential(RepVgg(cin, cout, s), *[RepVgg(cout, cout) for _ in range(n - 1)])


class CspPooling(nn.Module):
    """Three poolings of 5 between convolutions, beside a pointwise one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.before = nn.Sequential(conv(width, half, 1), conv(half, half), conv(half, half, 1))
        self.beside, self.out = conv(width, half, 1), conv(width, width, 1)
        self.after = nn.Sequential(conv(4 * half, half, 1), conv(half, half))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        parts = [self.before(x)]
        for _ in range(3):
            parts.append(functional.max_pool2d(parts[-1], 5, 1, 2))
        return self.out(torch.cat([self.beside(x), self.after(torch.cat(parts, 1))], 1))


class BiFusion(nn.Module):
    """A coarser, an equal and a finer level at the middle one's resolution."""

    def __init__(self, middle: int, fine: int, width: int) -> None:
        super().__init__()
        self.up, self.same = nn.ConvTranspose2d(width, width, 2, 2), conv(middle, width, 1)
        self.down, self.out = nn.Sequential(conv(fine, width, 1), conv(width, width, 3, 2)), conv(3 * width, width, 1)

    def forward(self, coarse: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        """At the middle resolution."""
        return self.out(torch.cat([self.up(coarse), self.same(middle), self.down(fine)], 1))


class YoloV6(nn.Module):
    """YOLOv6-n without distributions of distances; anchors of one a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.p2 = nn.Sequential(RepVgg(3, 16, 2), _row(16, 32, 3, 2))
        self.p3, self.p4 = _row(32, 64, 5, 2), _row(64, 128, 7, 2)
        self.p5 = nn.Sequential(_row(128, 256, 3, 2), CspPooling(256))
        self.reduce5, self.reduce4 = conv(256, 64, 1), conv(64, 32, 1)
        self.join4, self.up4 = BiFusion(128, 64, 64), _row(64, 64, 4)
        self.join3, self.up3 = BiFusion(64, 32, 32), _row(32, 32, 4)
        self.down3, self.out4 = conv(32, 32, 3, 2), _row(64, 64, 4)
        self.down4, self.out5 = conv(64, 64, 3, 2), _row(128, 128, 4)
        widths = (32, 64, 128)
        self.stems = nn.ModuleList(cbs(w, w) for w in widths)
        self.scores = nn.ModuleList(nn.Sequential(cbs(w, w, 3), nn.Conv2d(w, 80, 1)) for w in widths)
        self.boxes = nn.ModuleList(nn.Sequential(cbs(w, w, 3), nn.Conv2d(w, 4, 1)) for w in widths)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Corners, the best class's score and number."""
        p2 = self.p2(x)
        p3 = self.p3(p2)
        p4 = self.p4(p3)
        r5 = self.reduce5(self.p5(p4))
        r4 = self.reduce4(self.up4(self.join4(r5, p4, p3)))
        n3 = self.up3(self.join3(r4, p3, p2))
        n4 = self.out4(torch.cat([self.down3(n3), r4], 1))
        n5 = self.out5(torch.cat([self.down4(n4), r5], 1))
        scores, boxes = [], []
        for stem, score, box, level in zip(self.stems, self.scores, self.boxes, (n3, n4, n5), strict=True):
            y, n = stem(level), level.shape[2] * level.shape[3]
            scores.append(score(y).sigmoid().reshape(1, 80, n))
            boxes.append(box(y).reshape(1, 4, n))
        return self._found(torch.cat(boxes, 2).permute(0, 2, 1), torch.cat(scores, 2).permute(0, 2, 1))

    @staticmethod
    def _found(distances: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distances from a cell [1, anchors, 4] and scores → corners by way of centers, as the deployment has them; 5000 anchors at a time."""
        n = distances.shape[1]
        where, stride, sure = torch.ones(1, n, 2), torch.full((1, n, 1), 8.5), torch.ones(1, n, 1)
        left, right = distances.split(2, 2)
        low, high = where - left, where + right
        boxes = torch.cat([(low + high) / 2, high - low], 2) * stride
        found = torch.cat([boxes, sure, scores], 2)
        center, half = found[..., :2], found[..., 2:4] * 0.5
        parts = (found[..., 5:] * found[..., 4:5]).split(5000, 1)
        best, numbers = [part.amax(2) for part in parts], [part.argmax(2).int() for part in parts]
        corners = torch.cat([center - half, center + half], 2)
        return corners, torch.cat(best, 1), torch.cat(numbers, 1).to(torch.uint8)


YOLOV6: dict[str, Construction] = {"yolov6": Construction(YoloV6, image(640), "yolo")}
