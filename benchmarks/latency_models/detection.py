"""Single-shot detectors of the YOLO line, after their papers and public configurations."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, image


def cbs(cin: int, cout: int, k: int = 1, s: int = 1, *, groups: int = 1, act: bool = True) -> nn.Sequential:
    """Convolution, normalization (folded), SiLU."""
    return nn.Sequential(nn.Conv2d(cin, cout, k, s, k // 2, groups=groups), nn.SiLU() if act else nn.Identity())


class Bottleneck(nn.Module):
    """Two convolutions, with or without a shortcut."""

    def __init__(self, width: int, shortcut: bool, first: int) -> None:
        super().__init__()
        self.layers, self.shortcut = nn.Sequential(cbs(width, width, first), cbs(width, width, 3)), shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x + self.layers(x) if self.shortcut else self.layers(x)


class C3(nn.Module):
    """YOLOv5's cross-stage block."""

    def __init__(self, cin: int, cout: int, n: int, shortcut: bool = True) -> None:
        super().__init__()
        half = cout // 2
        self.left = nn.Sequential(cbs(cin, half), *[Bottleneck(half, shortcut, 1) for _ in range(n)])
        self.right, self.out = cbs(cin, half), cbs(2 * half, cout)

    def forward(self, x: Tensor) -> Tensor:
        """Same resolution."""
        return self.out(torch.cat([self.left(x), self.right(x)], 1))


