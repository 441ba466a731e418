"""Segmentation of streets in real time: FFNet, DDRNet and PIDNet, which hand over raw scores at a quarter or an eighth of the picture."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, Normalized, conv, image, resized

CLASSES = 19


class Residual(nn.Module):
    """Layers and a shortcut, which is a convolution where shapes change."""

    def __init__(self, layers: nn.Sequential, cin: int, cout: int, s: int, *, act: bool) -> None:
        super().__init__()
        self.layers, self.act = layers, nn.ReLU() if act else nn.Identity()
        self.shortcut = nn.Identity() if s == 1 and cin == cout else nn.Conv2d(cin, cout, 1, s)

    def forward(self, x: Tensor) -> Tensor:
        """Add."""
        return self.act(self.layers(x) + self.shortcut(x))


def basic(cin: int, cout: int, s: int = 1, *, act: bool = True) -> Residual:
    """ResNet's block of two 3×3 convolutions."""
    layers = nn.Sequential(conv(cin, cout, 3, s), nn.Conv2d(cout, cout, 3, 1, 1))
    return Residual(layers, cin, cout, s, act=act)


def bottleneck(cin: int, mid: int, s: int = 1) -> Residual:
    """A block of 1×1, 3×3 and 1×1 to twice the width, without an activation behind."""
    layers = nn.Sequential(conv(cin, mid, 1), conv(mid, mid, 3, s), nn.Conv2d(mid, 2 * mid, 1))
    return Residual(layers, cin, 2 * mid, s, act=False)


def stage(cin: int, cout: int, depth: int, s: int = 1, *, act: bool = True) -> nn.Sequential:
    """`depth` blocks, the first with the stride; `act` is whether the last one ends with an activation."""
    return nn.Sequential(
        *[basic(cin if i == 0 else cout, cout, s if i == 0 else 1, act=act or i < depth - 1) for i in range(depth)]
    )


