"""Detectron2's Faster R-CNN with a ResNet-50 to a stride of 16, in the two parts in which it is deployed: here the first."""

import torch
import torchvision
from torch import Tensor, nn

from latency_models.base import Construction, conv, image

ANCHORS = 15


class Proposals(nn.Module):
    """Features at a 16th of the resolution, and for 15 anchors a cell a box and whether there is something."""

    def __init__(self) -> None:
        super().__init__()
        trunk = torchvision.models.resnet50()
        for layer in (trunk.layer2, trunk.layer3):  # its weights have the stride in the first convolution
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
        self.trunk = nn.Sequential(
            trunk.conv1, trunk.bn1, nn.ReLU(), trunk.maxpool, trunk.layer1, trunk.layer2, trunk.layer3
        )
        self.hidden = conv(1024, 1024)
        self.scores, self.deltas = nn.Conv2d(1024, ANCHORS, 1), nn.Conv2d(1024, 4 * ANCHORS, 1)
        self.mean, self.deviation = torch.full((1, 3, 1, 1), 0.45), torch.full((1, 3, 1, 1), 0.22)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[1, 1024, 50, 50], corners [1, 37500, 4] and scores [1, 37500]."""
        features = self.trunk((picture[:, [2, 1, 0]] - self.mean) / self.deviation)
        hidden = self.hidden(features)
        scores = self.scores(hidden).permute(0, 2, 3, 1).flatten(1)
        deltas = self.deltas(hidden).permute(0, 2, 3, 1).reshape(-1, 4)
        return features, self._corners(deltas).view(1, -1, 4), scores

    @staticmethod
    def _corners(deltas: Tensor) -> Tensor:
        """Shifts and logarithmic scales of anchors [anchors, 4] → corners."""
        n = deltas.shape[0]
        width, height, x, y = (torch.full((n, 1), 1.5) for _ in range(4))
        x = deltas[:, 0::4] * width + x
        y = deltas[:, 1::4] * height + y
        w = deltas[:, 2::4].clamp(max=4.1).exp() * width
        h = deltas[:, 3::4].clamp(max=4.1).exp() * height
        corners = [x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h]
        return torch.stack(corners, 2).reshape(n, 4)


PROPOSALS: dict[str, Construction] = {
    "detectron2_detection:proposal_generator": Construction(Proposals, image(800), "rcnn"),
}
