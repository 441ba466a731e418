"""Image restoration and super-resolution, after the papers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, conv, image


def _plain(channels: int, width: int, depth: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """DnCNN (Zhang et al. 2017): `depth` convolutions and a residual."""
    inner = [conv(width, width, act=act()) for _ in range(depth - 2)]
    return Residual(nn.Sequential(conv(channels, width, act=act()), *inner, nn.Conv2d(width, channels, 3, 1, 1)))


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Add."""
        return x + self.inner(x)


def _quicksrnet(width: int, depth: int) -> nn.Module:
    """QuickSRNet (Berger et al. 2023), ×3: plain convolutions, clipped, then pixel shuffle."""
    body = [conv(width, width, act=nn.Hardtanh(0, 1)) for _ in range(depth)]
    tail = [nn.Conv2d(width, 27, 3, 1, 1), nn.PixelShuffle(3), nn.Hardtanh(0, 1)]
    return nn.Sequential(conv(3, width, act=nn.Hardtanh(0, 1)), *body, *tail)


class Sesr(nn.Module):
    """SESR-M5 (Bhardwaj et al. 2022), collapsed, ×3."""

    def __init__(self) -> None:
        super().__init__()
        self.head = conv(3, 16, 5, act=nn.PReLU(16))
        self.body = nn.Sequential(*[conv(16, 16, act=nn.PReLU(16)) for _ in range(5)])
        self.tail = nn.Conv2d(16, 27, 5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Three times the size."""
        first = self.head(x)
        return functional.pixel_shuffle(self.tail(first + self.body(first)), 3)


class Xlsr(nn.Module):
    """XLSR (Ayazoglu 2021), ×4: grouped convolutions beside one of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = nn.Conv2d(3, 16, 3, 1, 1)
        blocks = [nn.Sequential(conv(32, 32, groups=4), nn.Conv2d(32, 32, 1)) for _ in range(3)]
        self.body = nn.Sequential(conv(3, 32), nn.Conv2d(32, 32, 1), *blocks)
        self.tail = nn.Sequential(conv(48, 32, 1), nn.Conv2d(32, 48, 3, 1, 1), nn.PixelShuffle(4), nn.Hardtanh(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Four times the size."""
        return self.tail(torch.cat([self.body(x), self.beside(x)], 1))


class Compact(nn.Module):
    """SRVGGNetCompact (Real-ESRGAN), ×4."""

    def __init__(self) -> None:
        super().__init__()
        body = [conv(64, 64, act=nn.PReLU(64)) for _ in range(32)]
        self.body = nn.Sequential(conv(3, 64, act=nn.PReLU(64)), *body, nn.Conv2d(64, 48, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Four times the size."""
        return functional.pixel_shuffle(self.body(x), 4) + functional.interpolate(x, scale_factor=4.0)


class SrResNet(nn.Module):
    """SRGAN's generator (Ledig et al. 2017), ×4."""

    def __init__(self) -> None:
        super().__init__()
        self.head = conv(3, 64, 9, act=nn.PReLU())
        blocks = [Residual(nn.Sequential(conv(64, 64, act=nn.PReLU()), nn.Conv2d(64, 64, 3, 1, 1))) for _ in range(16)]
        self.body = nn.Sequential(*blocks, nn.Conv2d(64, 64, 3, 1, 1))
        up = [nn.Sequential(nn.Conv2d(64, 256, 3, 1, 1), nn.PixelShuffle(2), nn.PReLU()) for _ in range(2)]
        self.tail = nn.Sequential(*up, nn.Conv2d(64, 3, 9, 1, 4), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Four times the size."""
        first = self.head(x)
        return self.tail(first + self.body(first))


class LayerNorm2d(nn.Module):
    """Over the channels of NCHW, as NAFNet writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        y = functional.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return y.permute(0, 3, 1, 2)


class NafBlock(nn.Module):
    """NAFNet's block (Chen et al. 2022): gates instead of activations."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm2d(c), LayerNorm2d(c)
        self.conv1, self.conv2 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(2 * c, 2 * c, 3, 1, 1, groups=2 * c)
        self.conv3, self.conv4, self.conv5 = nn.Conv2d(c, c, 1), nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, c, 1)
        self.attend = nn.Conv2d(c, c, 1)
        self.beta, self.gamma = nn.Parameter(torch.ones(1, c, 1, 1)), nn.Parameter(torch.ones(1, c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        a, b = self.conv2(self.conv1(self.norm1(x))).chunk(2, 1)
        y = a * b
        y = x + self.conv3(y * self.attend(y.mean((2, 3), keepdim=True))) * self.beta
        a, b = self.conv4(self.norm2(y)).chunk(2, 1)
        return y + self.conv5(a * b) * self.gamma


class NafNet(nn.Module):
    """U-shaped stack of NAFNet blocks."""

    def __init__(self, encoders: list[int], middle: int, decoders: list[int], width: int = 64) -> None:
        super().__init__()
        self.intro, self.ending = nn.Conv2d(3, width, 3, 1, 1), nn.Conv2d(width, 3, 3, 1, 1)
        self.encoders, self.downs = nn.ModuleList(), nn.ModuleList()
        self.decoders, self.ups = nn.ModuleList(), nn.ModuleList()
        for n in encoders:
            self.encoders.append(nn.Sequential(*[NafBlock(width) for _ in range(n)]))
            self.downs.append(nn.Conv2d(width, 2 * width, 2, 2))
            width *= 2
        self.middle = nn.Sequential(*[NafBlock(width) for _ in range(middle)])
        for n in decoders:
            self.ups.append(nn.Sequential(nn.Conv2d(width, 2 * width, 1, bias=False), nn.PixelShuffle(2)))
            width //= 2
            self.decoders.append(nn.Sequential(*[NafBlock(width) for _ in range(n)]))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        y, kept = self.intro(x), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            y = encoder(y)
            kept.append(y)
            y = down(y)
        y = self.middle(y)
        for decoder, up, skip in zip(self.decoders, self.ups, reversed(kept), strict=True):
            y = decoder(up(y) + skip)
        return x + self.ending(y)


class AotBlock(nn.Module):
    """Aggregated contextual transformations (Zeng et al. 2021): four dilations, gated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        rates = (1, 2, 4, 8)
        self.parts = nn.ModuleList(conv(width, width // 4, dilation=r) for r in rates)
        self.fuse, self.gate = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        out = self.fuse(torch.cat([part(x) for part in self.parts], 1))
        mask = self.gate(x)
        mean, std = mask.mean((2, 3), keepdim=True), mask.std((2, 3), keepdim=True) + 1e-9
        mask = torch.sigmoid(5 * (2 * (mask - mean) / std - 1))
        return x * (1 - mask) + out * mask


class AotGan(nn.Module):
    """AOT-GAN's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(4, 64, 7), conv(64, 128, 4, 2), conv(128, 256, 4, 2))
        self.middle = nn.Sequential(*[AotBlock(256) for _ in range(8)])
        self.up1, self.up2, self.last = conv(256, 128), conv(128, 64), nn.Conv2d(64, 3, 3, 1, 1)

    def forward(self, pixels: Tensor, mask: Tensor) -> Tensor:
        """The image with the masked part painted."""
        x = self.middle(self.encoder(torch.cat([pixels, mask], 1)))
        for layer in (self.up1, self.up2):
            x = layer(functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True))
        return torch.tanh(self.last(x))


RESTORATION: dict[str, Construction] = {
    "aotgan": Construction(AotGan, (*image(512), *image(512, channels=1)), "sr"),
    "dncnn": Construction(lambda: _plain(1, 64, 17), image(256, channels=1), "sr"),
    "nafnet_deblur": Construction(lambda: NafNet([1, 1, 1, 28], 1, [1, 1, 1, 1]), image(368, 640), "sr"),
    "nafnet_denoise": Construction(lambda: NafNet([2, 2, 4, 8], 12, [2, 2, 2, 2]), image(256), "sr"),
    "quicksrnetlarge": Construction(lambda: _quicksrnet(64, 11), image(128), "sr"),
    "quicksrnetmedium": Construction(lambda: _quicksrnet(32, 5), image(128), "sr"),
    "quicksrnetsmall": Construction(lambda: _quicksrnet(32, 2), image(128), "sr"),
    "real_esrgan_general_x4v3": Construction(Compact, image(128), "sr"),
    "sesr_m5": Construction(Sesr, image(128), "sr"),
    "srgan": Construction(SrResNet, image(128), "sr"),
    "xlsr": Construction(Xlsr, image(128), "sr"),
}
