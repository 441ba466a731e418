"""Settings reach the engines, and what does not fit is refused."""

from pathlib import Path

import onnx
import onnxruntime
import pytest

from pocketport.errors import InputError
from pocketport.targets import conformance_graphs as graphs
from pocketport.targets.x86.candidates import changes, first_round, frugal, together
from pocketport.targets.x86.engines import compile_model, open_engine, session_options
from pocketport.targets.x86.measure import arbitrary_feeds
from pocketport.targets.x86.settings import (
    ONNX,
    OPENVINO_IR,
    OnnxRuntimeSettings,
    OpenVinoSettings,
    engine_defaults,
    own_defaults,
    parse_settings,
)
from pocketport.workers import processors


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "cnn.onnx"
    onnx.save(graphs.convolutional().model, path)
    return path


def test_nothing_said_is_the_engine_as_it_comes(model: Path) -> None:
    ours, theirs = session_options(OnnxRuntimeSettings()), onnxruntime.SessionOptions()
    for name in (
        "intra_op_num_threads",
        "graph_optimization_level",
        "enable_cpu_mem_arena",
        "enable_mem_pattern",
        "execution_mode",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    plain, made = core.compile_model(model, "CPU"), compile_model(model, OpenVinoSettings())
    for name in (
        "INFERENCE_NUM_THREADS",
        "ENABLE_CPU_PINNING",
        "EXECUTION_MODE_HINT",
        "PERFORMANCE_HINT",
        "INFERENCE_PRECISION_HINT",
    ):
        assert made.get_property(name) == plain.get_property(name), name


def test_settings_reach_onnxruntime() -> None:
    settings = OnnxRuntimeSettings(
        threads=2, pinned=True, spinning=False, optimization="basic", arena=False, prepacking=False
    )
    options = session_options(settings)
    assert options.intra_op_num_threads == 2 and not options.enable_cpu_mem_arena
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    expected = ";".join(str(p + 1) for p in processors()[1:2])
    assert options.get_session_config_entry("session.intra_op_thread_affinities") == expected


def test_settings_reach_openvino(model: Path) -> None:
    pytest.importorskip("openvino")
    made = compile_model(model, OpenVinoSettings(threads=1, pinned=False, mode="ACCURACY", precision="f32"))
    assert made.get_property("INFERENCE_NUM_THREADS") == 1
    assert made.get_property("ENABLE_CPU_PINNING") is False
    assert "ACCURACY" in str(made.get_property("EXECUTION_MODE_HINT"))


@pytest.mark.parametrize("kind", [ONNX, OPENVINO_IR])
def test_every_candidate_opens_and_computes_the_same(model: Path, kind: str) -> None:
    if kind == OPENVINO_IR:
        pytest.importorskip("openvino")
    feeds = arbitrary_feeds(model)
    expected = open_engine(ONNX, model, OnnxRuntimeSettings(optimization="disabled")).run(feeds)
    base = own_defaults(kind)
    candidates = [*first_round([kind]), *changes(base, ["BF16"])]
    candidates += [variant for settings in candidates for variant in frugal(settings)]
    assert len(set(candidates)) >= 6
    for settings in dict.fromkeys(candidates):
        executor = open_engine(kind, model, settings)
        for name, array in executor.run(feeds).items():
            # PERFORMANCE takes bfloat16 where the processor has it.
            coarse = getattr(settings, "precision", None) == "bf16" or getattr(settings, "mode", None) == "PERFORMANCE"
            tolerance = 0.1 if coarse else 1e-4
            assert abs(array - expected[name]).max() <= tolerance * abs(expected[name]).max(), settings
        executor.close()


def test_changes_that_paid_are_joined() -> None:
    base = OnnxRuntimeSettings(threads=2)
    joined = together(
        base, [base.model_copy(update={"pinned": True}), base.model_copy(update={"optimization": "basic"})]
    )
    assert joined == OnnxRuntimeSettings(threads=2, pinned=True, optimization="basic")
    assert all(changed != base for changed in changes(base))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"engine": "tvm"}, "onnxruntime"),
        ({"engine": "onnxruntime", "thread": 2}, "thread"),
        ({"engine": "openvino", "mode": "fast"}, "mode"),
        ({"engine": "openvino", "threads": 0}, "threads"),
        ({"engine": "onnxruntime", "threads": 1000}, "1000 threads"),
        ({}, "engine"),
    ],
)
def test_what_does_not_fit_is_refused(entries: dict[str, str | int], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse_settings(entries, "x86.json")
    assert caught.value.where == "x86.json"


@pytest.mark.parametrize("kind", [ONNX, OPENVINO_IR])
def test_settings_survive_a_document(kind: str) -> None:
    for settings in (engine_defaults(kind), own_defaults(kind), *changes(own_defaults(kind))):
        assert parse_settings(settings.model_dump(), "here") == settings
