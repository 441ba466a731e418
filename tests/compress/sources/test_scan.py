from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pocketport.compress.checkpoint import Checkpoint, check_finite
from pocketport.compress.sources.scan import check_weights
from pocketport.compress.sources.source import Source
from pocketport.errors import InputError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_found(tmp_path: Path, dtype: torch.dtype, bad: float) -> None:
    good = torch.linspace(-3e4, 3e4, 1003).to(dtype)  # the widest finite range of float16
    save_file({"good": good, "bad": torch.cat([good, torch.tensor([bad], dtype=dtype)])}, tmp_path / "m.safetensors")
    checkpoint = Checkpoint(tmp_path / "m.safetensors")
    check_finite(checkpoint["good"])
    source = Source(tmp_path, {}, checkpoint, {}, tuple(checkpoint.files))
    with pytest.raises(InputError, match="tensor bad: it holds NaN or infinity"):
        check_weights(source)


def test_extreme_finite_numbers_pass(tmp_path: Path) -> None:
    arrays = {
        name: torch.from_numpy(np.array([f.max, f.min, f.tiny, 0.0], np.float32)).to(getattr(torch, name))
        for name, f in (("float32", np.finfo(np.float32)), ("bfloat16", ml_dtypes.finfo(ml_dtypes.bfloat16)))
    }
    save_file(arrays, tmp_path / "m.safetensors")
    for tensor in Checkpoint(tmp_path / "m.safetensors").values():
        check_finite(tensor)
