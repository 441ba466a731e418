"""Checkpoints whose publisher quantized them: read in their own integers, against definitions and the owners' code."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_layers import Layer, gptq_config, planes, save_packed, stream

from pocketport.compress.formats.packing import pack_planes, pack_words, unpack_planes, unpack_words
from pocketport.compress.schemes import Scheme
from pocketport.compress.sources.open import open_source
from pocketport.compress.sources.packed import PackedLinear
from pocketport.compress.sources.scan import check_weights
from pocketport.errors import InputError


@given(st.integers(1, 8), st.integers(1, 3), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_words_are_one_stream_of_bits(bits: int, rows: int, columns: int, seed: int) -> None:
    integers = np.random.default_rng(seed).integers(0, 2**bits, (rows, columns))
    words = pack_words(integers.astype(np.uint8), bits)
    np.testing.assert_array_equal(words, stream(integers, bits))
    np.testing.assert_array_equal(unpack_words(words, bits, columns), integers)


@given(st.sampled_from([2, 3, 4, 5, 6]), st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_planes_are_streams_of_the_low_and_the_high_bits(bits: int, rows: int, blocks: int, seed: int) -> None:
    integers = np.random.default_rng(seed).integers(0, 2**bits, (rows, 32 * blocks))
    words = pack_planes(integers.astype(np.uint8), bits)
    np.testing.assert_array_equal(words, planes(integers, bits))
    np.testing.assert_array_equal(unpack_planes(words, bits), integers)


def weight_of(folder: Path, name: str = "l.weight") -> PackedLinear:
    tensor = open_source(folder).tensors[name]
    assert isinstance(tensor, PackedLinear)
    return tensor


def check(tensor: PackedLinear, layer: Layer) -> None:
    quantized = tensor.quantized()
    np.testing.assert_array_equal(quantized.integers, layer.integers)
    np.testing.assert_array_equal(quantized.zero_point, layer.zero)
    np.testing.assert_array_equal(quantized.scale, layer.scale.astype(np.float32))
    np.testing.assert_allclose(tensor.numpy(), layer.matrix, rtol=1e-6)


VERSIONS = [*product(("gptq", "gptq_v2"), (2, 3, 4, 8)), *product(("gptq_p",), (3, 4, 5, 6))]


@pytest.mark.parametrize(("version", "bits"), VERSIONS)
@pytest.mark.parametrize("block", [-1, 32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq(tmp_path: Path, version: str, bits: int, block: int, symmetric: bool) -> None:
    layer = Layer(64, 128, bits, 128 if block < 0 else block, symmetric=symmetric)
    folder = save_packed(
        tmp_path, {"l": layer.gptq(version)}, gptq_config(bits, block, symmetric=symmetric, checkpoint_format=version)
    )
    tensor = weight_of(folder)
    check(tensor, layer)
    kind = "c" if block in (-1, 128) else f"b{block}"
    assert (tensor.scheme, tensor.symmetric, tensor.reordered) == (f"w{bits}{kind}fp16", symmetric, False)
    assert tensor.fits(Scheme.parse(tensor.scheme), symmetric)
    assert not tensor.fits(Scheme.parse(tensor.scheme), not symmetric)
    assert not tensor.fits(Scheme.parse(f"w{bits}b16fp16"), symmetric)


@pytest.mark.parametrize("bits", [3, 4])
def test_columns_in_the_order_of_their_activations(tmp_path: Path, bits: int) -> None:
    layer = Layer(32, 128, bits, 32, symmetric=False, reordered=True)
    tensor = weight_of(save_packed(tmp_path, {"l": layer.gptq()}, gptq_config(bits, 32, symmetric=False)))
    check(tensor, layer)
    assert tensor.reordered
    np.testing.assert_array_equal(tensor.quantized().group_index, layer.index)


def test_zero_points_of_zero_borrow_as_gptqmodel_has_it(tmp_path: Path) -> None:
    # GPTQModel's writer takes 0x11111111 from the whole word: 0x…60 becomes 0x…4F, and reading gives 0x…60 again.
    layer = Layer(8, 32, 4, 32, symmetric=False)
    layer.zero[:, 0] = [0, 6, 0, 0, 15, 1, 0, 3]
    word = sum(int(z) << (4 * i) for i, z in enumerate(layer.zero[:, 0]))
    stored = layer.gptq("gptq_v2") | {"qzeros": np.array([[(word - 0x11111111) % 2**32]], np.uint32).view(np.int32)}
    tensor = weight_of(save_packed(tmp_path, {"l": stored}, gptq_config(4, 32, symmetric=False)))
    np.testing.assert_array_equal(tensor.quantized().zero_point, layer.zero)


def test_exceptions_of_gptqmodel_follow_from_the_shapes(tmp_path: Path) -> None:
    layers = {"a": Layer(32, 128, 4, 64, symmetric=True), "b": Layer(32, 128, 8, 32, symmetric=True, seed=1)}
    stored = {name: layer.gptq() for name, layer in layers.items()}
    quantization = gptq_config(4, 64, symmetric=True, dynamic={"+:b": {"bits": 8, "group_size": 32}})
    source = open_source(save_packed(tmp_path, stored, quantization))
    for name, layer in layers.items():
        tensor = source.tensors[f"{name}.weight"]
        assert isinstance(tensor, PackedLinear)
        check(tensor, layer)


def test_configurations_beside_the_weights(tmp_path: Path) -> None:
    layer = Layer(32, 64, 4, 32, symmetric=True)
    folder = save_packed(tmp_path, {"l": layer.gptq()}, {})
    (folder / "config.json").write_text('{"model_type": "llama"}')
    settings = folder / "quantize_config.json"
    settings.write_text(json.dumps({"bits": 4, "group_size": 32, "sym": True, "desc_act": False}))
    check(weight_of(folder), layer)
    source = open_source(folder)
    assert settings.name not in source.files and settings in source.weight_files


def test_biases_that_older_tools_added_are_dropped(tmp_path: Path) -> None:
    stored = {f"0.{n}": Layer(32, 64, 4, 32, symmetric=True).gptq() for n in ("q_proj", "o_proj")}
    biases = {"0.q_proj.bias": np.ones(32, np.float16), "0.o_proj.bias": np.zeros(32, np.float16)}
    source = open_source(save_packed(tmp_path, stored, gptq_config(4, 32, symmetric=True), **biases))
    assert set(source.tensors) == {"0.q_proj.weight", "0.o_proj.weight", "0.q_proj.bias"}


@pytest.mark.parametrize("keys", [("bits", "group_size"), ("w_bit", "q_group_size")])
@pytest.mark.parametrize("block", [-1, 32, 128])
def test_awq(tmp_path: Path, block: int, keys: tuple[str, str]) -> None:
    layer = Layer(24, 128, 4, 128 if block < 0 else block, symmetric=False)
    quantization = {"quant_method": "awq", "version": "gemm", "zero_point": True, keys[0]: 4, keys[1]: block,
                    "modules_to_not_convert": ["visual"]}  # fmt: skip
    folder = save_packed(tmp_path, {"l": layer.awq()}, quantization, **{"visual.l.weight": np.ones((2, 2), np.float16)})
    check(weight_of(folder), layer)
    np.testing.assert_array_equal(open_source(folder).tensors["visual.l.weight"].numpy(), np.ones((2, 2)))


def test_awq_as_its_owners_dequantize_it(tmp_path: Path) -> None:
    """AutoAWQ's order of unpacking: nibbles in place, then the places 0 4 1 5 2 6 3 7 of each eight."""
    rng = np.random.default_rng(5)
    words = {"qweight": (64, 4), "qzeros": (2, 4)}
    stored: dict[str, Any] = {n: rng.integers(-(2**31), 2**31, s).astype(np.int32) for n, s in words.items()}
    stored["scales"] = rng.uniform(1, 2, (2, 32)).astype(np.float16)
    order = torch.arange(32).view(-1, 8)[:, [0, 4, 1, 5, 2, 6, 3, 7]].flatten()

    def integers(part: str) -> torch.Tensor:
        return ((torch.tensor(stored[part])[:, :, None] >> torch.arange(0, 32, 4)) & 15).flatten(1)[:, order]

    zero, scale = (
        t.repeat_interleave(32, dim=0) for t in (integers("qzeros"), torch.tensor(stored["scales"]).double())
    )
    expected = ((integers("qweight") - zero) * scale).T.numpy()
    quantization = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32}
    found = weight_of(save_packed(tmp_path, {"l": stored}, quantization)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_awq_gemv(tmp_path: Path) -> None:
    layer = Layer(16, 128, 4, 32, symmetric=False)
    padded = np.zeros((16, 32), np.int64)
    padded[:, :4] = layer.zero
    scales = np.zeros((16, 32), np.float16)
    scales[:, :4] = layer.scale
    stored = {"qweight": stream(layer.integers, 4), "qzeros": stream(padded, 4), "scales": scales}
    quantization = {"quant_method": "awq", "version": "GEMV", "bits": 4, "group_size": 32}
    check(weight_of(save_packed(tmp_path, {"l": stored}, quantization)), layer)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [None, 32])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors(tmp_path: Path, bits: int, block: int | None, symmetric: bool) -> None:
    """Against what the package itself packs."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    layer = Layer(24, 128, bits, block or 128, symmetric=symmetric)
    arguments = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group" if block else "channel",
                 "group_size": block}  # fmt: skip
    middle = 2 ** (bits - 1)
    state = {"weight": torch.tensor(layer.matrix), "weight_scale": torch.tensor(layer.scale).double(),
             "weight_zero_point": torch.tensor(layer.zero - middle).to(torch.int8)}  # fmt: skip
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments))
    stored = {n: t.numpy() for n, t in PackedQuantizationCompressor.compress(state, scheme).items()}
    stored["weight_scale"] = layer.scale
    groups = {"group_0": {"targets": ["Linear"], "weights": arguments}}
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    tensor = weight_of(save_packed(tmp_path, {"l": stored}, quantization))
    check(tensor, layer)
    assert tensor.symmetric == symmetric


def test_a_scale_that_is_not_finite_is_found(tmp_path: Path) -> None:
    stored = Layer(32, 64, 4, 32, symmetric=True).gptq()
    stored["scales"][1, 3] = np.nan
    source = open_source(save_packed(tmp_path, {"l": stored}, gptq_config(4, 32, symmetric=True)))
    with pytest.raises(InputError, match=r"tensor l\.scales: it holds NaN"):
        check_weights(source)


def changed(part: str, array: Any) -> dict[str, Any]:
    stored: dict[str, Any] = Layer(32, 64, 4, 32, symmetric=True).gptq()
    stored[part] = array if array is None or isinstance(array, np.ndarray) else array(stored[part])
    return {name: value for name, value in stored.items() if value is not None}


HOSTILE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "7 bits": ({}, {"bits": 7}, "bits 7"),
    "bits that are text": ({}, {"bits": "4"}, "bits '4'"),
    "bits of another width": ({}, {"bits": 8}, "l.qweight"),
    "a block of 0": ({}, {"group_size": 0}, "group_size 0"),
    "another block": ({}, {"group_size": 64}, r"l\.scales"),
    "an unknown layout": ({}, {"checkpoint_format": "marlin"}, "marlin"),
    "an unknown method": ({}, {"quant_method": ["gptq"]}, "method"),
    "a group that there is not": (changed("g_idx", lambda a: a + 1), {}, "groups 1 to 2"),
    "a group before the first": (changed("g_idx", lambda a: a - 1), {}, "groups -1 to 0"),
    "a group index of another length": (changed("g_idx", lambda a: a[:-1]), {}, r"l\.qweight"),
    "integers of a wrong shape": (changed("qweight", lambda a: a[:-1]), {}, r"l\.qweight"),
    "integers without columns": (changed("qweight", lambda a: a[:, :0]), {}, r"l\.qweight"),
    "integers that are no matrix": (changed("qweight", lambda a: a.ravel()), {}, r"l\.qweight"),
    "integers in floats": (changed("qweight", lambda a: a.astype(np.float32)), {}, "float32"),
    "scales in integers": (changed("scales", lambda a: a.astype(np.int32)), {}, r"l\.scales"),
    "scales of a wrong shape": (changed("scales", lambda a: a[:, :-1]), {}, r"l\.scales"),
    "no scales": (changed("scales", None), {}, r"l\.scales: the layer is quantized, but"),
    "zero points of a wrong shape": (changed("qzeros", lambda a: a[:, :-1]), {}, r"l\.qzeros"),
    "zero points that are not in the middle": (changed("qzeros", lambda a: a + 1), {}, "not all 8"),
    "no packed layer": ({"weight": np.ones((2, 2), np.float32)}, {}, "no tensor is named"),
    "a weight in floats too": ({**changed("g_idx", None), "weight": np.ones((2, 2), np.float32)}, {}, "in floats too"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_does_not_fit_is_named(tmp_path: Path, case: str) -> None:
    stored, quantization, message = HOSTILE[case]
    stored = stored or changed("g_idx", lambda a: a)
    folder = save_packed(tmp_path, {"l": stored}, {**gptq_config(4, 32, symmetric=True), **quantization})
    with pytest.raises(InputError, match=message):
        weight_of(folder).quantized()
