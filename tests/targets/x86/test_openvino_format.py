from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import pytest
from decoder_models import save_decoder
from greedy_reference import greedy, prompt, save_tokenizer
from numpy.typing import NDArray
from written_formats import Written, written

from pocketport.errors import InputError

NEW = 24
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}


def compiled(done: Written) -> Any:
    return openvino.Core().compile_model(done.directory / "openvino_model.xml", "CPU", EXACT)


def logits(model: Any, tokens: Sequence[int]) -> NDArray[np.float32]:
    feeds = {
        "input_ids": np.array([tokens]), "attention_mask": np.ones((1, len(tokens)), np.int64),
        "position_ids": np.arange(len(tokens))[None], "beam_idx": np.zeros(1, np.int32),
    }  # fmt: skip
    return np.array(model.create_infer_request().infer(feeds)["logits"][0])


def generated(done: Written, tokens: Sequence[int], backend: str) -> list[int]:
    pipeline = openvino_genai.LLMPipeline(str(done.directory), "CPU", ATTENTION_BACKEND=backend, **EXACT)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = NEW
    config.ignore_eos, config.do_sample = True, False
    found: list[int] = pipeline.generate(openvino.Tensor(np.array([tokens])), config).tokens[0]
    return found


@pytest.mark.parametrize("name", ["llama3-rope", "llama-longrope", "mistral", "qwen2", "qwen3", "gemma3_text"])
def test_it_generates_what_transformers_does(tmp_path: Path, name: str) -> None:
    folder, tokens = save_decoder(tmp_path / "float", name), prompt(40)
    save_tokenizer(folder)
    done = written(tmp_path, folder, "openvino", {"algorithm": "rtn", "scheme": "w4b32fp16"})
    expected, over_prompt = greedy(folder, done, tokens, NEW)
    np.testing.assert_allclose(logits(compiled(done), tokens), over_prompt, atol=2e-5)
    for backend in ("SDPA", "PA"):  # the cache as state, and paged: another graph, which OpenVINO makes of ours
        assert generated(done, tokens, backend) == expected, backend


def test_the_plugin_keeps_the_weights_packed_and_fuses_the_rest(tmp_path: Path) -> None:
    done = written(tmp_path, save_decoder(tmp_path / "float", "qwen3"), "openvino", {"algorithm": "rtn"})
    nodes = [node.get_rt_info()["layerType"].astype(str) for node in compiled(done).get_runtime_model().get_ops()]
    found = {kind: nodes.count(kind) for kind in ("FullyConnected", "RMS", "RoPE", "ScaledDotProductAttention")}
    assert found == {"FullyConnected": 15, "RMS": 9, "RoPE": 4, "ScaledDotProductAttention": 2}
    weights = sum(entry.bytes_after for entry in done.plans.values() if entry.quantized)
    assert (done.directory / "openvino_model.bin").stat().st_size < 1.2 * weights + 8192


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "float", "llama")
    save_tokenizer(folder)
    done = written(tmp_path, folder, "openvino")
    tokenizer = openvino_genai.Tokenizer(str(done.directory))
    text = "GO-4@2"
    ids = tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist()
    assert len(ids) == len(text) and tokenizer.decode(ids) == text


def test_layers_without_softmax_attention_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="linear_attention"):
        written(tmp_path, save_decoder(tmp_path / "float", "qwen3_5"), "openvino")
