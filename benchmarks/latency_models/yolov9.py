"""YOLOv9-T (Wang et al. 2024) with YOLOv8's head, after the paper and the public configuration, its reparametrizable convolutions with both branches."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, image
from latency_models.detection import C2f, Sppf, V8Head, aggregated, cbs, detections


class RepConv(nn.Module):
    """A 3×3 and a pointwise convolution, added, and SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.point = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return functional.silu(self.wide(x) + self.point(x))


class RepBottleneck(nn.Module):
    """Such a convolution and a plain one, and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(RepConv(width), cbs(width, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x + self.layers(x)


class RepCsp(nn.Module):
    """Half of the width through three bottlenecks, half beside them."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        half = cout // 2
        self.left = nn.Sequential(cbs(cin, half), *[RepBottleneck(half) for _ in range(3)])
        self.right, self.out = cbs(cin, half), cbs(cout, cout)

    def forward(self, x: Tensor) -> Tensor:
        """Same resolution."""
        return self.out(torch.cat([self.left(x), self.right(x)], 1))


class Gelan(C2f):
    """YOLOv8's block with two stages, each of bottlenecks and a convolution; `plain` ones are single convolutions."""

    def __init__(self, cin: int, width: int, *, plain: bool = False) -> None:
        super().__init__(cin, width, 2)
        half = self.half
        self.blocks = nn.ModuleList(
            cbs(half, half, 3) if plain else nn.Sequential(RepCsp(half, half), cbs(half, half, 3)) for _ in range(2)
        )


class Down(nn.Module):
    """A mean over 2×2 at stride 1, and a convolution of stride 2."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.layer = cbs(cin, cout, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Half the resolution."""
        return self.layer(functional.avg_pool2d(x, 2, 1))


class YoloV9(nn.Module):
    """YOLOv9-T."""

    def __init__(self) -> None:
        super().__init__()
        self.p3 = nn.Sequential(
            cbs(3, 16, 3, 2), cbs(16, 32, 3, 2), Gelan(32, 32, plain=True), Down(32, 64), Gelan(64, 64)
        )
        self.p4 = nn.Sequential(Down(64, 96), Gelan(96, 96))
        self.p5 = nn.Sequential(Down(96, 128), Gelan(128, 128), Sppf(128, 128))
        self.reduce5 = self.reduce4 = nn.Identity()
        self.up4, self.up3 = Gelan(224, 96), Gelan(160, 64)
        self.down3, self.out4 = Down(64, 48), Gelan(144, 96)
        self.down4, self.out5 = Down(96, 64), Gelan(192, 128)
        self.head = V8Head([64, 96, 128], 80)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Corners, the best class's score and number."""
        boxes, scores = self.head(aggregated(self, x))
        return detections(boxes.transpose(1, 2), scores.transpose(1, 2))


YOLOV9: dict[str, Construction] = {"yolov9_det": Construction(YoloV9, image(640), "yolo")}
