"""MediaPipe's detectors and landmarks of faces, hands and poses, made of blaze blocks (Bazarevsky et al. 2019), and its gestures.

Convolutions pad as TensorFlow does; what they pad is no layer of its own on devices.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, conv, image


class Blaze(nn.Module):
    """A depthwise and a pointwise convolution beside what was, pooled and filled up with zeros or projected.

    Args:
        cin: channels read.
        cout: channels written.
        k: the depthwise kernel.
        s: stride.
        act: behind the sum.
        project: whether a convolution widens the shortcut.
        shortcut: whether there is one.
        fill: zeros around, left, right, top and bottom, where a stride of two takes them off center.
    """

    def __init__(
        self, cin: int, cout: int, k: int = 3, s: int = 1, act: Callable[[int], nn.Module] = lambda _: nn.ReLU(),
        *, project: bool = False, shortcut: bool = True, fill: tuple[int, int, int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        pad = 0 if fill and s == 2 else k // 2
        self.fill = fill if s == 2 else None
        self.layers = nn.Sequential(nn.Conv2d(cin, cin, k, s, pad, groups=cin), nn.Conv2d(cin, cout, 1))
        self.pool = nn.MaxPool2d(2) if s == 2 else nn.Identity()
        self.project = nn.Conv2d(cin, cout, 1) if project else nn.Identity()
        self.more = 0 if project else cout - cin
        self.act, self.shortcut = act(cout), shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Half the resolution with a stride of two."""
        y = self.layers(functional.pad(x, self.fill) if self.fill else x)
        if not self.shortcut:
            return self.act(y)
        x = self.project(self.pool(x))
        if self.more:
            x = functional.pad(x, (0, 0, 0, 0, 0, self.more))
        return self.act(y + x)


def run(cin: int, cout: int, n: int, *, s: int = 2) -> list[nn.Module]:
    """A block from `cin` to `cout` channels and `n` more."""
    return [Blaze(cin, cout, s=s), *[Blaze(cout, cout) for _ in range(n)]]


def _flat(head: nn.Module, x: Tensor, width: int) -> Tensor:
    """A head's map → [1, anchors, width]."""
    return head(x).permute(0, 2, 3, 1).reshape(1, -1, width)


