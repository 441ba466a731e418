"""YOLOv10-n (Wang et al. 2024), with its head for many boxes an object, after the paper and the public configuration."""

import torch
from torch import Tensor, nn

from latency_models.base import Construction, image
from latency_models.detection import C2f, Sppf, V8Head, aggregated, cbs, detections


class Down(nn.Module):
    """Spatial-channel decoupled downsampling: a 1×1 convolution, a depthwise one of stride 2."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(cbs(cin, cout), cbs(cout, cout, 3, 2, groups=cout, act=False))

    def forward(self, x: Tensor) -> Tensor:
        """Half the resolution."""
        return self.layers(x)


class Attention(nn.Module):
    """Attention over the pixels, with keys of half the values' width and a depthwise position encoding."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.value, self.key = heads, width // heads, width // heads // 2
        self.qkv, self.out = cbs(width, 2 * width, act=False), cbs(width, width, act=False)
        self.position = cbs(width, width, 3, groups=width, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.heads, 2 * self.key + self.value, h * w)
        q, k, v = qkv.split((self.key, self.key, self.value), 2)
        scores = (q.transpose(2, 3) @ k * self.key**-0.5).softmax(3)
        y = (v @ scores.transpose(2, 3)).view(b, c, h, w)
        return self.out(y + self.position(v.reshape(b, c, h, w)))


class Psa(nn.Module):
    """Partial self-attention: half of the channels attend."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.half, self.first, self.out = half, cbs(width, width), cbs(width, width)
        self.attention = Attention(half, half // 64)
        self.ffn = nn.Sequential(cbs(half, width), cbs(width, half, act=False))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        left, right = self.first(x).split((self.half, self.half), 1)
        right = right + self.attention(right)
        return self.out(torch.cat([left, right + self.ffn(right)], 1))


class Inverted(nn.Module):
    """Compact inverted block: depthwise, pointwise, depthwise of 7 (reparametrized), pointwise, depthwise, and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.layers = nn.Sequential(
            cbs(width, width, 3, groups=width), cbs(width, wide), cbs(wide, wide, 7, groups=wide), cbs(wide, width),
            cbs(width, width, 3, groups=width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x + self.layers(x)


class V10Head(V8Head):
    """YOLOv8's head with depthwise-separable branches for the classes."""

    def __init__(self, widths: list[int], classes: int) -> None:
        super().__init__(widths, classes)
        mid = max(widths[0], min(classes, 100))
        self.scores = nn.ModuleList(
            nn.Sequential(
                cbs(w, w, 3, groups=w), cbs(w, mid), cbs(mid, mid, 3, groups=mid), cbs(mid, mid), nn.Conv2d(mid, classes, 1)
            )
            for w in widths
        )  # fmt: skip


class YoloV10(nn.Module):
    """YOLOv10-n."""

    def __init__(self) -> None:
        super().__init__()
        self.p3 = nn.Sequential(cbs(3, 16, 3, 2), cbs(16, 32, 3, 2), C2f(32, 32, 1), cbs(32, 64, 3, 2), C2f(64, 64, 2))
        self.p4 = nn.Sequential(Down(64, 128), C2f(128, 128, 2))
        self.p5 = nn.Sequential(Down(128, 256), C2f(256, 256, 1), Sppf(256, 256), Psa(256))
        self.reduce5 = self.reduce4 = nn.Identity()
        self.up4, self.up3 = C2f(384, 128, 1, False), C2f(192, 64, 1, False)
        self.down3, self.out4 = cbs(64, 64, 3, 2), C2f(192, 128, 1, False)
        self.down4, self.out5 = Down(128, 128), C2f(384, 256, 1)
        self.out5.blocks = nn.ModuleList([Inverted(128)])
        self.head = V10Head([64, 128, 256], 80)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Corners, the best class's score and number."""
        boxes, scores = self.head(aggregated(self, x))
        return detections(boxes.transpose(1, 2), scores.transpose(1, 2))


YOLOV10: dict[str, Construction] = {"yolov10_det": Construction(YoloV10, image(640), "yolo")}
