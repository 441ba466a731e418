import json
from pathlib import Path

import numpy as np
import pytest
from decoder_models import save_decoder
from safetensors.numpy import save_file

from pocketport.compress import ingest as ingest_module
from pocketport.compress.families.registry import Lengths
from pocketport.compress.ingest import ingest, leave, weight_bytes
from pocketport.compress.parity import check_parity
from pocketport.errors import InputError, UsageError
from tests.pocketport.conftest import perceptron


def test_the_embedded_reference() -> None:
    bundle = ingest("reference")
    assert (bundle.name, bundle.family) == ("reference", "minicpmv")
    assert list(bundle.components) == ["vision", "connector", "embed", "prefill", "decode"]
    assert bundle.sha256 == ingest("reference").sha256
    report = check_parity(bundle, "reference")
    assert min(figure.sqnr_db for figure in report.figures) > 90


def test_a_saved_bundle_is_a_source(tmp_path: Path) -> None:
    bundle = ingest("reference")
    bundle.save(tmp_path / "bundle")
    again = ingest(tmp_path / "bundle")
    assert (again.name, again.sha256, again.config) == (bundle.name, bundle.sha256, bundle.config)


def test_sources_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such model"):
        ingest(tmp_path / "absent")
    with pytest.raises(UsageError, match="only ONNX files take shapes"):
        ingest("reference", shapes={"x": [1]})


@pytest.mark.parametrize(
    "config", [None, "{", "[]", json.dumps({"hidden_size": 3}), json.dumps({"model_type": "gpt9"})]
)
def test_folders_that_are_no_known_model(tmp_path: Path, config: str | None) -> None:
    save_file({"w": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=r"config\.json"):
        ingest(tmp_path)


def test_a_large_checkpoint_is_linked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "LINKED_BYTES", 1000)
    lengths = Lengths(prompt=64, cache=80)
    checkpoint, folder = save_decoder(tmp_path / "llama", "llama"), tmp_path / "left"
    bundle = ingest(checkpoint, lengths=lengths)
    leave(bundle, checkpoint, folder, lengths)
    assert [p.name for p in folder.iterdir()] == ["checkpoint.json"]
    again = ingest(folder)
    assert (again.name, again.sha256, again.config) == (bundle.name, bundle.sha256, bundle.config)
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    with pytest.raises(InputError, match="changed since"):
        ingest(folder)
    (folder / "checkpoint.json").write_text("{}")
    with pytest.raises(InputError, match="not a link"):
        ingest(folder)


def test_what_is_not_a_checkpoint_is_copied_whatever_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "LINKED_BYTES", 0)
    path = perceptron(tmp_path / "perceptron.onnx")
    leave(ingest(path), path, tmp_path / "left")
    assert (tmp_path / "left" / "bundle.json").is_file()
    assert weight_bytes(ingest(tmp_path / "left")) == weight_bytes(ingest(path)) == 4 * (32 * 16 + 32 + 4 * 32 + 4)
