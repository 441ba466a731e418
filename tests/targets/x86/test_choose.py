"""Choosing an engine: what errs on any of several runs is left out."""

from pathlib import Path

import numpy as np
import pytest

from pocketport.targets.x86 import choose
from pocketport.targets.x86.settings import ONNX, OPENVINO_IR


class Engine:
    """Twice its input; from run `wrong` on something else."""

    def __init__(self, wrong: int) -> None:
        self._wrong, self._runs = wrong, 0

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._runs += 1
        return {"y": feeds["x"] * (2.0 if self._runs < self._wrong else -1.0)}

    def close(self) -> None:
        pass


@pytest.mark.parametrize("wrong", [1, 2, choose.RUNS])
def test_an_engine_that_errs_only_later_is_left_out(monkeypatch: pytest.MonkeyPatch, wrong: int) -> None:
    never = 1 << 20
    feeds = {"x": np.linspace(-1, 1, 64, dtype=np.float32)}
    monkeypatch.setattr(choose, "arbitrary_feeds", lambda _: feeds)
    monkeypatch.setattr(choose, "shaken_outputs", lambda *_: {"y": feeds["x"] * 2.0})
    monkeypatch.setattr(choose, "open_engine", lambda kind, *_: Engine(wrong if kind == OPENVINO_IR else never))
    trial = choose.try_engines(Path("pivot"), {ONNX: Path("a"), OPENVINO_IR: Path("b")})
    assert trial.choice == ONNX
    assert trial.fidelity_db[OPENVINO_IR] < trial.bound_db <= trial.fidelity_db[ONNX]
