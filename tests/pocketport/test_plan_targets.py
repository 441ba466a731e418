"""Planning for targets looks at shapes: a model that does not fit into memory can be planned."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pocketport.compress.checkpoint import StoredTensor
from pocketport.compress.synthesis.write import synthesize
from pocketport.errors import UsageError
from pocketport.request import Request
from pocketport.stages.calibrate import check_memory
from pocketport.stages.quantize import plan_targets

TARGETS = ["qualcomm/sm8650", "apple/a17-pro", "mediatek/mt6989", "x86", "example/one"]


def test_no_large_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthesize("minicpm-llama3-v-2.5", tmp_path / "model", scale=0.0625, layers=2)
    read: list[int] = []
    reading = StoredTensor._read

    def noted(self: StoredTensor) -> object:
        read.append(self.stored_nbytes)
        return reading(self)

    monkeypatch.setattr(StoredTensor, "_read", noted)
    plans, findings, estimates = plan_targets(Request(source=str(tmp_path / "model"), targets=TARGETS))
    assert plans.keys() == findings.keys() == set(TARGETS)
    assert max(read) <= 4096
    for plan in plans.values():
        assert sum(c.bytes_after for c in plan) < 0.5 * sum(c.bytes_before for c in plan)
    assert not estimates  # nothing is rounded on samples
    (tmp_path / "mine.yaml").write_text("rules: [{algorithm: adaround}]")
    rounded = Request(source=str(tmp_path / "model"), targets=["x86"], recipe=str(tmp_path / "mine.yaml"))
    estimated = plan_targets(rounded)[2]["x86"]
    assert estimated.seconds > 1 and estimated.peak_bytes > 500e6 and max(read) <= 4096
    check_memory(plans)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1 << 20))
    with pytest.raises(UsageError, match=r"0\.0 GB of memory are free"):
        check_memory(plans)
