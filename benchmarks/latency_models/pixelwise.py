"""Dense prediction beside streets: depth (MiDaS), portraits (SINet) and lidar's rings (SalsaNext), after papers and public definitions."""

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, Normalized, image
from latency_models.restoration import Residual


def _refined(width: int) -> Residual:
    layers = [nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1)]
    return Residual(nn.Sequential(*layers))


class Midas(nn.Module):
    """MiDaS 2.1 small (Ranftl et al. 2022): EfficientNet-Lite3 and residual refinement from coarse to fine."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = timm.create_model("tf_efficientnet_lite3", features_only=True, out_indices=(1, 2, 3, 4))
        widths = (64, 128, 256, 512)
        self.sides = nn.ModuleList(
            nn.Conv2d(cin, w, 3, 1, 1, bias=False) for cin, w in zip((32, 48, 136, 384), widths, strict=True)
        )
        self.before = nn.ModuleList(_refined(w) for w in widths[:-1])
        self.after = nn.ModuleList(_refined(w) for w in widths)
        self.narrow = nn.ModuleList(nn.Conv2d(w, max(w // 2, 64), 1) for w in widths)
        self.thin = nn.Conv2d(64, 32, 3, 1, 1)
        self.out = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 1, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Inverse depth, of the picture's size."""
        levels = [side(level) for side, level in zip(self.sides, self.trunk(x), strict=True)]
        y = levels[3]
        for i in (3, 2, 1, 0):
            y = self.after[i](y if i == 3 else y + self.before[i](levels[i]))
            y = self.narrow[i](functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=True))
        return self.out(functional.interpolate(self.thin(y), scale_factor=2.0, mode="bilinear"))


