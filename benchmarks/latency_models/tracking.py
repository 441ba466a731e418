"""EdgeTAM's memory of a frame (Zhou et al. 2025), as Qualcomm AI Hub Models deploy it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction

WINDOW = 4  # of 64 × 64 places, one for each of the latents that have a place


class ChannelNorm(nn.Module):
    """Normalization over channels, which are the second dimension, in plain ops."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width, 1, 1)), nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        x = x - x.mean(1, keepdim=True)
        return self.scale * (x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()) + self.shift


class Fuser(nn.Module):
    """ConvNeXt's block."""

    def __init__(self) -> None:
        super().__init__()
        self.spread, self.norm = nn.Conv2d(256, 256, 7, 1, 3, groups=256), ChannelNorm(256)
        self.up, self.down, self.scale = nn.Linear(256, 1024), nn.Linear(1024, 256), nn.Parameter(torch.ones(256))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        y = self.norm(self.spread(x)).permute(0, 2, 3, 1)
        y = self.scale * self.down(functional.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class LatentAttention(nn.Module):
    """One head of 64: latents look at `x`, or at themselves."""

    def __init__(self, *, own: bool) -> None:
        super().__init__()
        self.norm, self.other = nn.LayerNorm(64), None if own else nn.LayerNorm(64)
        self.q, self.kv = nn.Linear(64, 64, bias=False), nn.Linear(64, 128, bias=False)
        self.out = nn.Linear(64, 64, bias=False)

    def forward(self, latents: Tensor, x: Tensor, places: Tensor | None) -> Tensor:
        """[batch, latents, 64] plus what they see."""
        y = self.norm(latents)
        k, v = self.kv(y if self.other is None else self.other(x)).chunk(2, -1)
        q, k, v = (part.reshape(len(part), -1, 1, 64).transpose(1, 2) for part in (self.q(y), k, v))
        if places is not None:
            k, v = k + places, v + places
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(latents.shape)
        return self.out(y) + latents


class PerceiverLayer(nn.Module):
    """Latents look at a frame, then at each other; a perceptron follows both."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.own = LatentAttention(own=False), LatentAttention(own=True)
        self.first, self.second = (
            nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 256, bias=False), nn.GELU(), nn.Linear(256, 64, bias=False))
            for _ in range(2)
        )

    def forward(self, latents: Tensor, x: Tensor, places: Tensor | None) -> Tensor:
        """[batch, latents, 64]."""
        latents = self.there(latents, x, places)
        latents = self.first(latents) + latents
        latents = self.own(latents, x, None)
        return self.second(latents) + latents


class MemoryEncoder(nn.Module):
    """A frame's coarse map and its mask → 256 latents of the whole and 256 of a window each."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [nn.Conv2d(4**i, 4 ** (i + 1), 3, 2, 1), ChannelNorm(4 ** (i + 1)), nn.GELU()]
        self.mask, self.seen = nn.Sequential(*layers, nn.Conv2d(256, 256, 1)), nn.Conv2d(256, 256, 1)
        self.fused = nn.Sequential(Fuser(), Fuser(), nn.Conv2d(256, 64, 1))
        self.whole, self.windows = nn.Parameter(torch.zeros(1, 256, 64)), nn.Parameter(torch.zeros(256, 1, 64))
        self.places = nn.Parameter(torch.zeros(1, 1, 64 * 64, 64))
        self.layers, self.norm = nn.ModuleList(PerceiverLayer() for _ in range(2)), nn.LayerNorm(64)

    def forward(self, seen: Tensor, mask: Tensor) -> Tensor:
        """[1, 512, 64]."""
        x = self.fused(self.seen(seen) + self.mask(mask * 20.0 - 10.0)).permute(0, 2, 3, 1)
        each = x.view(1, 64 // WINDOW, WINDOW, 64 // WINDOW, WINDOW, 64).permute(0, 1, 3, 2, 4, 5)
        each, every = each.reshape(-1, WINDOW * WINDOW, 64), x.flatten(1, 2)
        whole, windows = self.whole, self.windows
        for layer in self.layers:
            whole = layer(whole, every, self.places)
        for layer in self.layers:
            windows = layer(windows, each, None)
        return torch.cat([self.norm(whole), self.norm(windows.view(1, 256, 64))], 1)


TRACKING: dict[str, Construction] = {
    "edgetam:memory_encoder": Construction(
        MemoryEncoder, (torch.zeros(1, 256, 64, 64), torch.zeros(1, 1, 1024, 1024)), "perceiver"
    ),
}
