"""Models that segment what a user points at, as Qualcomm AI Hub Models deploy them: Segment Anything 2 (Ravi et al. 2024).

Linear layers are 1×1 convolutions there, the encoder's windows are cut in five dimensions, the decoder's heads are layers of their own.
"""

import itertools
import math

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, Normalized, image

POINTS = 2


class Pointwise(nn.Module):
    """A linear layer as a 1×1 convolution of what has its channels last."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., cin] → [..., cout], of two to four dimensions."""
        maps = x.reshape(*[1] * (4 - x.ndim), *x.shape).permute(0, 3, 1, 2)
        return self.layer(maps).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def perceptron(cin: int, mid: int, cout: int, act: type[nn.Module], layers: int = 2) -> nn.Sequential:
    """Pointwise layers with an activation between them."""
    widths = [cin, *[mid] * (layers - 1), cout]
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        parts += [Pointwise(a, b), act()]
    return nn.Sequential(*parts[:-1])


def halved(x: Tensor) -> Tensor:
    """The largest of each 2×2, channels last."""
    return functional.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class HieraBlock(nn.Module):
    """A block of Hiera (Ryali et al. 2023): attention within windows of `window` (0: everywhere), queries halved where `pool`."""

    def __init__(self, cin: int, cout: int, heads: int, window: int, pool: bool) -> None:
        super().__init__()
        self.heads, self.window, self.pool = heads, window, pool
        self.before, self.between = nn.LayerNorm(cin, eps=1e-6), nn.LayerNorm(cout, eps=1e-6)
        self.shortcut = nn.Linear(cin, cout) if cin != cout else None
        self.q, self.k, self.v = Pointwise(cin, cout), Pointwise(cin, cout), Pointwise(cin, cout)
        self.out, self.mlp = Pointwise(cout, cout), perceptron(cout, 4 * cout, cout, nn.GELU)

    def _heads(self, x: Tensor) -> Tensor:
        windows, height, width, _ = x.shape
        x = x.reshape(windows, height * width, self.heads, -1).permute(0, 2, 1, 3)
        return x.reshape(windows * self.heads, height * width, -1)

    def _attend(self, x: Tensor) -> Tensor:
        k, v, q = self._heads(self.k(x)), self._heads(self.v(x)), self.q(x)
        q = halved(q) if self.pool else q
        windows, height, width, _ = q.shape
        y = functional.scaled_dot_product_attention(self._heads(q), k, v)
        y = y.reshape(windows, self.heads, height * width, -1).transpose(1, 2)
        return self.out(y.reshape(windows, height, width, -1))

    def forward(self, x: Tensor) -> Tensor:
        """[1, height, width, cin] → [1, height, width, cout], or half of both."""
        y = self.before(x)
        if self.shortcut is not None:
            x = halved(self.shortcut(y)) if self.pool else self.shortcut(y)
        if self.window:
            w, (_, height, width, channels) = self.window, y.shape
            down, right = -height % w, -width % w
            if down or right:
                y = functional.pad(y, (0, 0, 0, right, 0, down))
            rows, columns = (height + down) // w, (width + right) // w
            y = y.reshape(rows, w, columns, w, channels).permute(0, 2, 1, 3, 4).reshape(-1, w, w, channels)
            y = self._attend(y)
            w = y.shape[1]
            y = y.reshape(rows, columns, w, w, -1).permute(0, 2, 1, 3, 4).reshape(1, rows * w, columns * w, -1)
            if y.shape[1:3] != x.shape[1:3]:
                y = y[:, : x.shape[1], : x.shape[2]]
        else:
            y = self._attend(y)
        x = x + y
        return x + self.mlp(self.between(x))