class SpatialSqueeze(nn.Module):
    """SINet's block at a lower resolution: pooled, convolved depthwise and pointwise, and brought back."""

    def __init__(self, width: int, k: int, factor: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(width, width, k, 1, k // 2, groups=width), nn.PReLU(width), nn.Conv2d(width, width, 1)]
        if factor > 1:
            up = nn.UpsamplingBilinear2d(scale_factor=factor)
            layers = [nn.AvgPool2d(factor), *layers, up, nn.BatchNorm2d(width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return self.layers(x)


class Squeezes(nn.Module):
    """Two such blocks on shuffled halves of the channels, concatenated."""

    def __init__(self, cin: int, cout: int, kernels: tuple[int, int], factors: tuple[int, int]) -> None:
        super().__init__()
        half = cout // 2
        self.reduce = nn.Conv2d(cin, half, 1, groups=2, bias=False)
        self.parts = nn.ModuleList(SpatialSqueeze(half, k, f) for k, f in zip(kernels, factors, strict=True))
        self.act, self.shortcut = _activated(cout), cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """Same resolution."""
        y = self.reduce(x)
        _, c, h, w = y.shape
        y = y.view(1, 2, c // 2, h, w).transpose(1, 2).reshape(1, c, h, w)
        y = torch.cat([part(y) for part in self.parts], 1)
        return self.act(x + y if self.shortcut else y)


def _activated(width: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width), nn.PReLU(width))


class Gated(nn.Module):
    """A depthwise convolution of stride 2, its channels weighted, a pointwise one."""

    def __init__(self, cin: int, cout: int, divide: int) -> None:
        super().__init__()
        self.first, mid = nn.Conv2d(cin, cin, 3, 2, 1, groups=cin), cin // divide
        gate: list[nn.Module] = [nn.Linear(cin, mid), nn.PReLU(mid)]
        if divide > 1:
            gate += [nn.Linear(mid, cin), nn.PReLU(cin)]
        self.gate = nn.Sequential(*gate)
        self.last = nn.Sequential(nn.Conv2d(cin, cout, 1), nn.PReLU(cout))

    def forward(self, x: Tensor) -> Tensor:
        """Half the resolution."""
        x = self.first(x)
        weight = self.gate(functional.avg_pool2d(x, kernel_size=list(x.shape[2:])).view(1, -1))
        return self.last(weight.view(1, -1, 1, 1) * x)


class SiNet(nn.Module):
    """SINet (Park et al. 2020), two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.PReLU(12))
        self.first, self.second = Gated(12, 16, 1), Gated(64, 48, 2)
        self.fine = nn.Sequential(Squeezes(16, 48, (3, 5), (1, 1)), Squeezes(48, 48, (3, 3), (1, 1)))
        plan = [
            ((3, 5), (1, 1)), ((3, 3), (1, 1)), ((5, 3), (1, 2)), ((5, 3), (2, 4)), ((3, 3), (1, 1)), ((5, 5), (1, 1)),
            ((3, 3), (2, 4)), ((3, 5), (1, 2)),
        ]  # fmt: skip
        self.coarse = nn.Sequential(*[Squeezes(48 if i == 0 else 96, 96, *p) for i, p in enumerate(plan)])
        self.joined2, self.joined3 = _activated(64), _activated(144)
        self.classify3 = nn.Conv2d(144, 2, 1, bias=False)
        self.classify2 = nn.Sequential(nn.Conv2d(48, 2, 1), nn.PReLU(2))
        self.up, self.norm3, self.norm2 = nn.UpsamplingBilinear2d(scale_factor=2), nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.out = nn.Conv2d(2, 2, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of every pixel."""
        quarter = self.first(self.stem(x))
        fine = self.fine(quarter)
        eighth = self.second(self.joined2(torch.cat([quarter, fine], 1)))
        coarse = self.joined3(torch.cat([eighth, self.coarse(eighth)], 1))
        found = self.norm3(self.up(self.classify3(coarse)))
        doubt = (1 - found.softmax(1).amax(1)).unsqueeze(1).expand(found.shape)
        found = self.norm2(self.up(self.classify2(fine) * doubt + found))
        return self.out(self.up(found))


class Rectified(nn.Sequential):
    """A convolution, a leaky rectifier, a normalization."""

    def __init__(self, cin: int, cout: int, k: int, dilation: int = 1) -> None:
        pad = dilation * (k - 1) // 2
        super().__init__(nn.Conv2d(cin, cout, k, 1, pad, dilation), nn.LeakyReLU(), nn.BatchNorm2d(cout))


class Chain(nn.Module):
    """SalsaNext's block: three convolutions in a chain, all concatenated and narrowed."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            Rectified(cin, cout, 3),
            Rectified(cout, cout, 3, 2),
            Rectified(cout, cout, 2, 2),
        )
        self.out = Rectified(3 * cout, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same resolution."""
        a = self.first(x)
        b = self.second(a)
        return self.out(torch.cat([a, b, self.third(b)], 1))


class Context(nn.Module):
    """SalsaNext's first blocks: two convolutions beside a pointwise one."""

    def __init__(self, cin: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(cin, 32, 1), nn.LeakyReLU())
        self.layers = nn.Sequential(Rectified(32, 32, 3), Rectified(32, 32, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Same resolution."""
        x = self.first(x)
        return x + self.layers(x)


class SalsaNext(nn.Module):
    """SalsaNext (Cortinhal et al. 2020): range, place and remission of 64 rings → 20 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Sequential(Context(5), Context(32), Context(32))
        self.down, self.beside, last = nn.ModuleList(), nn.ModuleList(), 32
        for w in (64, 128, 256, 256, 256):
            self.down.append(Chain(last, w))
            self.beside.append(nn.Sequential(nn.Conv2d(last, w, 1), nn.LeakyReLU()))
            last = w
        self.pool = nn.AvgPool2d(3, 2, 1)
        ups = ((64 + 256, 128), (32 + 256, 128), (32 + 128, 64), (16 + 64, 32))
        self.up = nn.ModuleList(Chain(*widths) for widths in ups)
        self.classes = nn.Conv2d(32, 20, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities of every class."""
        x, kept = self.context(x), []
        for i, (chain, beside) in enumerate(zip(self.down, self.beside, strict=True)):
            x = beside(x) + chain(x)
            if i < 4:
                kept.append(x)
                x = self.pool(x)
        for chain in self.up:
            x = chain(torch.cat([functional.pixel_shuffle(x, 2), kept.pop()], 1))
        return self.classes(x).softmax(1)


PIXELWISE: dict[str, Construction] = {
    "midas": Construction(lambda: Normalized(Midas()), image(256), "midas"),
    "salsanext": Construction(SalsaNext, image(64, 2048, channels=5), "salsanext"),
    "sinet": Construction(lambda: Normalized(SiNet()), image(224), "sinet"),
}
