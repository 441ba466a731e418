"""Devices that a user measured."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketport.errors import InputError, UsageError
from pocketport.profiles.device import load_device
from pocketport.profiles.prediction.features import GraphFeatures, Kind, OpFeatures
from pocketport.profiles.prediction.local import Anchor, fit_local, fitted_devices, read_anchors, save_local
from pocketport.profiles.prediction.predictors import GraphPredictor, ModelFeatures


def graph(size: int) -> GraphFeatures:
    shape = (1, 64, size, size)
    conv = OpFeatures("Conv", Kind.CONV, 64 * 64 * 9 * size * size, 64 * 64 * 9, (shape,), shape, 9)
    add = OpFeatures("Add", Kind.ELEMENTWISE, 0, 0, (shape, shape), shape)
    return GraphFeatures((conv, add) * (size // 8), 3 * size * size)


def test_a_phone_three_times_slower_than_a_measured_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETPORT_DEVICES", str(tmp_path))
    s24 = load_device("qualcomm/sm8650")
    assert s24 is not None
    sizes = {Path(f"{n}.onnx"): n for n in (16, 32, 48, 64, 96, 128)}
    times = {}
    for path, size in sizes.items():
        known = GraphPredictor().predict(ModelFeatures(graph(size)), s24, "float", "qnn_dlc")
        assert known is not None
        times[path] = 3 * known.ms
    anchors = [Anchor(path, "float", times[path]) for path in list(sizes)[:5]]
    save_local("My Phone", fit_local("My Phone", anchors, lambda path: graph(sizes[path])))
    mine = fitted_devices()["my-phone"]
    left_out = Path("128.onnx")
    found = GraphPredictor(local=fitted_devices()).predict(ModelFeatures(graph(128)), mine.profile, "float", "qnn_dlc")
    assert found is not None
    assert found.ms == pytest.approx(times[left_out], rel=0.15)
    assert found.low < times[left_out] < found.high
    assert (
        GraphPredictor(local=fitted_devices()).predict(ModelFeatures(graph(128)), mine.profile, "w8a8", "qnn_dlc")
        is None
    )


def test_four_anchors_are_too_few() -> None:
    anchors = [Anchor(Path(f"{n}.onnx"), "float", 1.0) for n in range(4)]
    with pytest.raises(UsageError, match="5 models"):
        fit_local("x", anchors, lambda _: graph(16))


@given(
    st.lists(
        st.tuples(st.sampled_from(["a.onnx", "b/c.onnx"]), st.sampled_from(["float", "w8a8"]), st.floats(1e-3, 1e5)),
        max_size=6,
    )
)
def test_anchors_survive_csv(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, float]]) -> None:
    path = tmp_path_factory.mktemp("anchors") / "a.csv"
    path.write_text("model,precision,ms\n" + "".join(f"{m},{p},{t!r}\n" for m, p, t in rows))
    assert read_anchors(path) == [Anchor(path.parent / m, p, t) for m, p, t in rows]


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("anchors") / "a.csv"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert all(np.isfinite(a.ms) for a in read_anchors(path))
    except InputError as error:
        assert "a.csv" in error.where


@pytest.mark.parametrize(
    ("text", "said"), [("model,ms\na,1\n", "precision"), ("model,precision,ms\na,float,-1\n", "line 2"), ("model,precision,ms\na,w3,1\n", "w8a16")]
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_anchors(tmp_path / "m.csv")


def test_a_damaged_device_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETPORT_DEVICES", str(tmp_path))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match=r"x\.json"):
        fitted_devices()