class Detector(nn.Module):
    """Faces or poses: two levels, each with scores and boxes with key points, handed over as they are."""

    def __init__(self, fine: nn.Module, coarse: nn.Module, widths: tuple[int, int], numbers: int) -> None:
        super().__init__()
        self.fine, self.coarse, self.numbers = fine, coarse, numbers
        self.scores = nn.ModuleList(nn.Conv2d(w, n, 1) for w, n in zip(widths, (2, 6), strict=True))
        self.boxes = nn.ModuleList(nn.Conv2d(w, n * numbers, 1) for w, n in zip(widths, (2, 6), strict=True))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Boxes of both levels, scores of both."""
        fine = self.fine(x)
        levels = (fine, self.coarse(fine))
        boxes = [_flat(head, level, self.numbers) for head, level in zip(self.boxes, levels, strict=True)]
        return *boxes, *[_flat(head, level, 1) for head, level in zip(self.scores, levels, strict=True)]


def _face_detector() -> Detector:
    blocks: list[nn.Module] = [conv(3, 24, 5, 2)]
    blocks += [*run(24, 24, 6, s=1), *run(24, 24, 7), *run(24, 48, 7), *run(48, 96, 7)]
    return Detector(nn.Sequential(*blocks), Blaze(96, 96, s=2, shortcut=False), (96, 96), 16)


def _pose_detector() -> Detector:
    fill = (1, 2, 1, 2)
    layers: list[nn.Module] = [nn.ZeroPad2d((1, 2, 2, 2)), conv(3, 48, 5)]
    plan = [(48, 48, 3, 1), (48, 64, 4, 2), (64, 96, 7, 2), (96, 128, 8, 2), (128, 256, 7, 2)]
    starts = []
    for cin, cout, n, s in plan:
        starts.append(len(layers))
        first = Blaze(cin, cout, 5, s, project=s == 2, fill=fill)
        layers += [first, *[Blaze(cout, cout, 5) for _ in range(n - 1)]]
    fine, coarse = nn.Sequential(*layers[: starts[-1]]), nn.Sequential(*layers[starts[-1] :])
    return Detector(fine, coarse, (128, 256), 12)


class FaceLandmarks(nn.Module):
    """468 points of a face, and whether there is one."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(3, 16, 3, 2, act=nn.PReLU(16))]
        for cin, cout, s in (
            (16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1), (64, 128, 2),
            (128, 128, 1), (128, 128, 1), (128, 128, 2), (128, 128, 1), (128, 128, 1),
        ):  # fmt: skip
            layers.append(Blaze(cin, cout, 3, s, nn.PReLU))
        self.trunk = nn.Sequential(*layers)
        self.points, self.seen = self._head(2, 1404), self._head(0, 1)

    @staticmethod
    def _head(more: int, out: int) -> nn.Sequential:
        blocks = [Blaze(128, 128, 3, s, nn.PReLU) for s in (2, *[1] * more)]
        return nn.Sequential(
            *blocks, conv(128, 32, 1, act=nn.PReLU(32)), Blaze(32, 32, 3, 1, nn.PReLU), nn.Conv2d(32, out, 3)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score and points."""
        x = self.trunk(x)
        return self.seen(x).sigmoid().view(-1), self.points(x).view(-1, 468, 3) / 192


def _separable(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cin, 3, 1, 1, groups=cin), conv(cin, cout, 1))


class PoseLandmarks(nn.Module):
    """25 points of a body, and whether there is one: five levels, up to a quarter of the resolution and down again."""

    def __init__(self) -> None:
        super().__init__()
        widths, depths = (48, 96, 192, 288), (3, 4, 5, 6)
        self.stem = nn.Sequential(conv(3, 24, 3, 2), Blaze(24, 24), Blaze(24, 24))
        self.down, cin = nn.ModuleList(), 24
        for w, n in zip(widths, depths, strict=True):
            self.down.append(nn.Sequential(*run(cin, w, n)))
            cin = w
        self.sides = nn.ModuleList(_separable(w, 48) for w in widths)
        self.again = nn.ModuleList(
            nn.Sequential(*run(a, b, n)) for a, b, n in ((48, 96, 4), (96, 192, 5), (192, 288, 6))
        )
        self.joins = nn.ModuleList(_separable(w, w) for w in widths[1:])
        self.end = nn.Sequential(*run(288, 288, 7), *run(288, 288, 6), Blaze(288, 288))
        self.seen, self.points = nn.Conv2d(288, 1, 2), nn.Conv2d(288, 124, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score and points."""
        x, levels = self.stem(x), []
        for blocks in self.down:
            x = blocks(x)
            levels.append(x)
        y = self.sides[3](levels[3])
        for i in (2, 1, 0):
            y = self.sides[i](levels[i]) + functional.interpolate(y, scale_factor=2.0, mode="bilinear")
        for blocks, join, level in zip(self.again, self.joins, levels[1:], strict=True):
            y = blocks(y) + join(level)
        y = self.end(y)
        return self.seen(y).view(-1).sigmoid(), (self.points(y).view(1, 31, 4) / 256)[:, :25]


class PalmDetector(nn.Module):
    """Boxes and seven points of hands at three levels, decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(conv(3, 32, 3, 2), *run(32, 32, 6, s=1), *run(32, 64, 7), *run(64, 128, 7))
        self.middle, self.coarse = nn.Sequential(*run(128, 256, 7)), nn.Sequential(*run(256, 256, 7))
        self.lifts = nn.ModuleList(nn.Sequential(nn.ConvTranspose2d(256, w, 2, 2), nn.ReLU()) for w in (256, 128))
        self.joined = nn.ModuleList([Blaze(256, 256), Blaze(128, 128)])
        anchors = ((128, 2), (256, 2), (256, 6))
        self.scores = nn.ModuleList(nn.Conv2d(w, n, 1) for w, n in anchors)
        self.boxes = nn.ModuleList(nn.Conv2d(w, 18 * n, 1) for w, n in anchors)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes with points [1, anchors, 18] and scores [1, anchors]."""
        x = self.fine(x)
        y = self.middle(x)
        z = self.coarse(y)
        y = self.joined[0](y + self.lifts[0](z))
        x = self.joined[1](x + self.lifts[1](y))
        levels = (x, y, z)
        scores = torch.cat([_flat(head, level, 1) for head, level in zip(self.scores, levels, strict=True)], 1)
        boxes = torch.cat([_flat(head, level, 18) for head, level in zip(self.boxes, levels, strict=True)], 1)
        n = boxes.shape[1]
        scale, where = torch.full((1, n, 1, 2), 0.1), torch.ones(1, n, 9, 2)
        found = (boxes.view(1, n, 9, 2) * scale + where).view(1, n, 18)
        scores = scores.clamp(-100, 100).sigmoid().reshape(1, n)
        center, half, rest = found[..., :2], found[..., 2:4] * 0.5, found[..., 4:]
        return torch.cat([torch.cat([center - half, center + half], 2), rest], 2), scores


class Inverted(nn.Module):
    """MobileNetV2's block with a wide depthwise kernel."""

    def __init__(self, cin: int, cout: int, k: int, s: int, expand: int = 6) -> None:
        super().__init__()
        mid = cin * expand if expand > 1 else cin
        wide = [conv(cin, mid, 1, act=nn.ReLU6())] if expand > 1 else []
        narrow = nn.Conv2d(mid, cout, 1)
        self.layers = nn.Sequential(*wide, conv(mid, mid, k, s, groups=mid, act=nn.ReLU6()), narrow)
        self.shortcut = cin == cout and s == 1

    def forward(self, x: Tensor) -> Tensor:
        """With a shortcut where shapes stay."""
        return x + self.layers(x) if self.shortcut else self.layers(x)


class HandLandmarks(nn.Module):
    """21 points of a hand in the picture and in space, whether there is one, and which."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            conv(3, 24, 3, 2, act=nn.ReLU6()),
            Inverted(24, 16, 3, 1, 1),
            Inverted(16, 24, 3, 2, 4),
        ]
        for cin, cout, k, s in (
            (24, 24, 3, 1), (24, 40, 5, 2), (40, 40, 5, 1), (40, 80, 3, 2), (80, 80, 3, 1), (80, 80, 3, 1), (80, 112, 5, 1),
            (112, 112, 5, 1), (112, 112, 5, 1), (112, 192, 5, 2), (192, 192, 5, 1), (192, 192, 5, 1), (192, 192, 5, 1),
        ):  # fmt: skip
            layers.append(Inverted(cin, cout, k, s))
        wide = nn.ReLU6()
        self.trunk = nn.Sequential(*layers, conv(192, 1152, 1, act=wide), conv(1152, 1152, groups=1152, act=wide))
        self.heads = nn.ModuleList(nn.Linear(1152, n) for n in (63, 1, 1, 63))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Points, score, which hand, points in space."""
        x = self.trunk(x).mean((2, 3))
        points, seen, which, space = [head(x) for head in self.heads]
        return points, seen.sigmoid(), which.sigmoid(), space


class Affine(nn.Module):
    """What a normalization of [1, 128] is: devices count no conversion to float around it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = torch.full((128,), 0.9), torch.full((128,), 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x * self.scale + self.shift


class Gestures(nn.Module):
    """Points of a hand and of its mirror image → eight gestures: one perceptron with shortcuts over both, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 128)
        self.norms, self.layers = nn.ModuleList(Affine() for _ in range(7)), nn.ModuleList(_square() for _ in range(7))
        self.norm, self.embed, self.last = Affine(), _square(), Affine()
        self.out = nn.Linear(128, 8)

    def _embedded(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(functional.silu(norm(x)))
        return x

    def forward(self, hand: Tensor, mirrored: Tensor) -> Tensor:
        """Probabilities [1, 8] of points [1, 64]."""
        x = self.embed(functional.silu(self.norm(self._embedded(hand) + self._embedded(mirrored))))
        return self.out(self.last(x).relu()).softmax(1)


def _square() -> nn.Linear:
    return nn.Linear(128, 128)


MEDIAPIPE: dict[str, Construction] = {
    "mediapipe_face:face_detector": Construction(_face_detector, image(256), "blaze"),
    "mediapipe_face:face_landmark_detector": Construction(FaceLandmarks, image(192), "blaze"),
    "mediapipe_hand_gesture:canned_gesture_classifier": Construction(
        Gestures, (torch.zeros(1, 64), torch.zeros(1, 64)), "gestures"
    ),
    "mediapipe_hand_gesture:hand_landmark_detector": Construction(HandLandmarks, image(224), "mbnet"),
    "mediapipe_hand_gesture:palm_detector": Construction(PalmDetector, image(256), "blaze"),
    "mediapipe_pose:pose_detector": Construction(_pose_detector, image(128), "blaze"),
    "mediapipe_pose:pose_landmark_detector": Construction(PoseLandmarks, image(256), "blaze"),
}
