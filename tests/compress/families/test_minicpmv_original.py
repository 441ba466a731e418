"""The gate's own torch modules against the code that they describe: timm's tower, numpy's positions."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from pocketport.compress.families.minicpmv.config import MiniCPMVConfig, VisionConfig
from pocketport.compress.families.minicpmv.original import Resampler, TimmTower, sincos
from pocketport.compress.families.minicpmv.slicing import sincos_positions


class Named(type):
    """A class that has every attribute."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class Empty(types.ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Named(name, (), {})


class WithoutTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """timm imports torchvision for its transforms, which has no CPU build; its vision transformer uses nothing of it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> object:  # type: ignore[override]
        ours = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = Empty(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@pytest.fixture
def timm() -> Iterator[types.ModuleType]:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    finder = WithoutTorchvision()
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.insert(0, finder)
    try:
        import timm.models.vision_transformer as module

        yield module
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


@torch.inference_mode()
def test_the_tower_of_2_0_is_timms(timm: types.ModuleType) -> None:
    config = VisionConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2,
                          image_size=84, patch_size=14)  # fmt: skip
    theirs = timm.VisionTransformer(
        img_size=84, patch_size=14, embed_dim=64, depth=3, num_heads=2, mlp_ratio=1.5, class_token=False,
        global_pool="map", num_classes=0, dynamic_img_size=True, dynamic_img_pad=True,
    ).eval()  # fmt: skip
    theirs.attn_pool = torch.nn.Identity()  # what the published model does with it
    theirs.blocks = theirs.blocks[:-1]
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    ours = TimmTower(config, 2).eval()
    ours.load_state_dict(theirs.state_dict())
    for size in ((84, 84), (70, 140), (140, 28), (42, 56)):
        pixels = torch.randn(1, 3, *size, generator=generator)
        torch.testing.assert_close(ours(pixels), theirs.forward_features(pixels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", [(1, 1), (3, 7), (32, 32), (9, 117)])
def test_positions_of_torch_and_numpy(target: tuple[int, int]) -> None:
    np.testing.assert_allclose(sincos(256, target).numpy(), sincos_positions(256, target), atol=2e-5)


@pytest.mark.parametrize(("version", "stored"), [("1.0", True), ("2.0", True), ("2.5", False), ("4.5", False)])
def test_which_resamplers_carry_positions(version: str, stored: bool) -> None:
    config = MiniCPMVConfig.model_validate({
        "version": version, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 64, "query_num": 16, "slice_config": {},
        "vision_config": {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                          "image_size": 84, "patch_size": 14},
    })  # fmt: skip
    assert ("pos_embed" in Resampler(config).state_dict()) is stored
