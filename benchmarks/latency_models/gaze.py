"""Where an eye looks: stacked hourglasses (Park et al. 2018), after the public definition."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, conv, resized

STACKS, WIDTH, POINTS = 3, 32, 34


class Preactivated(nn.Module):
    """A bottleneck that begins with a and a shortcut."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        half = cout // 2
        self.layers = nn.Sequential(
            nn.BatchNorm2d(cin), nn.ReLU(), conv(cin, half, 1), conv(half, half), nn.Conv2d(half, cout, 1)
        )
        self.shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Same resolution."""
        return self.layers(x) + self.shortcut(x)


class Hourglass(nn.Module):
    """Down by halves, up again, with a block beside each level."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.beside, self.before, self.after = (Preactivated(WIDTH, WIDTH) for _ in range(3))
        self.inner: nn.Module = Hourglass(depth - 1) if depth > 1 else Preactivated(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        y = self.after(self.inner(self.before(functional.max_pool2d(x, 2))))
        return self.beside(x) + resized(y, x)


def _stem(cin: int, s: int) -> nn.Sequential:
    return nn.Sequential(
        conv(cin, 64, 7, s), Preactivated(64, 128), nn.MaxPool2d(2), Preactivated(128, 128), Preactivated(128, WIDTH)
    )


class EyeNet(nn.Module):
    """A gray picture of an eye → heat maps, 34 points and the angles of its gaze."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gaze = _stem(1, 1), _stem(WIDTH, 2)
        self.hourglasses = nn.ModuleList(
            nn.Sequential(Hourglass(4), Preactivated(WIDTH, WIDTH), conv(WIDTH, WIDTH, 1)) for _ in range(STACKS)
        )
        self.heads = nn.ModuleList(nn.Conv2d(WIDTH, POINTS, 1) for _ in range(STACKS))
        self.merged = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(STACKS - 1))
        self.shown = nn.ModuleList(nn.Conv2d(POINTS, WIDTH, 1) for _ in range(STACKS - 1))
        self.angles = nn.Sequential(nn.Linear(WIDTH * 12 * 20 + 2 * POINTS, 256), nn.ReLU(), nn.Linear(256, 2))

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[1, 3, 34, 48, 80], [1, 34, 2] and [1, 2]."""
        x = self.stem(picture.unsqueeze(1))
        gaze, maps = self.gaze(x).flatten(1), []
        for i, (hourglass, head) in enumerate(zip(self.hourglasses, self.heads, strict=True)):
            features = hourglass(x)
            maps.append(head(features))
            if i < STACKS - 1:
                x = x + self.shown[i](maps[-1]) + self.merged[i](features)
        points = self._points(maps[-1])
        return torch.stack(maps, 1), points, self.angles(torch.cat([gaze, points.flatten(1)], 1))

    @staticmethod
    def _points(heat: Tensor) -> Tensor:
        """The mean place under a softmax of every map [1, 34, height, width]."""
        _, _, h, w = heat.shape
        share = (100 * heat.reshape(1, POINTS, h * w)).softmax(2)
        row, column = torch.full((1, h * w), 0.5), torch.full((1, h * w), 0.25)
        return torch.stack([((h - 1) * share * row).sum(2), ((w - 1) * share * column).sum(2)], 2)


GAZE: dict[str, Construction] = {"eyegaze": Construction(EyeNet, (torch.zeros(1, 96, 160),), "gaze")}
