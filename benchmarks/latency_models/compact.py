"""Small detectors and segmenters made for phones, after their public definitions."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, conv, image
from latency_models.detection import NANO, NANO_DEPTHS, YoloV8, aggregated, detections, twice


class Gate(nn.Module):
    """Channels weighted by what two 1×1 convolutions make of their means."""

    def __init__(self, width: int, mid: int) -> None:
        super().__init__()
        layers = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, mid, 1), nn.ReLU(), nn.Conv2d(mid, width, 1), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, others: Tensor | None = None) -> Tensor:
        """`x`, or `others`, weighted."""
        return (x if others is None else others) * self.layers(x)


class WideBlock(nn.Module):
    """MobileNetV3's block with full convolutions for the depthwise one: one of 3×3, or two for what would be 5×5."""

    def __init__(self, cin: int, mid: int, cout: int, stride: int, *, two: bool = False, gate: bool = False) -> None:
        super().__init__()
        layers = [conv(cin, mid, 1), conv(mid, cout, 3, 1 if two else stride)]
        if two:
            layers.append(conv(cout, cout, 3, stride))
        self.layers = nn.Sequential(*layers, Gate(cout, cout // 4) if gate else nn.Identity())
        self.stride = stride
        self.shortcut = nn.Identity() if cin == cout or stride == 2 else nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        """With a shortcut where the resolution stays."""
        y = self.layers(x)
        return y + self.shortcut(x) if self.stride == 1 else y


class FaceDetector(nn.Module):
    """Qualcomm's detectors of faces and of feet: such blocks, a pyramid, a head of contexts, and one map a quantity.

    Args:
        channels: of the picture.
        blocks: of the trunk.
        kept: blocks whose outputs go into the pyramid, from the finest.
        width: of the pyramid.
        maps: channels of every map.
        deep: whether a 3×3 convolution comes before each of them.
    """

    def __init__(
        self, channels: int, blocks: list[WideBlock], kept: dict[int, int], width: int, maps: list[int], *, deep: bool
    ) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.stem, self.blocks, self.kept = conv(channels, 16, 3, 2), nn.ModuleList(blocks), list(kept)
        self.top = conv(96, width, 1)
        self.sides = nn.ModuleList(conv(w, width, 1) for w in kept.values())
        self.ups = nn.ModuleList(conv(width, width) for _ in kept)
        self.near, self.context = conv(width, half), conv(width, quarter)
        self.one, self.two = conv(quarter, quarter), nn.Sequential(conv(quarter, quarter), conv(quarter, quarter))
        self.maps = nn.ModuleList(
            nn.Sequential(*([conv(width, width)] if deep else []), nn.Conv2d(width, n, 1)) for n in maps
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps at the finest level."""
        x, levels = self.stem(x), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.kept:
                levels.append(x)
        x = self.top(x)
        for up, side, level in zip(self.ups, reversed(self.sides), reversed(levels), strict=True):
            x = up(twice(x)) + side(level)
        context = self.context(x)
        x = torch.cat([self.near(x), torch.cat([self.one(context), self.two(context)], 1)], 1)
        return [head(x) for head in self.maps]


class LightFace(nn.Module):
    """Gray pictures → centers, boxes and landmarks of faces."""

    def __init__(self) -> None:
        super().__init__()
        gated = [
            (32, 96, 32, 2),
            (32, 224, 32, 1),
            (32, 224, 32, 1),
            (32, 128, 64, 1),
            (64, 160, 64, 1),
            (64, 256, 96, 2),
        ]
        blocks = [WideBlock(16, 16, 16, 2), WideBlock(16, 64, 32, 2), WideBlock(32, 96, 32, 1)]
        blocks += [WideBlock(*shape, two=True, gate=True) for shape in gated]
        self.model = FaceDetector(1, blocks, {2: 32, 7: 64}, 32, [1, 4, 10], deep=False)
        self.mean, self.deviation = torch.full((1, 1, 1, 1), 0.44), torch.full((1, 1, 1, 1), 0.28)

    def forward(self, picture: Tensor) -> list[Tensor]:
        """Three maps."""
        return self.model((picture - self.mean) / self.deviation)


class FootTrack(nn.Module):
    """Pictures → centers and boxes of three kinds, 17 landmarks and whether they are seen."""

    def __init__(self) -> None:
        super().__init__()
        plain = [(16, 16, 16, 1), (16, 64, 16, 2), (16, 64, 16, 1)]
        first = [(16, 96, 32, 2), (32, 96, 32, 1), (32, 128, 32, 1)]
        middle = [(32, 128, 64, 2), (64, 128, 64, 1), (64, 160, 64, 1), (64, 160, 64, 1)]
        last = [(64, 320, 64, 1), (64, 320, 96, 2), (96, 480, 96, 1)]
        blocks = [WideBlock(*shape) for shape in plain]
        blocks += [WideBlock(*shape, two=True, gate=True) for shape in first]
        blocks += [WideBlock(*shape) for shape in middle]
        blocks += [WideBlock(64, 256, 64, 1, gate=True), WideBlock(64, 320, 64, 1, gate=True)]
        blocks += [WideBlock(*shape, two=True, gate=True) for shape in last]
        self.colours = nn.Conv2d(3, 3, 1)
        self.model = FaceDetector(3, blocks, {2: 16, 5: 32, 12: 64}, 64, [1, 4, 1, 4, 1, 4, 34, 17], deep=True)

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Four maps."""
        *maps, marks, seen = self.model(self.colours(picture * 255.0))
        return torch.cat([m.sigmoid() for m in maps[::2]], 1), torch.cat(maps[1::2], 1), marks, seen.sigmoid()


class DoubleBlaze(nn.Module):
    """BlazeFace's double block (Bazarevsky et al. 2019), 5×5."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        mid = max(cin, cout) // 2
        self.layers = nn.Sequential(
            nn.Conv2d(cin, cin, 5, 1, 2, groups=cin), conv(cin, mid, 1),
            nn.Conv2d(mid, mid, 5, 1, 2, groups=mid), nn.Conv2d(mid, cout, 1),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Same resolution."""
        return torch.relu(self.layers(x) + self.shortcut(x))


class GearGuard(nn.Module):
    """Qualcomm's detector of protective gear: YOLOv5-s with double blaze blocks, three anchors a cell and two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.p3 = nn.Sequential(
            conv(3, 32, 6, 2), conv(32, 64, 3, 2), DoubleBlaze(64, 64), conv(64, 128, 3, 2), DoubleBlaze(128, 128)
        )  # fmt: skip
        self.p3[0][0].padding = (2, 2)
        self.p4 = nn.Sequential(conv(128, 256, 3, 2), *[DoubleBlaze(256, 256) for _ in range(3)])
        self.p5 = nn.Sequential(conv(256, 512, 3, 2), DoubleBlaze(512, 512), conv(512, 512))
        self.reduce5, self.reduce4 = conv(512, 256, 1), conv(256, 128, 1)
        self.up4, self.up3 = DoubleBlaze(512, 256), DoubleBlaze(256, 128)
        self.down3, self.out4 = conv(128, 128, 3, 2), DoubleBlaze(256, 256)
        self.down4, self.out5 = conv(256, 256, 3, 2), DoubleBlaze(512, 512)
        self.heads = nn.ModuleList(nn.Conv2d(w, 21, 1) for w in (128, 256, 512))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Corners, the best class's score and number."""
        found = torch.cat([self._decoded(h(y)) for h, y in zip(self.heads, aggregated(self, x), strict=True)], 1)
        return detections(found[..., :4], found[..., 5:] * found[..., 4:5])

    @staticmethod
    def _decoded(y: Tensor) -> Tensor:
        """[1, 21, height, width] → [1, anchors, 7]: center and size, whether there is something, two classes."""
        _, _, h, w = y.shape
        y = y.permute(0, 2, 3, 1).reshape(1, h, w, 3, 7)
        seen, what = y[..., 4].sigmoid().reshape(1, -1), y[..., 5:].sigmoid().reshape(1, -1, 2)
        y, where, anchor = y.reshape(1, -1, 7), torch.ones(1, h * w * 3), torch.ones(1, h * w * 3)
        centers = [(y[..., i].sigmoid() * 2 - 0.5 + where) * 8.0 for i in (0, 1)]
        sizes = [4 * y[..., i].sigmoid() ** 2 * anchor for i in (2, 3)]
        return torch.cat([torch.stack([*centers, *sizes, seen], 2), what], 2)


class Selfie(nn.Module):
    """MediaPipe's segmentation of persons: the small MobileNetV3 to a stride of 16, a decoder of gated shortcuts.

    Convolutions pad as TensorFlow does; what they pad is no layer of its own on devices.
    """

    def __init__(self) -> None:
        super().__init__()
        swish = nn.Hardswish()
        self.stem, self.first = conv(3, 16, 3, 2, act=swish), conv(16, 16, 1)
        self.shrink = conv(16, 16, 3, 2, groups=16)
        self.gates = nn.ModuleList(Gate(w, m) for w, m in ((16, 8), (96, 24), (128, 32), (128, 32), (96, 24), (96, 24)))
        self.low = nn.Conv2d(16, 16, 1)
        self.second = nn.Sequential(conv(16, 72, 1), conv(72, 72, 3, 2, groups=72), nn.Conv2d(72, 24, 1))
        self.third = nn.Sequential(conv(24, 88, 1), conv(88, 88, 3, groups=88), nn.Conv2d(88, 24, 1))
        plan = [(24, 96, 2), (32, 128, 1), (32, 128, 1), (32, 96, 1), (32, 96, 1)]
        self.wide = nn.ModuleList(
            nn.Sequential(conv(cin, mid, 1, act=swish), conv(mid, mid, 5, s, groups=mid, act=swish))
            for cin, mid, s in plan
        )
        self.narrow = nn.ModuleList(nn.Conv2d(mid, 32, 1) for _, mid, _ in plan)
        self.top, self.topped = (
            conv(32, 128, 1),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 128, 1), nn.Sigmoid()),
        )
        self.lifts = nn.ModuleList(nn.Conv2d(cin, cout, 1) for cin, cout in ((128, 24), (24, 16), (16, 16)))
        self.joins = nn.ModuleList(Gate(w, w) for w in (24, 16, 16))
        self.mixes = nn.ModuleList(conv(w, w, 1) for w in (24, 16, 16))
        self.spreads = nn.ModuleList(conv(w, w, 3, groups=w) for w in (24, 16, 16))
        self.out = nn.ConvTranspose2d(16, 1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """A mask of the picture's size."""
        half = self.stem(x)
        x = self.shrink(self.first(half))
        quarter = self.low(self.gates[0](x))
        y = self.second(quarter)
        eighth = self.third(y) + y
        x = eighth
        for i, (wide, narrow) in enumerate(zip(self.wide, self.narrow, strict=True)):
            y = narrow(self.gates[i + 1](wide(x)))
            x = y if i == 0 else y + x
        x = self.top(x) * self.topped(x)
        for i, side in enumerate((eighth, quarter, half)):
            y = self.lifts[i](functional.interpolate(x, scale_factor=2.0, mode="bilinear"))
            x = self.mixes[i](y + self.joins[i](y + side, side))
            x = x + self.spreads[i](x)
        return self.out(x).sigmoid()


COMPACT: dict[str, Construction] = {
    "face_det_lite": Construction(LightFace, image(480, 640, channels=1), "face"),
    "foot_track_net": Construction(FootTrack, image(480, 640), "face"),
    "gear_guard_net": Construction(GearGuard, image(320, 192), "yolo"),
    "lpdm": Construction(lambda: YoloV8(NANO, NANO_DEPTHS, 51), image(640), "yolo"),
    "mediapipe_selfie": Construction(Selfie, image(256), "mbnet"),
}