class Hiera(nn.Module):
    """The trunk, tiny: maps of 96, 192, 384 and 768 channels."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        width, heads, stages, windows, everywhere = 96, 1, (1, 2, 7, 2), (8, 4, 14, 7), (5, 7, 9)
        ends = [sum(stages[: i + 1]) - 1 for i in range(len(stages))]
        self.patches, self.ends = nn.Conv2d(3, width, 7, 4, 3), ends
        self.positions = nn.Parameter(torch.zeros(1, image_size // 4, image_size // 4, width))
        blocks, stage = [], 0
        for i in range(sum(stages)):
            window, first = 0 if i in everywhere else windows[stage], i - 1 in ends
            if first:  # its window is still that of the stage before
                stage, heads = stage + 1, 2 * heads
            blocks.append(HieraBlock(width, width * (1 + first), heads, window, first))
            width *= 1 + first
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """From fine to coarse."""
        x, maps = self.patches(x).permute(0, 2, 3, 1) + self.positions, []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.ends:
                maps.append(x.permute(0, 3, 1, 2))
        return maps


class Prompted(nn.Module):
    """Encoder as deployed: a picture, points and their labels → maps and what is known of the points."""

    def __init__(self, trunk: nn.Module, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.trunk = trunk
        self.laterals = nn.ModuleList(nn.Conv2d(w, 256, 1) for w in widths)
        self.first, self.second = nn.Conv2d(256, 32, 1), nn.Conv2d(256, 64, 1)
        self.nothing = nn.Parameter(torch.zeros(1, 256, 1, 1))
        self.frequencies = nn.Parameter(torch.zeros(2, 128))
        self.inside, self.outside = nn.Parameter(torch.zeros(1, 256)), nn.Parameter(torch.zeros(1, 256))

    def embedded(self, points: Tensor, labels: Tensor) -> Tensor:
        """[1, points + 1, 256] of points [1, points, 2] and labels [1, points]."""
        points = torch.cat([points * 2 - 0.999, torch.zeros(1, 1, 2, device=points.device)], 1)
        labels = torch.cat([labels, -torch.ones(1, 1, device=points.device)], 1)[..., None]
        angles = 2 * math.pi * (points @ self.frequencies)
        places = torch.cat([angles.sin(), angles.cos()], -1)
        return (places + self.inside) * (labels != -1).float() + self.outside * (labels == -1).float()

    def forward(self, picture: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Coarse map of 256 channels, of a quarter's resolution 32, of an eighth's 64, the points, and the coarse map of a first frame."""
        fine, middle, coarse, coarsest = (layer(x) for layer, x in zip(self.laterals, self.trunk(picture), strict=True))
        coarse = coarse + functional.interpolate(coarsest, scale_factor=2.0, mode="nearest")
        return coarse, self.first(fine), self.second(middle), self.embedded(points, labels), coarse + self.nothing


class SplitAttention(nn.Module):
    """Attention with projections of each head apart."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.each = inner // 8
        self.q, self.k, self.v = (nn.ModuleList(Pointwise(256, self.each) for _ in range(8)) for _ in range(3))
        self.out = nn.Linear(inner, 256)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[1, queries, 256]."""
        parts = []
        for project_q, project_k, project_v in zip(self.q, self.k, self.v, strict=True):
            scores = project_q(q) @ project_k(k).transpose(-2, -1) / math.sqrt(self.each)
            parts.append(scores.softmax(-1) @ project_v(v))
        return self.out(torch.cat(parts, -1))


class TwoWay(nn.Module):
    """A layer of the decoder: tokens look at themselves and at the picture, the picture at the tokens."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.own, self.there, self.back = SplitAttention(256), SplitAttention(128), SplitAttention(128)
        self.mlp = perceptron(256, 2048, 256, nn.ReLU)
        self.norms = nn.ModuleList(nn.LayerNorm(256) for _ in range(4))

    def forward(self, tokens: Tensor, picture: Tensor, first: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Both, `first` and `places` being what says where they are."""
        if self.first:
            tokens = self.own(tokens, tokens, tokens)
        else:
            q = tokens + first
            tokens = tokens + self.own(q, q, tokens)
        tokens = self.norms[0](tokens)
        tokens = self.norms[1](tokens + self.there(tokens + first, picture + places, picture))
        tokens = self.norms[2](tokens + self.mlp(tokens))
        picture = self.norms[3](picture + self.back(picture + places, tokens + first, tokens))
        return tokens, picture


