import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_models import save_decoder
from numpy.typing import NDArray
from packed_layers import Layer, gptq_config, planes, save_published
from safetensors.numpy import load_file
from written_formats import written

from pocketport.compress.sources.open import open_source
from pocketport.compress.sources.packed import PackedLinear

LINEAR = "model.layers.0.mlp.down_proj"


def dequantized(tensors: dict[str, NDArray[Any]], layer: str, bits: int, offset: int) -> NDArray[np.float64]:
    """As AutoGPTQ's QuantLinear computes it (2, 4, 8 bits): shifts over words, zero + offset, scale by g_idx; [N, K]."""
    weight, zeros = (torch.from_numpy(tensors[f"{layer}.{part}"]) for part in ("qweight", "qzeros"))
    shifts, mask = torch.arange(0, 32, bits), 2**bits - 1
    integers = ((weight[:, None, :] >> shifts[None, :, None]) & mask).reshape(-1, weight.shape[1])
    zero = ((zeros[:, :, None] >> shifts) & mask).reshape(len(zeros), -1) + offset
    groups = torch.from_numpy(tensors[f"{layer}.g_idx"]).long()
    scale = torch.from_numpy(tensors[f"{layer}.scales"]).double()
    matrix: NDArray[np.float64] = ((integers - zero[groups]) * scale[groups]).T.numpy()
    return matrix


@pytest.mark.parametrize("scheme", ["w4b32fp16", "w8b32fp16", "w2b32fp16", "w4cfp16"])
def test_what_is_written_is_the_published_layout(tmp_path: Path, scheme: str) -> None:
    folder = save_decoder(tmp_path / "float", "llama")
    done = written(tmp_path, folder, "gptq", {"scheme": scheme})
    tensors = load_file(done.directory / "model.safetensors")
    settings = json.loads((done.directory / "quantize_config.json").read_text())
    bits, block = int(scheme[1]), -1 if "c" in scheme else 32
    expected = {"bits": bits, "group_size": block, "sym": True, "desc_act": False, "checkpoint_format": "gptq"}
    assert expected.items() <= settings.items()
    assert json.loads((done.directory / "config.json").read_text())["quantization_config"] == settings
    linears = [name for name in done.plans if name.endswith("_proj.weight")]
    assert len(linears) == 14 and all(done.plans[name].quantized for name in linears)
    for name in linears:
        found = dequantized(tensors, name.removesuffix(".weight"), bits, 1)
        np.testing.assert_allclose(found, done.weight(name).dequantized(), rtol=1e-6)
        assert name not in tensors
    source = load_file(folder / "model.safetensors")
    for name in source.keys() - set(linears):
        np.testing.assert_array_equal(tensors[name], source[name])


def test_five_and_six_bits_lie_in_planes(tmp_path: Path) -> None:
    """And so do all others beside them, with zero points as they are."""
    rules = [
        {"scheme": "w5b32fp16"},
        {"name": "*up_proj*", "scheme": "w6cfp16"},
        {"name": "*v_proj", "scheme": "w3b32fp16"},
    ]
    done = written(tmp_path, save_decoder(tmp_path / "float", "llama"), "gptq", *rules)
    settings = json.loads((done.directory / "quantize_config.json").read_text())
    assert (settings["checkpoint_format"], settings["bits"], settings["sym"]) == ("gptq_p", 5, True)
    tensors = load_file(done.directory / "model.safetensors")
    source = open_source(done.directory)
    for name in done.weights:
        layer, weight = name.removesuffix(".weight"), done.weight(name)
        packed = planes(weight.integers.astype(np.int64), weight.bits)
        np.testing.assert_array_equal(tensors[f"{layer}.qweight"], packed.T)
        zeros = planes(weight.zero_point.T.astype(np.int64), weight.bits)
        np.testing.assert_array_equal(tensors[f"{layer}.qzeros"], zeros)
        np.testing.assert_array_equal(source.tensors[name].numpy(), weight.dequantized())