class FfNet(nn.Module):
    """FFNet (Mehta et al. 2022): a ResNet and a head of plain convolutions that goes up.

    Args:
        near: the layers to a quarter of the resolution.
        widths: of the features at a quarter to a 32nd.
        depths: blocks of the three stages behind `near`.
        adapted: widths of the head's features.
        sides: widths of what every level gives to the scores.
        classify: kernel of the last two convolutions, and the width between.
    """

    def __init__(
        self, near: nn.Sequential, widths: list[int], depths: list[int], adapted: list[int], sides: list[int],
        classify: tuple[int, int],
    ) -> None:  # fmt: skip
        super().__init__()
        pairs = zip(itertools.pairwise(widths), depths, strict=True)
        self.stages = nn.ModuleList([near, *[stage(cin, cout, n, 2) for (cin, cout), n in pairs]])
        self.adapters = nn.ModuleList(conv(w, a, 1) for w, a in zip(widths, adapted, strict=True))
        self.lifts = nn.ModuleList(conv(high, low, 1) for low, high in itertools.pairwise(adapted))
        self.sides = nn.ModuleList(conv(a, side) for a, side in zip(adapted, sides, strict=True))
        mid, last = classify
        self.scores = nn.Sequential(conv(sum(sides), mid), nn.Conv2d(mid, CLASSES, last, 1, last // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores at a quarter of the resolution."""
        levels = []
        for layers, adapter in zip(self.stages, self.adapters, strict=True):
            x = layers(x)
            levels.append(adapter(x))
        for i in (2, 1, 0):
            levels[i] = resized(self.lifts[i](levels[i + 1]), levels[i], "nearest") + levels[i]
        joined, *others = [side(level) for side, level in zip(self.sides, levels, strict=True)]
        for other in others:
            joined = torch.cat([joined, resized(other, joined, "nearest")], 1)
        return self.scores(joined)


def ffnet_small(depths: list[int], first: int) -> FfNet:
    """FFNet-S with head B, or with head C where the first stage has no stride."""
    near = nn.Sequential(conv(3, 32, 3, 2), conv(32, 64, 3, 2), stage(64, 64, depths[0], first))
    widths, depths = [64, 128, 192, 320], depths[1:]
    if first == 1:
        return FfNet(near, widths, depths, [128] * 4, [128, 16, 16, 16], (128, 1))
    return FfNet(near, widths, depths, [64, 128, 128, 256], [96, 96, 64, 32], (256, 3))


def ffnet_narrow() -> FfNet:
    """FFNet-122NS with head C."""
    near = nn.Sequential(conv(3, 64, 3, 2), conv(64, 64, 3, 2), conv(64, 64))
    return FfNet(near, [64, 64, 128, 256], [16, 24, 20], [128] * 4, [128, 16, 16, 16], (128, 1))


def preactivated(cin: int, cout: int, k: int = 1, *, groups: int = 1) -> nn.Sequential:
    """A normalization that no convolution takes up, an activation, a convolution."""
    return nn.Sequential(nn.BatchNorm2d(cin), nn.ReLU(), nn.Conv2d(cin, cout, k, 1, k // 2, groups=groups, bias=False))


class Pyramid(nn.Module):
    """DDRNet's and PIDNet's aggregation of contexts: means over four windows, one after another or (`parallel`) together."""

    def __init__(self, cin: int, mid: int, cout: int, *, parallel: bool) -> None:
        super().__init__()
        pools = [nn.AvgPool2d(k, s, k // 2) for k, s in ((5, 2), (9, 4), (17, 8))]
        self.scales = nn.ModuleList(
            nn.Sequential(pool, preactivated(cin, mid)) for pool in (*pools, nn.AdaptiveAvgPool2d(1))
        )
        self.own, self.shortcut, self.compress = (
            preactivated(cin, mid), preactivated(cin, cout), preactivated(5 * mid, cout),
        )  # fmt: skip
        self.parallel = parallel
        self.process = nn.ModuleList(
            [preactivated(4 * mid, 4 * mid, 3, groups=4)] if parallel else [preactivated(mid, mid, 3) for _ in range(4)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same resolution."""
        own = self.own(x)
        if self.parallel:
            parts = [resized(scale(x), own) + own for scale in self.scales]
            parts = [own, self.process[0](torch.cat(parts, 1))]
        else:
            parts = [own]
            for scale, process in zip(self.scales, self.process, strict=True):
                parts.append(process(resized(scale(x), own) + parts[-1]))
        return self.compress(torch.cat(parts, 1)) + self.shortcut(x)


def scores(cin: int, mid: int) -> nn.Sequential:
    """The last layers of both."""
    return nn.Sequential(preactivated(cin, mid, 3), nn.ReLU(), nn.Conv2d(mid, CLASSES, 1))


class DdrNet(nn.Module):
    """DDRNet-23-slim (Hong et al. 2021): two branches that exchange features."""

    def __init__(self, w: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, w, 3, 2), conv(w, w, 3, 2), stage(w, w, 2, act=False))
        self.second = stage(w, 2 * w, 2, 2, act=False)
        self.third, self.fourth = stage(2 * w, 4 * w, 2, 2, act=False), stage(4 * w, 8 * w, 2, 2, act=False)
        self.fine3, self.fine4 = stage(2 * w, 2 * w, 2, act=False), stage(2 * w, 2 * w, 2, act=False)
        self.narrow3, self.narrow4 = nn.Conv2d(4 * w, 2 * w, 1), nn.Conv2d(8 * w, 2 * w, 1)
        self.down3 = nn.Conv2d(2 * w, 4 * w, 3, 2, 1)
        self.down4 = nn.Sequential(conv(2 * w, 4 * w, 3, 2), nn.Conv2d(4 * w, 8 * w, 3, 2, 1))
        self.fine5, self.fifth = bottleneck(2 * w, 2 * w), bottleneck(8 * w, 8 * w, 2)
        self.pyramid, self.scores = Pyramid(16 * w, 128, 4 * w, parallel=False), scores(4 * w, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores at an eighth of the resolution."""
        x = self.second(functional.relu(self.stem(x))).relu()
        fine, x = self.fine3(x), self.third(x)
        wide, x = x.relu(), x + self.down3(fine.relu())
        fine = fine + resized(self.narrow3(wide), fine)
        x, fine = self.fourth(x.relu()), self.fine4(fine.relu())
        wide, x = x.relu(), x + self.down4(fine.relu())
        fine = fine + resized(self.narrow4(wide), fine)
        fine = self.fine5(fine.relu())
        return self.scores(resized(self.pyramid(self.fifth(x.relu())), fine) + fine)


class Guided(nn.Module):
    """PIDNet's pixel-attention: where the fine features agree with the coarse ones, these are taken."""

    def __init__(self, width: int, mid: int) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(width, mid, 1), nn.Conv2d(width, mid, 1)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """At the fine resolution."""
        alike = resized(self.coarse(coarse), fine) * self.fine(fine)
        share = alike.sum(1).unsqueeze(1).sigmoid()
        return (1 - share) * fine + share * resized(coarse, fine)


class PidNet(nn.Module):
    """PIDNet-S (Xu et al. 2023): branches of details, context and boundaries."""

    def __init__(self, w: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, w, 3, 2), conv(w, w, 3, 2), stage(w, w, 2, act=False))
        self.second = stage(w, 2 * w, 2, 2, act=False)
        self.third, self.fourth = stage(2 * w, 4 * w, 3, 2, act=False), stage(4 * w, 8 * w, 3, 2, act=False)
        self.fifth = nn.Sequential(bottleneck(8 * w, 8 * w, 2), bottleneck(16 * w, 8 * w))
        self.fine3, self.fine4 = stage(2 * w, 2 * w, 2, act=False), stage(2 * w, 2 * w, 2, act=False)
        self.edge3, self.edge4 = basic(2 * w, w, act=False), bottleneck(w, w)
        self.narrow3, self.narrow4 = nn.Conv2d(4 * w, 2 * w, 1), nn.Conv2d(8 * w, 2 * w, 1)
        self.guide3, self.guide4 = Guided(2 * w, w), Guided(2 * w, w)
        self.differ3, self.differ4 = nn.Conv2d(4 * w, w, 3, 1, 1), nn.Conv2d(8 * w, 2 * w, 3, 1, 1)
        self.fine5, self.edge5 = bottleneck(2 * w, 2 * w), bottleneck(2 * w, 2 * w)
        self.pyramid, self.scores = Pyramid(16 * w, 96, 4 * w, parallel=True), scores(4 * w, 128)
        self.details, self.context = nn.Conv2d(4 * w, 4 * w, 1), nn.Conv2d(4 * w, 4 * w, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores at an eighth of the resolution."""
        x = self.second(functional.relu(self.stem(x))).relu()
        fine, edge, x = self.fine3(x), self.edge3(x), self.third(x).relu()
        fine, edge = self.guide3(fine, self.narrow3(x)), edge + resized(self.differ3(x), edge)
        x, fine, edge = self.fourth(x).relu(), self.fine4(fine.relu()), self.edge4(edge.relu())
        fine, edge = self.guide4(fine, self.narrow4(x)), edge + resized(self.differ4(x), edge)
        fine, edge = self.fine5(fine.relu()), self.edge5(edge.relu()).sigmoid()
        x = resized(self.pyramid(self.fifth(x)), fine)
        return self.scores(self.details((1 - edge) * x + fine) + self.context(x + edge * fine))


def _normalized(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Normalized(build())


REALTIME: dict[str, Construction] = {
    "ddrnet23_slim": Construction(_normalized(DdrNet), image(1024, 2048), "ddrnet"),
    "ffnet_122ns_lowres": Construction(_normalized(ffnet_narrow), image(512, 1024), "ffnet"),
    "ffnet_40s": Construction(_normalized(lambda: ffnet_small([4, 5, 6, 4], 2)), image(1024, 2048), "ffnet"),
    "ffnet_54s": Construction(_normalized(lambda: ffnet_small([5, 8, 8, 5], 2)), image(1024, 2048), "ffnet"),
    "ffnet_78s": Construction(_normalized(lambda: ffnet_small([6, 12, 12, 8], 2)), image(1024, 2048), "ffnet"),
    "ffnet_78s_lowres": Construction(_normalized(lambda: ffnet_small([6, 12, 12, 8], 1)), image(512, 1024), "ffnet"),
    "pidnet": Construction(_normalized(PidNet), image(1024, 2048), "ddrnet"),
}
