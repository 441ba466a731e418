"""Convolutional and hybrid classifiers from torchvision and timm, and two MobileNetV1s that neither has."""

from collections.abc import Callable

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from latency_models.base import Centered, Construction, Normalized, conv, image


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


class Inverted(nn.Module):
    """MobileNetV2's block with SiLU, or with ReLU and a gate of channels; `fused`: one 3×3 convolution for the first two."""

    def __init__(self, cin: int, cout: int, stride: int, *, fused: bool = False, gate: int = 0) -> None:
        super().__init__()
        mid, act = 5 * cin, nn.ReLU() if fused or gate else nn.SiLU()
        layers: list[nn.Module] = [conv(cin, mid, 3, stride, act=act)]
        if not fused:
            layers = [conv(cin, mid, 1, act=act), conv(mid, mid, 3, stride, groups=mid, act=act)]
        if gate:
            layers.append(torchvision.ops.SqueezeExcitation(mid, gate))
        self.layers, self.shortcut = nn.Sequential(*layers, nn.Conv2d(mid, cout, 1)), cin == cout and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """With a shortcut where the shape stays."""
        return x + self.layers(x) if self.shortcut else self.layers(x)


def _gpunet() -> nn.Module:
    """GPUNet-0 (Wang et al. 2022)."""
    fused = [(32, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1)]
    return nn.Sequential(
        conv(3, 32, 3, 2), conv(32, 32), conv(32, 32),
        *[Inverted(*shape, fused=True) for shape in fused],
        *[Inverted(*shape) for shape in ((64, 256, 2), (256, 256, 1), (256, 256, 1))],
        Inverted(256, 704, 2, gate=64), Inverted(704, 704, 1, gate=176),
        conv(704, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000),
    )  # fmt: skip


class VggBox(nn.Module):
    """VGG-19's features, and from them an object's direction, which of two ranges it is in, and its size (Mousavian et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision.models.vgg19_bn().features
        self.turn, self.range, self.size = (_head(*sizes) for sizes in ((256, 4), (256, 2), (512, 3)))

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """[1, 2, 2], [1, 2] and [1, 3]."""
        x = self.features(picture).flatten(1)
        return functional.normalize(self.turn(x).view(1, 2, 2), dim=2), self.range(x), self.size(x)


def _head(mid: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(512 * 7 * 7, mid), nn.ReLU(), nn.Linear(mid, mid), nn.ReLU(), nn.Linear(mid, out))


class Flipped(nn.Module):
    """A model that wants a picture's colours the other way round."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """What the model makes of it."""
        return self.model(picture.flip(1))


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
    "deepbox:vgg_3d_detection": Construction(lambda: Flipped(Normalized(VggBox())), image(224), "vgg"),
    "densenet121": _torchvision("densenet121", "incept"),
    "dla102x": _timm("dla102x", "resnet"),
    "efficientformer": _timm("efficientformer_l1", "hybrid"),
    "efficientnet_b0": _torchvision("efficientnet_b0", "effnet"),
    "efficientnet_b4": _torchvision("efficientnet_b4", "effnet", 380),
    "efficientnet_lite4": _timm("tf_efficientnet_lite4", "effnet", 300),
    "efficientvit_b2_cls": _timm("efficientvit_b2", "hybrid"),
    "efficientvit_l2_cls": _timm("efficientvit_l2", "hybrid", 384),
    "gpunet": Construction(_gpunet, image(224), "effnet"),
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