@pytest.mark.parametrize("scheme", ["w3b32fp16", "w4b32fp16"])
def test_what_is_written_is_read_again(tmp_path: Path, scheme: str) -> None:
    done = written(tmp_path, save_decoder(tmp_path / "float", "qwen2"), "gptq", {"scheme": scheme})
    source = open_source(done.directory)
    assert set(source.tensors) == set(done.plans)
    for name in done.weights:
        tensor, weight = source.tensors[name], done.weight(name)
        assert isinstance(tensor, PackedLinear) and tensor.scheme == scheme
        np.testing.assert_array_equal(tensor.quantized().integers, weight.integers)
        np.testing.assert_array_equal(tensor.numpy(), weight.dequantized())


def test_layers_in_another_form_are_named(tmp_path: Path) -> None:
    """As GPTQModel resolves them: the first pattern that `re.match` finds in the layer's path."""
    folder = save_decoder(tmp_path / "float", "llama")
    rules = [
        {"scheme": "w4b32fp16"},
        {"name": "*up_proj*", "scheme": "w8cfp16"},
        {"name": "*.0.*v_proj", "scheme": "w3b32fp16"},
    ]
    done = written(tmp_path, folder, "gptq", *rules)
    settings = json.loads((done.directory / "config.json").read_text())["quantization_config"]
    assert (settings["bits"], settings["group_size"]) == (4, 32)
    tensors = load_file(done.directory / "model.safetensors")
    source = open_source(done.directory)
    assert all(pattern.startswith("+:") for pattern in settings["dynamic"])
    for name in done.weights:
        layer = name.removesuffix(".weight")
        found = [own for pattern, own in settings["dynamic"].items() if re.match(pattern.removeprefix("+:"), layer)]
        own = found[0] if found else {"bits": 4, "group_size": 32}
        wanted = {"bits": 8, "group_size": -1} if "up_proj" in name else {"bits": 4, "group_size": 32}
        wanted = {"bits": 3, "group_size": 32} if "layers.0" in name and "v_proj" in name else wanted
        assert own == wanted and len(found) <= 1
        if own["bits"] != 3:
            unpacked = dequantized(tensors, layer, own["bits"], 1)
            np.testing.assert_allclose(unpacked, done.weight(name).dequantized(), rtol=1e-6)
        np.testing.assert_array_equal(source.tensors[name].numpy(), done.weight(name).dequantized())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("reordered", [True, False])
def test_published_integers_are_kept(tmp_path: Path, symmetric: bool, reordered: bool) -> None:
    folder, layers = save_published(
        tmp_path / "published", save_decoder(tmp_path / "float", "llama"),
        lambda n, k, i: Layer(n, k, 4, 32, symmetric=symmetric, reordered=reordered, seed=i), lambda layer: layer.gptq(),
        gptq_config(4, 32, symmetric=symmetric),
    )  # fmt: skip
    done = written(tmp_path, folder, "gptq")
    tensors = load_file(done.directory / "model.safetensors")
    settings = json.loads((done.directory / "quantize_config.json").read_text())
    version = "gptq" if symmetric else "gptq_v2"
    assert (settings["checkpoint_format"], settings["desc_act"], settings["group_size"]) == (version, reordered, 32)
    for path, layer in layers.items():
        plan = done.plans[f"{path}.weight"]
        assert (plan.algorithm, plan.scheme, plan.symmetric) == ("stored", "w4b32fp16", symmetric)
        assert plan.bytes_before == sum(array.nbytes for array in layer.gptq().values())
        for part, array in layer.gptq(version).items():
            np.testing.assert_array_equal(tensors[f"{path}.{part}"], array)


def test_published_integers_of_other_bits_are_rounded_anew(tmp_path: Path) -> None:
    folder, _ = save_published(
        tmp_path / "published", save_decoder(tmp_path / "float", "llama"),
        lambda n, k, i: Layer(n, k, 4, 32, symmetric=True, seed=i), lambda layer: layer.gptq(), gptq_config(4, 32, symmetric=True),
    )  # fmt: skip
    done = written(tmp_path, folder, "gptq", {"scheme": "w8b32fp16", "algorithm": "rtn"})
    plan = done.plans[f"{LINEAR}.weight"]
    assert (plan.algorithm, plan.scheme) == ("rtn", "w8b32fp16")
    source = open_source(folder).tensors[f"{LINEAR}.weight"].numpy()
    np.testing.assert_allclose(done.weight(f"{LINEAR}.weight").dequantized(), source, atol=np.abs(source).max() / 200)
