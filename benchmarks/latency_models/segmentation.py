"""Dense prediction: segmentation and key points."""

import itertools

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, First, Normalized, conv, image, resized


class DeepLabV3Plus(nn.Module):
    """MobileNetV2 at output stride 16, atrous pyramid, decoder (Chen et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        layers = torchvision.models.mobilenet_v2().features[:-1]
        for block in layers[14:]:
            for layer in block.modules():
                if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                    layer.stride, layer.dilation, layer.padding = (1, 1), (2, 2), (2, 2)
        self.low, self.high = layers[:4], layers[4:]
        rates = (6, 12, 18)
        self.pyramid = nn.ModuleList([conv(320, 256, 1), *[conv(320, 256, dilation=r) for r in rates]])
        self.pooled, self.project = conv(320, 256, 1), conv(1280, 256, 1)
        self.reduce, self.decode = conv(24, 48, 1), nn.Sequential(conv(304, 256), conv(256, 256))
        self.classes = nn.Conv2d(256, 21, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of every pixel."""
        low = self.low(x)
        high = self.high(low)
        parts = [part(high) for part in self.pyramid]
        parts.append(resized(self.pooled(high.mean((2, 3), keepdim=True)), high))
        y = resized(self.project(torch.cat(parts, 1)), low)
        return resized(self.classes(self.decode(torch.cat([self.reduce(low), y], 1))), x)


class Separable(nn.Sequential):
    """A depthwise 3×3 convolution and a pointwise one; a ReLU before the first, or one after each."""

    def __init__(self, cin: int, cout: int, s: int = 1, dilation: int = 1, *, before: bool = False) -> None:
        depthwise = nn.Conv2d(cin, cin, 3, s, dilation, dilation, groups=cin)
        pointwise = nn.Conv2d(cin, cout, 1)
        if before:
            super().__init__(nn.ReLU(), depthwise, pointwise)
        else:
            super().__init__(depthwise, nn.ReLU(), pointwise, nn.ReLU())


