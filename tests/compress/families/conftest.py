import json
import shutil
from pathlib import Path

import pytest
import torch
from minicpmv_series import write_series
from safetensors.torch import save_file

from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.modeling import MiniCPMV
from pocketport.compress.reference import reference_dir

TINY = {
    "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "query_num": 8,
    "vision_config": {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 336, "patch_size": 14,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By version: a small random checkpoint in the published layout."""
    return write_series(tmp_path_factory.mktemp("series"))


@pytest.fixture
def tiny_minicpmv(tmp_path: Path) -> Path:
    """A small random MiniCPM-V with the reference's tokenizer and slicing."""
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json"):
        shutil.copyfile(reference_dir() / name, tmp_path / name)
    config = {**json.loads((reference_dir() / "config.json").read_text()), **TINY}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"max_new_tokens": 6}))
    torch.manual_seed(0)
    model = MiniCPMV(MiniCPMVConfig.load(tmp_path))
    with torch.no_grad():  # norms and biases start as ones and zeros: make each of them matter
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return tmp_path