class C2f(nn.Module):
    """YOLOv8's cross-stage block, all intermediate results concatenated."""

    def __init__(self, cin: int, cout: int, n: int, shortcut: bool = True) -> None:
        super().__init__()
        self.half = cout // 2
        self.first, self.out = cbs(cin, cout), cbs((2 + n) * self.half, cout)
        self.blocks = nn.ModuleList(Bottleneck(self.half, shortcut, 3) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        """Same resolution."""
        parts = list(self.first(x).split((self.half, self.half), 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.out(torch.cat(parts, 1))


class Sppf(nn.Module):
    """Three poolings of 5, concatenated."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.first, self.out = cbs(cin, cin // 2), cbs(2 * cin, cout)

    def forward(self, x: Tensor) -> Tensor:
        """Same resolution."""
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(functional.max_pool2d(parts[-1], 5, 1, 2))
        return self.out(torch.cat(parts, 1))


class Pyramid(nn.Module):
    """Backbone and path-aggregation neck of YOLOv5 and YOLOv8: features at strides 8, 16 and 32."""

    def __init__(
        self, widths: list[int], depths: list[int], block: type[nn.Module], stem: int, *, reduce: bool
    ) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = widths
        self.stem = nn.Sequential(cbs(3, c1, stem, 2), cbs(c1, c2, 3, 2), block(c2, c2, depths[0]))
        self.p3 = nn.Sequential(cbs(c2, c3, 3, 2), block(c3, c3, depths[1]))
        self.p4 = nn.Sequential(cbs(c3, c4, 3, 2), block(c4, c4, depths[2]))
        self.p5 = nn.Sequential(cbs(c4, c5, 3, 2), block(c5, c5, depths[3]), Sppf(c5, c5))
        n = depths[3]
        w5, w4 = (c4, c3) if reduce else (c5, c4)
        self.reduce5 = cbs(c5, c4) if reduce else nn.Identity()
        self.reduce4 = cbs(c4, c3) if reduce else nn.Identity()
        self.up4, self.up3 = block(w5 + c4, c4, n, False), block(w4 + c3, c3, n, False)
        self.down3, self.out4 = cbs(c3, c3, 3, 2), block(c3 + w4, c4, n, False)
        self.down4, self.out5 = cbs(c4, c4, 3, 2), block(c4 + w5, c5, n, False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Three levels."""
        return aggregated(self, self.stem(x))


def aggregated(body: nn.Module, x: Tensor) -> list[Tensor]:
    """Three levels, through the backbone ``p3`` to ``p5`` and the path aggregation ``reduce5`` to ``out5`` of a network."""
    p3 = body.p3(x)
    p4 = body.p4(p3)
    r5 = body.reduce5(body.p5(p4))
    r4 = body.reduce4(body.up4(torch.cat([twice(r5), p4], 1)))
    n3 = body.up3(torch.cat([twice(r4), p3], 1))
    n4 = body.out4(torch.cat([body.down3(n3), r4], 1))
    return [n3, n4, body.out5(torch.cat([body.down4(n4), r5], 1))]


def twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class V8Head(nn.Module):
    """YOLOv8's decoupled head: boxes as distributions of 16 bins, classes, and per anchor `extra` more channels."""

    def __init__(self, widths: list[int], classes: int, extra: int = 0) -> None:
        super().__init__()
        box, score = max(16, widths[0] // 4, 64), max(widths[0], min(classes, 100))
        more = max(widths[0] // 4, extra)
        self.boxes = nn.ModuleList(_branch(w, box, 64) for w in widths)
        self.scores = nn.ModuleList(_branch(w, score, classes) for w in widths)
        self.extras = nn.ModuleList(_branch(w, more, extra) for w in widths) if extra else None

    def decoded(self, levels: list[Tensor], each: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes [1, 4, anchors] of centers and sizes and, of every level's scores, those of all [1, classes, anchors]."""
        boxes = torch.cat([b(x).flatten(2) for b, x in zip(self.boxes, levels, strict=True)], 2)
        scores = torch.cat([s.flatten(2) for s in each], 2)
        bins = boxes.view(1, 4, 16, -1).transpose(1, 2).softmax(1)
        distance = (bins * torch.arange(16.0).view(1, 16, 1, 1)).sum(1)
        low, high = distance.chunk(2, 1)
        anchors = torch.ones(1, 2, distance.shape[2])
        low, high = anchors - low, anchors + high
        return torch.cat([(low + high) / 2, high - low], 1) * 8.0, scores.sigmoid()

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, ...]:
        """Boxes, scores and, if there are any, the extra channels."""
        out = list(self.decoded(levels, [s(x) for s, x in zip(self.scores, levels, strict=True)]))
        if self.extras is not None:
            out.append(torch.cat([e(x).flatten(2) for e, x in zip(self.extras, levels, strict=True)], 2))
        return tuple(out)


def detections(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [1, anchors, 4] of centers and sizes and scores [1, anchors, classes] → corners, the best class's score, its number."""
    x, y, w, h = boxes.unbind(2)
    w, h = w * 0.5, h * 0.5
    corners = torch.stack([x - w, y - h, x + w, y + h], 2)
    return (corners, *best(scores))


def best(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Of scores [1, anchors, classes] the highest, and the number of its class; of one class the scores."""
    return scores.amax(2), scores.argmax(2).to(torch.uint8)


def _branch(cin: int, mid: int, out: int) -> nn.Sequential:
    return nn.Sequential(cbs(cin, mid, 3), cbs(mid, mid, 3), nn.Conv2d(mid, out, 1))


class YoloV8(nn.Module):
    """Detection; `masks` adds FastSAM's and YOLOv8-seg's prototypes, `angle` the oriented boxes' angle. What it gives is what
    deployments hand over: corners, the best class's score and number."""

    def __init__(
        self, widths: list[int], depths: list[int], classes: int, masks: int = 0, *, angle: bool = False
    ) -> None:
        super().__init__()
        self.body = Pyramid(widths, depths, C2f, 3, reduce=False)
        self.head = V8Head(widths[2:], classes, masks or int(angle))
        self.prototypes = None
        if masks:
            mid = widths[2] if widths[2] > 64 else 64
            self.prototypes = nn.Sequential(
                cbs(widths[2], mid, 3), nn.ConvTranspose2d(mid, mid, 2, 2), cbs(mid, mid, 3), cbs(mid, masks)
            )
        self.angle = angle

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Boxes, scores and classes; the angles, or the masks' coefficients and prototypes."""
        levels = self.body(x)
        boxes, scores, *extra = self.head(levels)
        boxes, scores = boxes.transpose(1, 2), scores.transpose(1, 2)
        if self.angle:
            turn = (extra[0].transpose(1, 2).sigmoid() - 0.25) * math.pi
            return boxes * turn.cos() + boxes.flip(2) * turn.sin(), *best(scores), turn
        found = detections(boxes, scores) if scores.shape[2] > 1 else (detections(boxes, scores)[0], scores.squeeze(2))
        if self.prototypes is None:
            return found
        return *found, extra[0].transpose(1, 2), self.prototypes(levels[0])


class YoloV5(nn.Module):
    """YOLOv5 with the head of YOLOv8, as it is distributed today: devices counted 7 layers less than this has, of YOLOv3-tiny too."""

    def __init__(self, widths: list[int], depths: list[int]) -> None:
        super().__init__()
        self.body = Pyramid(widths, depths, C3, 7, reduce=True)
        self.head = V8Head(widths[2:], 80)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Corners, the best class's score and number."""
        boxes, scores = self.head(self.body(x))
        return detections(boxes.transpose(1, 2), scores.transpose(1, 2))


class YoloX(nn.Module):
    """YOLOX-s (Ge et al. 2021): focus stem, decoupled head without anchors."""

    def __init__(self) -> None:
        super().__init__()
        widths = [32, 64, 128, 256, 512]
        self.focus = cbs(12, 32, 3)
        self.body = Pyramid(widths, [1, 3, 3, 1], C3, 3, reduce=True)
        self.body.stem = self.body.stem[1:]
        self.stems = nn.ModuleList(cbs(w, 128) for w in widths[2:])
        self.classes = nn.ModuleList(nn.Sequential(cbs(128, 128, 3), cbs(128, 128, 3)) for _ in range(3))
        self.boxes = nn.ModuleList(nn.Sequential(cbs(128, 128, 3), cbs(128, 128, 3)) for _ in range(3))
        self.outs = nn.ModuleList(nn.ModuleList(nn.Conv2d(128, n, 1) for n in (4, 1, 80)) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Corners, the best class's score and number."""
        x = x * 255.0
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        out = []
        for i, level in enumerate(self.body(self.focus(x))):
            stem = self.stems[i](level)
            score, box = self.classes[i](stem), self.boxes[i](stem)
            where, seen, what = self.outs[i]
            out.append((where(box).flatten(2), torch.cat([seen(box).sigmoid(), what(score).sigmoid()], 1).flatten(2)))
        boxes, scores = (torch.cat(parts, 2).permute(0, 2, 1) for parts in zip(*out, strict=True))
        boxes = torch.cat([(boxes[..., :2] + 1.0) * 8.0, boxes[..., 2:].exp() * 8.0], 2)
        seen, what = scores.split((1, 80), 2)
        corners, score, number = detections(boxes, what)
        return corners, score * seen.squeeze(2), number


NANO, NANO_DEPTHS = [16, 32, 64, 128, 256], [1, 2, 2, 1]
DETECTION: dict[str, Construction] = {
    "fastsam_s": Construction(lambda: YoloV8([32, 64, 128, 256, 512], [1, 2, 2, 1], 1, 32), image(640), "yolo"),
    "fastsam_x": Construction(lambda: YoloV8([80, 160, 320, 640, 640], [3, 6, 6, 3], 1, 32), image(640), "yolo"),
    "yolov5": Construction(lambda: YoloV5([48, 96, 192, 384, 768], [2, 4, 6, 2]), image(640), "yolo"),
    "yolov8_det": Construction(lambda: YoloV8(NANO, NANO_DEPTHS, 80), image(640), "yolo"),
    "yolov8_obb": Construction(lambda: YoloV8(NANO, NANO_DEPTHS, 80, angle=True), image(640), "yolo"),
    "yolov8_seg": Construction(lambda: YoloV8(NANO, NANO_DEPTHS, 80, 32), image(640), "yolo"),
    "yolox": Construction(YoloX, image(640), "yolo"),
}
