"""The whole search on a small graph, in its processes."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from pocketport.errors import UsageError
from pocketport.targets import conformance_graphs as graphs
from pocketport.targets.configuration import Configuration, load_configuration
from pocketport.targets.contract import Artifact, Target, TuneJob
from pocketport.targets.x86 import backend
from pocketport.targets.x86.engines import REFERENCE, open_engine
from pocketport.targets.x86.measure import arbitrary_feeds
from pocketport.targets.x86.settings import ONNX, OPENVINO_IR, own_defaults
from pocketport.targets.x86.trial import op_times

GENERIC = Target("x86", "generic")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "transformer.onnx"
    onnx.save(graphs.transformer().model, path)
    return path


@pytest.fixture(scope="module")
def found(model: Path) -> Configuration:
    """A search in which OpenVINO is given another model: whatever its speed, it must not win."""
    pytest.importorskip("openvino")
    wrong = onnx.load(model)
    tensor = max(wrong.graph.initializer, key=lambda t: len(t.raw_data))
    tensor.raw_data = (-onnx.numpy_helper.to_array(tensor)).tobytes()
    onnx.save(wrong, model.with_name("wrong.onnx"))
    done: list[str] = []
    job = TuneJob("main", {ONNX: model, OPENVINO_IR: model.with_name("wrong.onnx")}, model)
    configuration = backend.tune([job], GENERIC, 6.0, done.append)
    assert done == ["main"]
    return configuration


def test_who_computes_something_else_loses(found: Configuration) -> None:
    main = found.components["main"]
    assert main.kind == ONNX and main.settings["engine"] == "onnxruntime"
    (wrong,) = [c for c in main.contenders if c.settings["engine"] == "openvino"]
    assert wrong.fidelity_db < main.least_db <= main.contenders[0].fidelity_db
    assert all("something else" in r.why for r in main.rejected if r.settings["engine"] == "openvino")


def test_everything_is_measured_against_the_chosen_one(found: Configuration) -> None:
    main = found.components["main"]
    chosen, *others = main.contenders
    assert chosen.settings == main.settings and chosen.gain is None
    for name in ("onnxruntime as it comes", "openvino as it comes", "Pocketport's defaults"):
        assert sum(name in c.name for c in main.contenders) == 1, name
    assert main.turns >= 6
    for other in others:
        assert other.gain is not None and 0 < other.gain.low <= other.gain.value <= other.gain.high
    for contender in main.contenders:
        assert contender.cold_ms > contender.ms > 0 and contender.mad_ms >= 0
        assert contender.peak_bytes is not None and contender.peak_bytes > 20e6
    assert main.ops == sorted(main.ops, key=lambda op: -op.ms) and main.ops[0].ms > 0


@pytest.mark.parametrize("kind", [ONNX, OPENVINO_IR])
def test_every_op_has_its_time(model: Path, kind: str) -> None:
    if kind == OPENVINO_IR:
        pytest.importorskip("openvino")
    found = {
        op: (count, ms) for op, count, ms in op_times(kind, model, own_defaults(kind), None, arbitrary_feeds(model))
    }
    graph = onnx.load(model).graph
    products = [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]
    weights = {tensor.name for tensor in graph.initializer}
    layers = sum(node.input[1] in weights for node in products)  # the others are attention's, which may be fused
    counted = sum(count for op, (count, _) in found.items() if "MatMul" in op or op in ("Gemm", "FullyConnected"))
    assert 0 < layers <= counted <= len(products)
    assert all(ms >= 0 for _, ms in found.values()) and sum(ms for _, ms in found.values()) > 0


def test_the_runtime_takes_the_file(found: Configuration, model: Path, tmp_path: Path) -> None:
    found.save(tmp_path / "x86.json")
    loaded = load_configuration(tmp_path / "x86.json")
    assert loaded == found
    assert backend.differences(loaded) == ()
    artifact = Artifact(model, ONNX, 0, loaded.components["main"].sha256)
    feeds = arbitrary_feeds(model)
    results = backend.execute_with(artifact, GENERIC, loaded.components["main"].settings).run(feeds)
    for name, expected in open_engine(ONNX, model, REFERENCE).run(feeds).items():
        np.testing.assert_allclose(results[name], expected, rtol=1e-3, atol=1e-4)


def test_another_machine_is_told(found: Configuration) -> None:
    elsewhere = found.model_copy(update={"processor": "Some CPU", "engines": {"onnxruntime": "1.0"}})
    assert [d.partition(":")[0] for d in backend.differences(elsewhere)] == ["processor", "onnxruntime"]


def test_no_time_is_an_error(model: Path) -> None:
    with pytest.raises(UsageError, match="too short"):
        backend.tune([TuneJob("main", {ONNX: model}, model)], GENERIC, 0.1, lambda name: None)
