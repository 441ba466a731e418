"""Detectors of what words say, as Qualcomm AI Hub Models deploy them: YOLOE (Wang et al. 2025) and YOLO-World (Cheng et al. 2024)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Construction, image
from latency_models.detection import Bottleneck, C2f, Pyramid, V8Head, YoloV8, cbs, detections, twice

WORDS, EMBEDDED = 80, 512


class Likeness(nn.Module):
    """How like each word each place's embedding is; the words are constants."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.scale = nn.Parameter(torch.zeros(1, EMBEDDED, WORDS)), 10.0
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """[1, 512, height, width] → [1, 80, height, width]."""
        return (x.permute(0, 2, 3, 1) @ self.words).permute(0, 3, 1, 2) * self.scale + self.bias


class YoloE(YoloV8):
    """YOLOE-v8l-seg for 80 words: YOLOv8's segmentation with scores by likeness to the words."""

    def __init__(self) -> None:
        widths = [64, 128, 256, 512, 512]
        super().__init__(widths, [3, 6, 6, 3], WORDS, 32)
        self.head = V8Head(widths[2:], WORDS, 32)
        for branch in self.head.scores:
            branch[2] = nn.Sequential(nn.Conv2d(widths[2], EMBEDDED, 1), Likeness())


class Guided(nn.Module):
    """YOLO-World's cross-stage block: one more part, weighted by what is most like a word."""

    def __init__(self, cin: int, cout: int, heads: int) -> None:
        super().__init__()
        self.half, self.heads, self.each = cout // 2, heads, cout // 2 // heads
        self.first, self.out = cbs(cin, cout), cbs(4 * self.half, cout)
        self.block, self.words = Bottleneck(self.half, False, 3), nn.Linear(EMBEDDED, self.half)
        self.bias, self.last = nn.Parameter(torch.zeros(1, heads, 1, 1)), cbs(self.half, self.half, 3, act=False)

    def _weighted(self, x: Tensor, words: Tensor) -> Tensor:
        _, _, height, width = x.shape
        words = self.words(words).view(1, WORDS, self.heads, self.each).permute(0, 2, 3, 1)
        places = x.view(1, self.heads, self.each, height, width).permute(0, 1, 3, 4, 2)
        places = places.reshape(1, self.heads, height * width, self.each)
        # Deployed as a product of elements and a sum: a matrix product there was refused by the vendor's compiler.
        like = (places.unsqueeze(-1) * words.unsqueeze(2)).sum(-2).view(1, self.heads, height, width, WORDS)
        weight = (like.amax(-1) / self.each**0.5 + self.bias).sigmoid()
        y = self.last(x).view(1, self.heads, self.each, height, width)
        return (y * weight.unsqueeze(2)).view(1, self.half, height, width)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """Same resolution."""
        parts = list(self.first(x).split((self.half, self.half), 1))
        parts.append(self.block(parts[-1]))
        parts.append(self._weighted(parts[-1], words))
        return self.out(torch.cat(parts, 1))


class ProductLikeness(nn.Module):
    """How like each word each place's embedding is, the words being an input, by products of elements as deployed."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = 10.0, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """[1, 512, height, width] and [1, 80, 512] → [1, 80, height, width]."""
        words = functional.normalize(words, dim=-1).permute(0, 2, 1)
        like = (x.permute(0, 2, 3, 1).unsqueeze(-1) * words[:, None, None]).sum(-2)
        return like.permute(0, 3, 1, 2) * self.scale + self.bias


class YoloWorld(nn.Module):
    """YOLOv8s-worldv2: a picture and embedded words → corners, the best word's score and number."""

    def __init__(self) -> None:
        super().__init__()
        _, _, c3, c4, c5 = widths = [32, 64, 128, 256, 512]
        self.body = Pyramid(widths, [1, 2, 2, 1], C2f, 3, reduce=False)
        self.body.up4, self.body.up3 = Guided(c5 + c4, c4, 4), Guided(c4 + c3, c3, 2)
        self.body.out4, self.body.out5 = Guided(c3 + c4, c4, 4), Guided(c4 + c5, c5, 8)
        self.head = V8Head(widths[2:], EMBEDDED)
        self.like = ProductLikeness()

    def forward(self, picture: Tensor, words: Tensor) -> tuple[Tensor, ...]:
        """Boxes [1, 8400, 4]."""
        body = self.body
        p3 = body.p3(body.stem(picture))
        p4 = body.p4(p3)
        p5 = body.p5(p4)
        n4 = body.up4(torch.cat([twice(p5), p4], 1), words)
        n3 = body.up3(torch.cat([twice(n4), p3], 1), words)
        m4 = body.out4(torch.cat([body.down3(n3), n4], 1), words)
        levels = [n3, m4, body.out5(torch.cat([body.down4(m4), p5], 1), words)]
        scores = [self.like(e(x), words) for e, x in zip(self.head.scores, levels, strict=True)]
        boxes, scored = self.head.decoded(levels, scores)
        return detections(boxes.transpose(1, 2), scored.transpose(1, 2))


OPEN_VOCABULARY: dict[str, Construction] = {
    "yolo_world:detector": Construction(YoloWorld, (*image(640), torch.zeros(1, WORDS, EMBEDDED)), "yolo"),
    "yoloe_seg": Construction(YoloE, image(640), "yolo"),
}
