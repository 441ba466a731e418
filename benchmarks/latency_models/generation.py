"""Stable Diffusion's decoder of latents (Rombach et al. 2022), as Qualcomm AI Hub Models deploy it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction

SCALE = 0.18215  # of latents


def normalized(width: int) -> nn.GroupNorm:
    """The normalization before every convolution."""
    return nn.GroupNorm(32, width, eps=1e-6)


class Resnet(nn.Module):
    """Two convolutions, each of what is normalized and activated, and a shortcut."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.before, self.first = normalized(cin), nn.Conv2d(cin, cout, 3, 1, 1)
        self.between, self.second = normalized(cout), nn.Conv2d(cout, cout, 3, 1, 1)
        self.shortcut = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The resolution stays."""
        y = self.first(functional.silu(self.before(x)))
        return self.shortcut(x) + self.second(functional.silu(self.between(y)))


class Attention(nn.Module):
    """Every place looks at all, with one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = normalized(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[1, width, height, width]."""
        y = self.norm(x.flatten(2)).transpose(1, 2)
        y = functional.scaled_dot_product_attention(self.q(y)[:, None], self.k(y)[:, None], self.v(y)[:, None])
        return x + self.out(y[:, 0]).transpose(1, 2).reshape(x.shape)


class Larger(nn.Module):
    """Twice the resolution, by repetition and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Twice the height and width."""
        return self.layer(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Decoder(nn.Module):
    """Latents [1, 4, 64, 64] → a picture of 0 to 1, channels last."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 512, 3, 1, 1), Resnet(512, 512), Attention(512), Resnet(512, 512)]
        width = 512
        for i, out in enumerate((512, 512, 256, 128)):
            layers += [Resnet(width, out), Resnet(out, out), Resnet(out, out), *([Larger(out)] if i < 3 else [])]
            width = out
        layers += [normalized(width), nn.SiLU(), nn.Conv2d(width, 3, 3, 1, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        """[1, 512, 512, 3]."""
        return (self.layers(latent / SCALE) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


GENERATION: dict[str, Construction] = {
    "stable_diffusion_v1_5:vae": Construction(Decoder, (torch.zeros(1, 4, 64, 64),), "diffusion"),
}
