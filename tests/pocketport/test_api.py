"""The public names, and `port` as a function."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pocketport
from pocketport.errors import UsageError


def test_every_public_name_is_there_and_nothing_else() -> None:
    assert all(getattr(pocketport, name) is not None for name in pocketport.__all__)
    assert set(pocketport.__all__) <= set(dir(pocketport))
    with pytest.raises(AttributeError, match="no attribute 'prot'"):
        _ = pocketport.prot


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, pocketport; print(sorted({'torch', 'onnx', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_a_misspelt_option_names_the_nearest(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        pocketport.port(model, ["x86"], tmp_path / "out", calibration_sample=3)
    assert "calibration_samples" in caught.value.fix
    with pytest.raises(UsageError) as caught:
        pocketport.port(model, ["x86"], tmp_path / "out", task_samples=0)
    assert "task_samples" in caught.value.where
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_program_of_torch_export_is_ported(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)).eval()
    program = torch.export.export(module, (torch.randn(1, 16),))
    samples = np.random.default_rng(0).normal(size=(16, 1, 16)).astype(np.float32)
    np.savez(tmp_path / "data.npz", **{program.graph_signature.user_inputs[0]: samples})
    out, cache = tmp_path / "out", tmp_path / "cache"
    document = pocketport.port(program, ["x86"], out, cache=cache, data=str(tmp_path / "data.npz"))
    assert [target.status for target in document.targets] == ["ok"]
    assert (out / "program.pt2").is_file()
