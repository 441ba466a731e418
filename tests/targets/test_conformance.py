"""The shared suite over every built-in backend."""

import importlib.util

import pytest

from pocketport.targets.conformance import BackendConformance


class TestExample(BackendConformance):
    factory = "pocketport.targets.example:backend"
    target = "example/one"


class TestX86(BackendConformance):
    factory = "pocketport.targets.x86:backend"
    target = "x86/generic"
    packages = ("openvino",)


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime_qnn") is None, reason="needs onnxruntime-qnn")
class TestQualcomm(BackendConformance):
    factory = "pocketport.targets.qualcomm:backend"
    target = "qualcomm/sm8650"
    packages = ("onnxruntime_qnn",)


@pytest.mark.skipif(importlib.util.find_spec("coreai") is None, reason="needs coreai-core")
class TestApple(BackendConformance):
    factory = "pocketport.targets.apple:backend"
    target = "apple/a17-pro"
    packages = ("coreai", "coremltools")


@pytest.mark.skipif(importlib.util.find_spec("ai_edge_litert") is None, reason="needs ai-edge-litert")
class TestMediatek(BackendConformance):
    factory = "pocketport.targets.mediatek:backend"
    target = "mediatek/mt6989"
    packages = ("ai_edge_litert",)
