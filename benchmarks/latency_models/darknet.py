"""Detectors on Darknet's line: YOLOv3 and its tiny form, YOLOv4-tiny, YOLOv7-tiny, after their papers and public configurations."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, image
from latency_models.detection import V8Head, cbs, detections, twice


def leaky(cin: int, cout: int, k: int = 3, s: int = 1) -> nn.Sequential:
    """Darknet's convolution."""
    return nn.Sequential(nn.Conv2d(cin, cout, k, s, k // 2), nn.LeakyReLU(0.1))


class Residual(nn.Module):
    """Two 3×3 convolutions over half of the channels, with or without a shortcut."""

    def __init__(self, width: int, *, shortcut: bool = True) -> None:
        super().__init__()
        self.layers = nn.Sequential(cbs(width, width // 2, 3), cbs(width // 2, width, 3))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x + self.layers(x) if self.shortcut else self.layers(x)


class V3(nn.Module):
    """YOLOv3 (Redmon and Farhadi 2018) with the head of YOLOv8, as it is distributed today."""

    def __init__(self) -> None:
        super().__init__()
        stages, last = [nn.Sequential(cbs(3, 32, 3))], 32
        for w, n in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
            stages.append(nn.Sequential(cbs(last, w, 3, 2), *[Residual(w) for _ in range(n)]))
            last = w
        self.p3, self.p4, self.p5 = nn.Sequential(*stages[:4]), stages[4], stages[5]
        plain = [Residual(w, shortcut=False) for w in (1024, 512, 256, 256)]
        self.deep = nn.Sequential(plain[0], cbs(1024, 512), cbs(512, 1024, 3), cbs(1024, 512))
        self.far, self.lift5 = cbs(512, 1024, 3), cbs(512, 256)
        self.middle = nn.Sequential(_narrowed(768, 512), plain[1], cbs(512, 256))
        self.between, self.lift4 = cbs(256, 512, 3), cbs(256, 128)
        self.near = nn.Sequential(_narrowed(384, 256), *plain[2:])
        self.head = V8Head([256, 512, 1024], 80)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Corners, the best class's score and number."""
        p3 = self.p3(x)
        p4 = self.p4(p3)
        deep = self.deep(self.p5(p4))
        middle = self.middle(torch.cat([twice(self.lift5(deep)), p4], 1))
        near = self.near(torch.cat([twice(self.lift4(middle)), p3], 1))
        boxes, scores = self.head([near, self.between(middle), self.far(deep)])
        return detections(boxes.transpose(1, 2), scores.transpose(1, 2))


def _narrowed(cin: int, cout: int) -> nn.Sequential:
    """What a residual block without a shortcut is where its ends differ."""
    return nn.Sequential(cbs(cin, cout // 2, 3), cbs(cout // 2, cout, 3))


class TinyV3(nn.Module):
    """YOLOv3-tiny with the head of YOLOv8, two levels, as it is distributed today."""

    def __init__(self) -> None:
        super().__init__()
        layers, last = [], 3
        for w in (16, 32, 64, 128, 256):
            layers += [cbs(last, w, 3), nn.MaxPool2d(2)]
            last = w
        self.trunk = nn.Sequential(*layers[:-1])
        self.deep = nn.Sequential(
            nn.MaxPool2d(2), cbs(256, 512, 3), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1), cbs(512, 1024, 3), cbs(1024, 256)
        )  # fmt: skip
        self.far, self.lift, self.near = cbs(256, 512, 3), cbs(256, 128), cbs(384, 256, 3)
        self.head = V8Head([256, 512], 80)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Corners, the best class's score and number."""
        middle = self.trunk(x)
        deep = self.deep(middle)
        near = self.near(torch.cat([twice(self.lift(deep)), middle], 1))
        boxes, scores = self.head([near, self.far(deep)])
        return detections(boxes.transpose(1, 2), scores.transpose(1, 2))


def _decoded(y: Tensor) -> Tensor:
    _, _, h, w = y.shape
    y = y.view(1, 3, 85, h, w).permute(0, 1, 3, 4, 2)
    xy, wh, rest = y.split((2, 2, 81), 4)
    return torch.cat([(xy.sigmoid() + 1.0) * 8.0, wh.exp() * 8.0, rest.sigmoid()], 4).reshape(1, -1, 85)


class CspTiny(nn.Module):
    """YOLOv4-tiny's block: half of the channels go through two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = leaky(width, width)
        self.second, self.third = leaky(width // 2, width // 2), leaky(width // 2, width // 2)
        self.out = leaky(width, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Twice the channels, and the features before the concatenation."""
        x = self.first(x)
        half = self.second(x[:, x.shape[1] // 2 :])
        inner = self.out(torch.cat([self.third(half), half], 1))
        return torch.cat([x, inner], 1), inner


class TinyV4(nn.Module):
    """YOLOv4-tiny (Wang et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(leaky(3, 32, 3, 2), leaky(32, 64, 3, 2))
        self.blocks = nn.ModuleList(CspTiny(w) for w in (64, 128, 256))
        self.deep = nn.Sequential(leaky(512, 512), leaky(512, 256, 1))
        self.far = nn.Sequential(leaky(256, 512), nn.Conv2d(512, 255, 1))
        self.lift = leaky(256, 128, 1)
        self.near = nn.Sequential(leaky(384, 256), nn.Conv2d(256, 255, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[1, anchors, 85]."""
        x, inner = self.stem(x), x
        for block in self.blocks:
            x, inner = block(x)
            x = functional.max_pool2d(x, 2)
        deep = self.deep(x)
        levels = [self.far(deep), self.near(torch.cat([twice(self.lift(deep)), inner], 1))]
        return torch.cat([_decoded(y) for y in levels], 1)


def _found(y: Tensor) -> Tensor:
    """Three anchors a cell [1, 255, height, width] → [1, anchors, 85]: center and size, whether there is something, what."""
    _, _, h, w = y.shape
    y = y.view(1, 3, 85, h, w).permute(0, 1, 3, 4, 2).sigmoid()
    xy, wh, rest = y.split((2, 2, 81), 4)
    where, anchor = torch.ones(1, 3, h, w, 2), torch.ones(1, 3, h, w, 2)
    return torch.cat([(xy * 2 - 0.5 + where) * 8.0, (wh * 2) ** 2 * anchor, rest], 4).reshape(1, -1, 85)


class Elan(nn.Module):
    """YOLOv7-tiny's block: two 1×1 convolutions, two 3×3 behind the second, all four concatenated."""

    def __init__(self, cin: int, mid: int, out: int) -> None:
        super().__init__()
        self.left, self.right, self.out = leaky(cin, mid, 1), leaky(cin, mid, 1), leaky(4 * mid, out, 1)
        self.third, self.fourth = leaky(mid, mid), leaky(mid, mid)

    def forward(self, x: Tensor) -> Tensor:
        """Same resolution."""
        right = self.right(x)
        third = self.third(right)
        return self.out(torch.cat([self.fourth(third), third, right, self.left(x)], 1))


class TinyV7(nn.Module):
    """YOLOv7-tiny (Wang et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2)
        self.p3 = nn.Sequential(leaky(3, 32, 3, 2), leaky(32, 64, 3, 2), Elan(64, 32, 64), pool, Elan(64, 64, 128))
        self.p4 = nn.Sequential(pool, Elan(128, 128, 256))
        self.p5 = nn.Sequential(pool, Elan(256, 256, 512))
        self.before, self.beside = leaky(512, 256, 1), leaky(512, 256, 1)
        self.joined, self.top = leaky(1024, 256, 1), leaky(512, 256, 1)
        self.lift5, self.side4, self.up4 = leaky(256, 128, 1), leaky(256, 128, 1), Elan(256, 64, 128)
        self.lift4, self.side3, self.up3 = leaky(128, 64, 1), leaky(128, 64, 1), Elan(128, 32, 64)
        self.down3, self.out4 = leaky(64, 128, 3, 2), Elan(256, 64, 128)
        self.down4, self.out5 = leaky(128, 256, 3, 2), Elan(512, 128, 256)
        self.heads = nn.ModuleList(nn.Sequential(leaky(w, 2 * w), nn.Conv2d(2 * w, 255, 1)) for w in (64, 128, 256))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Corners, the best class's score and number."""
        p3 = self.p3(x)
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        y = self.before(p5)
        pooled = [functional.max_pool2d(y, k, 1, k // 2) for k in (13, 9, 5)]
        p5 = self.top(torch.cat([self.joined(torch.cat([*pooled, y], 1)), self.beside(p5)], 1))
        p4 = self.up4(torch.cat([self.side4(p4), twice(self.lift5(p5))], 1))
        n3 = self.up3(torch.cat([self.side3(p3), twice(self.lift4(p4))], 1))
        n4 = self.out4(torch.cat([self.down3(n3), p4], 1))
        n5 = self.out5(torch.cat([self.down4(n4), p5], 1))
        y = torch.cat([_found(head(level)) for head, level in zip(self.heads, (n3, n4, n5), strict=True)], 1)
        boxes, seen, what = y.split((4, 1, 80), 2)
        corners, score, number = detections(boxes, what)
        return corners, score * seen.squeeze(2), number


DARKNET: dict[str, Construction] = {
    "deepbox:yolo_2d_detection": Construction(V3, image(224, 640), "yolo"),
    "yolov3": Construction(TinyV3, image(640), "yolo"),
    "yolov4": Construction(TinyV4, image(416), "yolo"),
    "yolov7": Construction(TinyV7, image(640), "yolo"),
}