class MaskDecoder(nn.Module):
    """What the encoder gave → the mask of what is pointed at, and how good it is."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.own = nn.Parameter(torch.zeros(1, 256, 1, 1)), nn.Parameter(torch.zeros(1, 6, 256))
        self.places = nn.Parameter(torch.zeros(1, 64 * 64, 256))
        self.layers = nn.ModuleList(TwoWay(first=i == 0) for i in range(2))
        self.last, self.norm = SplitAttention(128), nn.LayerNorm(256)
        self.up, self.further = nn.ConvTranspose2d(256, 64, 2, 2), nn.ConvTranspose2d(64, 32, 2, 2)
        self.masks = nn.ModuleList(perceptron(256, 256, 32, nn.ReLU, 3) for _ in range(4))
        self.quality = perceptron(256, 256, 4, nn.ReLU, 3)

    def decoded(self, seen: Tensor, fine: Tensor, middle: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Four masks [1, 4, 256, 256], how good they are [1, 4], and all tokens."""
        first = torch.cat([self.own, points], 1)
        x = (seen + self.dense).flatten(2).permute(0, 2, 1)
        tokens = first
        for layer in self.layers:
            tokens, x = layer(tokens, x, first, self.places)
        tokens = self.norm(tokens + self.last(tokens + first, x + self.places, x))
        x = functional.gelu(self.up(x.transpose(1, 2).view(1, 256, 64, 64)) + middle)
        x = functional.gelu(self.further(x) + fine)
        weights = torch.stack([mask(tokens[:, 2 + i]) for i, mask in enumerate(self.masks)], 1)
        found = (weights @ x.view(1, 32, 256 * 256)).view(1, 4, 256, 256)
        return found, self.quality(tokens[:, 1]).sigmoid(), tokens

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """[1, 1, 256, 256] and [1, 1]."""
        found, quality, _ = self.decoded(*given)
        return found[:, :1], quality[:, :1]


class VideoDecoder(MaskDecoder):
    """The same for a video: another mask where the first is not stable, and what later frames are told of the object."""

    def __init__(self) -> None:
        super().__init__()
        self.pointer, self.seen = (_linear(256, n) for n in (256, 1))

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """[1, 1, 256, 256], [1, 1], the object [1, 256], and whether it is seen [1, 1]."""
        found, quality, tokens = self.decoded(*given)
        others, best = quality[:, 1:], quality[:, 1:].argmax(-1)
        rows = torch.arange(1)
        mask, its = found[:, 1:][rows, best].unsqueeze(1), others[rows, best].unsqueeze(1)
        flat = found[:, :1].flatten(-2)
        inner, outer = ((flat > limit).sum(-1).float() for limit in (0.05, -0.05))
        stable = torch.where(outer > 0, inner / outer, 1.0) >= 0.98
        mask = torch.where(stable[..., None, None], found[:, :1], mask)
        return mask, torch.where(stable, quality[:, :1], its), self.pointer(tokens[:, 2]), self.seen(tokens[:, 0])


def _linear(width: int, out: int) -> nn.Sequential:
    layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out)]
    return nn.Sequential(*layers)


class RepVit(nn.Module):
    """EdgeTAM's trunk (Zhou et al. 2025): RepViT-M1, its parallel branches kept; maps of 48, 96, 192 and 384 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model("repvit_m1", features_only=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        """From fine to coarse."""
        return self.model(x)


def _points() -> tuple[Tensor, ...]:
    return torch.zeros(1, POINTS, 2), torch.zeros(1, POINTS)


def _maps() -> tuple[Tensor, ...]:
    return (
        torch.zeros(1, 256, 64, 64), torch.zeros(1, 32, 256, 256), torch.zeros(1, 64, 128, 128),
        torch.zeros(1, POINTS + 1, 256),
    )  # fmt: skip


PROMPTABLE: dict[str, Construction] = {
    "edgetam:encoder": Construction(
        lambda: Prompted(nn.Sequential(Normalized(nn.Identity()), RepVit()), (48, 96, 192, 384)),
        (*image(1024), *_points()), "hybrid",
    ),
    "sam2:encoder": Construction(
        lambda: Prompted(nn.Sequential(Normalized(nn.Identity()), Hiera(1024)), (96, 192, 384, 768)),
        (*image(1024), *_points()), "sam",
    ),
    "edgetam:video_decoder": Construction(VideoDecoder, _maps(), "sam"),
    "sam2:decoder": Construction(MaskDecoder, _maps(), "sam"),
}  # fmt: skip