class XceptionBlock(nn.Module):
    """Three separable convolutions, the last with a stride, and a shortcut."""

    def __init__(self, widths: list[int], stride: int = 1) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.first = nn.Sequential(*[Separable(*pair, before=True) for pair in pairs[:2]])
        self.last = Separable(*pairs[2], stride, before=True)
        self.same = widths[0] == widths[-1] and stride == 1
        self.shortcut = nn.Identity() if self.same else nn.Conv2d(widths[0], widths[-1], 1, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The result, and what is in the middle at the input's resolution."""
        middle = self.first(x)
        return self.last(middle) + self.shortcut(x), middle


class DeepLabXception(nn.Module):
    """Xception-65 at output stride 16, separable atrous pyramid and decoder (Chen et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 32, 3, 2), conv(32, 64))
        self.entry = nn.ModuleList(XceptionBlock([a, b, b, b], 2) for a, b in ((64, 128), (128, 256), (256, 728)))
        self.flow = nn.ModuleList(XceptionBlock([728] * 4) for _ in range(16))
        self.exit = XceptionBlock([728, 728, 1024, 1024])
        self.end = nn.Sequential(*[Separable(a, b, 1, 2) for a, b in ((1024, 1536), (1536, 1536), (1536, 2048))])
        self.point, self.pooled, self.project = conv(2048, 256, 1), conv(2048, 256, 1), conv(1280, 256, 1)
        self.pyramid = nn.ModuleList(Separable(2048, 256, 1, rate) for rate in (6, 12, 18))
        self.reduce, self.decode = conv(256, 48, 1), nn.Sequential(Separable(304, 256), Separable(256, 256))
        self.classes = nn.Conv2d(256, 21, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of every pixel."""
        y, low = self.stem(x), x
        for i, block in enumerate((*self.entry, *self.flow, self.exit)):
            y, middle = block(y)
            low = middle if i == 1 else low
        y = self.end(y)
        pooled = resized(self.pooled(functional.adaptive_avg_pool2d(y, 1)), y)
        y = self.project(torch.cat([pooled, self.point(y), *[part(y) for part in self.pyramid]], 1))
        return resized(self.classes(self.decode(torch.cat([resized(y, low), self.reduce(low)], 1))), x)


class VggBlock(nn.Sequential):
    """A convolution whose normalization stands behind its activation, where no weights take it up."""

    def __init__(self, cin: int, cout: int, k: int = 3, *, act: bool = True) -> None:
        layers = [nn.Conv2d(cin, cout, k, padding=k // 2), *([nn.ReLU()] if act else []), nn.BatchNorm2d(cout)]
        super().__init__(*layers)


class SuperPoint(nn.Module):
    """Key points and descriptors (DeTone et al. 2018) of two pictures, as Pautrat and Sarlin's."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (cin, cout) in enumerate(itertools.pairwise((1, 64, 64, 128, 128))):
            layers += [VggBlock(cin, cout), VggBlock(cout, cout), *([nn.MaxPool2d(2)] if i < 3 else [])]
        self.trunk, self.gray = nn.Sequential(*layers), torch.full((1, 3, 1, 1), 0.33)
        self.points = nn.Sequential(VggBlock(128, 256), VggBlock(256, 65, 1, act=False))
        self.descriptors = nn.Sequential(VggBlock(128, 256), VggBlock(256, 256, 1, act=False))

    def forward(self, *pictures: Tensor) -> list[Tensor]:
        """Of each picture how much a point every pixel is [1, height, width], and unit descriptors of cells of 8×8."""
        out = []
        for picture in pictures:
            x = self.trunk((picture * self.gray).sum(1, keepdim=True))
            heat = torch.softmax(self.points(x), 1)[:, :-1]
            _, _, rows, columns = heat.shape
            heat = heat.permute(0, 2, 3, 1).reshape(1, rows, columns, 8, 8).permute(0, 1, 3, 2, 4)
            out += [heat.reshape(1, 8 * rows, 8 * columns), functional.normalize(self.descriptors(x), dim=1)]
        return out


class Rsu(nn.Module):
    """Residual U-block of U²-Net (Qin et al. 2020); `dilated` keeps the resolution."""

    def __init__(self, height: int, cin: int, mid: int, cout: int, *, dilated: bool = False) -> None:
        super().__init__()
        self.dilated = dilated
        self.first = conv(cin, cout)
        rates = [2**i for i in range(height)] if dilated else [1] * (height - 1) + [2]
        self.down = nn.ModuleList(conv(cout if i == 0 else mid, mid, dilation=r) for i, r in enumerate(rates))
        back = rates[-2::-1] if dilated else [1] * (height - 1)
        self.up = nn.ModuleList(conv(2 * mid, cout if i == height - 2 else mid, dilation=r) for i, r in enumerate(back))

    def forward(self, x: Tensor) -> Tensor:
        """Same resolution."""
        first = self.first(x)
        kept, y = [], first
        for i, layer in enumerate(self.down):
            if not self.dilated and 0 < i < len(self.down) - 1:
                y = functional.max_pool2d(y, 2, ceil_mode=True)
            y = layer(y)
            kept.append(y)
        for layer, skip in zip(self.up, kept[-2::-1], strict=True):
            y = layer(torch.cat([y if self.dilated else resized(y, skip), skip], 1))
        return first + y


class U2Net(nn.Module):
    """Salient objects at six scales."""

    def __init__(self) -> None:
        super().__init__()
        down = [(7, 3, 32, 64), (6, 64, 32, 128), (5, 128, 64, 256), (4, 256, 128, 512), (4, 512, 256, 512), (4, 512, 256, 512)]  # fmt: skip
        up = [(4, 1024, 256, 512), (4, 1024, 128, 256), (5, 512, 64, 128), (6, 256, 32, 64), (7, 128, 16, 64)]
        self.down = nn.ModuleList(Rsu(*p, dilated=i >= 4) for i, p in enumerate(down))
        self.up = nn.ModuleList(Rsu(*p, dilated=i == 0) for i, p in enumerate(up))
        self.sides = nn.ModuleList(nn.Conv2d(c, 1, 3, 1, 1) for c in (512, 512, 256, 128, 64, 64))
        self.fuse = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Probability of every pixel."""
        kept, y = [], x
        for i, layer in enumerate(self.down):
            y = layer(functional.max_pool2d(y, 2, ceil_mode=True) if i else y)
            kept.append(y)
        levels = [y]
        for layer, skip in zip(self.up, kept[-2::-1], strict=True):
            y = layer(torch.cat([resized(y, skip), skip], 1))
            levels.append(y)
        maps = [resized(side(level), x) for side, level in zip(self.sides, levels, strict=True)]
        return torch.sigmoid(self.fuse(torch.cat(maps, 1)))


class Trunk(nn.Module):
    """HRNet's highest resolution, with a head of key points."""

    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model("hrnet_w32", features_only=True, feature_location="")
        self.head = nn.Conv2d(32, 17, 1)

    def forward(self, x: Tensor) -> Tensor:
        """A heat map a key point."""
        return self.head(self.model(x)[1])


class FcnOut(First):
    """torchvision's dictionary → its scores."""

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of every pixel."""
        return self.model(x)["out"]


class Classes(First):
    """Class scores of every pixel → the best class's number."""

    def forward(self, x: Tensor) -> Tensor:
        """[1, height, width]."""
        return self.model(x).argmax(1).to(torch.uint8)


SEGMENTATION: dict[str, Construction] = {
    "deeplab_xception": Construction(lambda: Normalized(Classes(DeepLabXception())), image(480, 520), "seg"),
    "deeplabv3_plus_mobilenet": Construction(lambda: Normalized(Classes(DeepLabV3Plus())), image(520), "seg"),
    "fcn_resnet50": Construction(
        lambda: Normalized(Classes(FcnOut(torchvision.models.segmentation.fcn_resnet50(weights_backbone=None)))),
        image(520), "seg",
    ),
    "hrnet_pose": Construction(lambda: Normalized(Trunk()), image(256, 192), "seg"),
    "superpoint": Construction(SuperPoint, (*image(480, 640), *image(480, 640)), "vgg"),
    "u2net_segmentation": Construction(U2Net, image(320), "seg"),
}  # fmt: skip
