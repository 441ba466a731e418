import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_models import save_decoder
from packed_layers import Layer, gptq_config, save_published
from safetensors.torch import load_file
from written_formats import Written, written

from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.families.transformers_reference import transformers_model
from pocketport.compress.sources.open import open_source
from pocketport.compress.sources.packed import PackedLinear

transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

TOKENS = torch.arange(3, 40)[None]


def loaded(directory: Path) -> Any:
    """The model as transformers and the package itself load it.

    transformers 5.24 has room for zero points that vary only when it dequantizes at once, and then knows one group only.
    """
    groups = json.loads((directory / "config.json").read_text())["quantization_config"]["config_groups"]
    how = transformers.CompressedTensorsConfig(dequantize=len(groups) == 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, quantization_config=how)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=TOKENS).logits
    return found.float()


def check_loads(done: Written) -> None:
    """transformers' logits are those of our own dequantized weights in a float model."""
    expected = logits(transformers_model(open_source(done.directory), "AutoModelForCausalLM"))
    found = logits(loaded(done.directory))
    assert sqnr_db(expected.numpy(), found.numpy()) > 60  # the package dequantizes in float16


@pytest.mark.parametrize(
    "rules",
    [
        [{"scheme": "w4b32fp16"}],
        [{"scheme": "w8cfp16"}],
        [{"scheme": "w4b32fp16"}, {"name": "*down_proj*", "scheme": "w8b32fp16"}, {"name": "*v_proj*", "scheme": "float"}],
    ],
    ids=["blocks", "channels", "mixed"],
)  # fmt: skip
def test_transformers_loads_it(tmp_path: Path, rules: list[dict[str, object]]) -> None:
    folder = save_decoder(tmp_path / "float", "llama")
    done = written(tmp_path, folder, "compressed-tensors", *rules)
    check_loads(done)
    source = open_source(done.directory)
    for name in done.weights:
        tensor = source.tensors[name]
        assert isinstance(tensor, PackedLinear)
        np.testing.assert_array_equal(tensor.quantized().integers, done.weight(name).integers)
    kept = load_file(folder / "model.safetensors")
    for name in kept.keys() - set(done.weights):
        np.testing.assert_array_equal(source.tensors[name].numpy(), kept[name].numpy())
    assert len(done.weights) == (12 if len(rules) == 3 else 14)


def published(tmp_path: Path, kind: str, *, symmetric: bool, reordered: bool = False) -> tuple[Path, dict[str, Layer]]:
    quantization = (
        gptq_config(4, 32, symmetric=symmetric)
        if kind == "gptq"
        else {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32, "zero_point": not symmetric}
    )
    return save_published(
        tmp_path / kind, save_decoder(tmp_path / "float", "llama"),
        lambda n, k, i: Layer(n, k, 4, 32, symmetric=symmetric, reordered=reordered, seed=i),
        lambda layer: layer.gptq() if kind == "gptq" else layer.awq(), quantization,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["gptq", "awq"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_published_integers_are_kept(tmp_path: Path, kind: str, symmetric: bool) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    folder, layers = published(tmp_path, kind, symmetric=symmetric)
    done = written(tmp_path, folder, "compressed-tensors")
    tensors = load_file(done.directory / "model.safetensors")
    for path, layer in layers.items():
        plan = done.plans[f"{path}.weight"]
        assert (plan.algorithm, plan.scheme, plan.symmetric) == ("stored", "w4b32fp16", symmetric)
        integers = unpack_from_int32(tensors[f"{path}.weight_packed"], 4, torch.Size(layer.integers.shape))
        np.testing.assert_array_equal(integers.numpy() + 8, layer.integers)
        np.testing.assert_array_equal(tensors[f"{path}.weight_scale"].numpy(), layer.scale)
    check_loads(done)
    quantization = json.loads((done.directory / "config.json").read_text())["quantization_config"]
    assert quantization["config_groups"]["group_0"]["weights"]["symmetric"] is symmetric


def test_columns_that_it_cannot_name_are_rounded_anew(tmp_path: Path) -> None:
    folder, layers = published(tmp_path, "gptq", symmetric=True, reordered=True)
    done = written(tmp_path, folder, "compressed-tensors")
    assert {done.plans[f"{path}.weight"].algorithm for path in layers} == {"mse"}
    check_loads(done)
