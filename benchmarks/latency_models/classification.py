"""Convolutional and hybrid classifiers from torchvision and timm, and two MobileNetV1s that neither has."""

from collections.abc import Callable

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Centered, Construction, conv, image


class MobileNetV1(nn.Module):
    """Depthwise-separable stack (Howard et al. 2017), with heads of 1×1 convolutions on its last features."""

    def __init__(self, channels: int, plan: list[tuple[int, int, int]], heads: list[int], *, pool: bool) -> None:
        super().__init__()
        first, *rest = plan
        layers: list[nn.Module] = [conv(channels, first[0], 3, first[1], act=nn.ReLU6())]
        width = first[0]
        for out, stride, dilation in rest:
            layers += [
                conv(width, width, 3, stride, groups=width, dilation=dilation, act=nn.ReLU6()),
                conv(width, out, 1, act=nn.ReLU6()),
            ]
            width = out
        self.trunk = nn.Sequential(*layers)
        self.pool = pool
        self.heads = nn.ModuleList(nn.Linear(width, n) if pool else nn.Conv2d(width, n, 1) for n in heads)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """One output a head."""
        x = self.trunk(x)
        if self.pool:
            x = x.mean((2, 3))
        return tuple(head(x) for head in self.heads)


class _PoseNet(nn.Module):
    """MobileNetV1 with PoseNet's heads, and the maxima of its heat maps' neighbourhoods."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Heat maps, offsets, displacements, maxima."""
        heat, *rest = self.model(x)
        heat = heat.sigmoid()
        return heat, *rest, functional.max_pool2d(heat, 3, 1, 1)


def _posenet() -> nn.Module:
    widths = [(32, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 1), (1024, 1)]
    return Centered(_PoseNet(MobileNetV1(3, [(w, s, 1) for w, s in widths], [17, 34, 32, 32], pool=False)))


def _yamnet() -> nn.Module:
    widths = [(32, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    return MobileNetV1(1, [(w, s, 1) for w, s in widths], [521], pool=True)


def _regnet() -> nn.Module:
    device = torch.get_default_device()
    with torch.device("cpu"):  # it computes its widths with tensors
        return torchvision.models.regnet_x_3_2gf().to(device)


def _torchvision(name: str, family: str, side: int = 224) -> Construction:
    return Construction(lambda: getattr(torchvision.models, name)(), image(side), family)


def _inception_v3() -> nn.Module:
    return Centered(torchvision.models.inception_v3(init_weights=False, transform_input=False))


def _timm(name: str, family: str, side: int = 224, width: int | None = None) -> Construction:
    return Construction(lambda: timm.create_model(name, exportable=True), image(side, width), family)


def _video(name: str) -> Construction:
    build: Callable[[], nn.Module] = getattr(torchvision.models.video, name)
    return Construction(build, (torch.zeros(1, 3, 16, 112, 112),), "video")


CLASSIFICATION: dict[str, Construction] = {
    "convnext_tiny": _torchvision("convnext_tiny", "convnext"),
    "convnext_v2_base": _timm("convnextv2_base", "convnext"),
    "densenet121": _torchvision("densenet121", "incept"),
    "dla102x": _timm("dla102x", "resnet"),
    "efficientformer": _timm("efficientformer_l1", "hybrid"),
    "efficientnet_b0": _torchvision("efficientnet_b0", "effnet"),
    "efficientnet_b4": _torchvision("efficientnet_b4", "effnet", 380),
    "efficientnet_lite4": _timm("tf_efficientnet_lite4", "effnet", 300),
    "efficientvit_b2_cls": _timm("efficientvit_b2", "hybrid"),
    "efficientvit_l2_cls": _timm("efficientvit_l2", "hybrid", 384),
    "inception_v3": Construction(_inception_v3, image(299), "incept"),
    "inception_v4": Construction(
        lambda: Centered(timm.create_model("inception_v4", exportable=True)), image(299), "incept"
    ),
    "levit": _timm("levit_128s", "hybrid"),
    "mnasnet05": _torchvision("mnasnet0_5", "mbnet"),
    "mobilenet_v2": _torchvision("mobilenet_v2", "mbnet"),
    "mobilenet_v3_large": _torchvision("mobilenet_v3_large", "mbnet"),
    "mobilenet_v3_small": _torchvision("mobilenet_v3_small", "mbnet"),
    "nasnet": _timm("nasnetalarge", "incept", 331),
    "posenet_mobilenet": Construction(_posenet, image(513, 257), "mbnet"),
    "regnet": Construction(_regnet, image(224), "resnet"),
    "repvit": Construction(lambda: timm.create_model("repvit_m2_3", distillation=False), image(224), "hybrid"),
    "resnet101": _torchvision("resnet101", "resnet"),
    "resnet18": _torchvision("resnet18", "resnet"),
    "resnet50": _torchvision("resnet50", "resnet"),
    "resnet_2plus1d": _video("r2plus1d_18"),
    "resnet_3d": _video("r3d_18"),
    "resnet_mixed": _video("mc3_18"),
    "resnext50": _torchvision("resnext50_32x4d", "resnet"),
    "shufflenet_v2": _torchvision("shufflenet_v2_x0_5", "mbnet"),
    "squeezenet1_1": _torchvision("squeezenet1_1", "mbnet"),
    "vit": _torchvision("vit_b_16", "vit"),
    "wideresnet50": _torchvision("wide_resnet50_2", "resnet"),
    "yamnet": Construction(_yamnet, image(96, 64, channels=1), "mbnet"),
}
