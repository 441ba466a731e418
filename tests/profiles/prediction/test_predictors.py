"""Predictors: who speaks, for which device, with what said about it."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pocketport.errors import UsageError
from pocketport.profiles.device import DeviceProfile, load_device
from pocketport.profiles.prediction.estimates import ESTIMATE, OLDER_ESTIMATE, UNCOSTED
from pocketport.profiles.prediction.features import GraphFeatures, Kind, OpFeatures
from pocketport.profiles.prediction.parameters import parameters
from pocketport.profiles.prediction.predictors import (
    CompilerPredictor,
    GraphPredictor,
    ModelFeatures,
    Prediction,
    combined,
    precision_of,
)

FEATURES = Path(__file__).resolve().parents[3] / "benchmarks" / "data" / "latency_features.json.gz"
CONV = OpFeatures("Conv", Kind.CONV, 64 * 64 * 56 * 56 * 9, 64 * 64 * 9, ((1, 64, 56, 56),), (1, 64, 56, 56), 9)
PLAIN = ModelFeatures(GraphFeatures((CONV,) * 20, 150_528))


def device(target: str) -> DeviceProfile:
    found = load_device(target)
    assert found is not None
    return found


def predicted(
    target: str, features: ModelFeatures = PLAIN, precision: str = "float", runtime: str = "qnn_dlc"
) -> Prediction:
    found = GraphPredictor().predict(features, device(target), precision, runtime)
    assert found is not None
    return found


@pytest.mark.parametrize("precision", ["float", "w8a8", "w8a16", "w4a16"])
def test_a_measured_device(precision: str) -> None:
    found = predicted("qualcomm/sm8650", precision=precision)
    assert 0 < found.low < found.ms < found.high
    assert found.predictor == "graph"
    assert "median error" in found.evidence


def test_unsteady_measurements_make_a_wide_interval() -> None:
    unsteady, steady = predicted("qualcomm/qcs6490", precision="w8a8"), predicted("qualcomm/sa8295p", precision="w8a8")
    assert "moved by up to 2.4 times" in unsteady.warnings[0]
    assert unsteady.high / unsteady.low > 2 * steady.high / steady.low
    assert unsteady.ms > steady.ms


def test_a_plain_pool_is_slow_in_integers_and_told() -> None:
    pool = OpFeatures("AveragePool", Kind.PLAIN_POOL, 0, 0, ((1, 64, 80, 80),), (1, 64, 79, 79), 4)
    fast = replace(pool, kind=Kind.POOL)
    with_plain, without = (ModelFeatures(GraphFeatures((CONV, op), 150_528)) for op in (pool, fast))
    for precision in ("w8a8", "w8a16"):
        slow = predicted("qualcomm/sm8650", with_plain, precision)
        assert slow.ms > 10 * predicted("qualcomm/sm8650", without, precision).ms
        assert "no fast integer kernel" in slow.warnings[-1]
        estimates = {ESTIMATE: 300.0}
        informed = [
            CompilerPredictor().predict(
                replace(f, estimates=estimates), device("qualcomm/sm8650"), precision, "qnn_dlc"
            )
            for f in (with_plain, without)
        ]
        assert informed[0] is not None and informed[1] is not None
        assert informed[0].ms > 10 * informed[1].ms
    assert predicted("qualcomm/sm8650", with_plain).ms == predicted("qualcomm/sm8650", without).ms


def test_ops_without_a_cost_make_a_wider_interval() -> None:
    known, blind = (
        CompilerPredictor().predict(replace(PLAIN, estimates=e), device("qualcomm/sm8650"), "float", "qnn_dlc")
        for e in ({ESTIMATE: 300.0}, {ESTIMATE: 300.0, UNCOSTED: 5.0})
    )
    assert known is not None and blind is not None
    assert blind.ms == known.ms and blind.high > known.high
    assert "no cost for 5 of its ops" in blind.warnings[-1]


def test_an_older_chips_estimate_counts_as_much() -> None:
    both, same = (
        CompilerPredictor().predict(replace(PLAIN, estimates=e), device("qualcomm/sm8650"), "w8a16", "qnn_dlc")
        for e in ({ESTIMATE: 300.0, OLDER_ESTIMATE: 1200.0}, {ESTIMATE: 600.0})
    )
    assert both is not None and same is not None
    assert both.ms == pytest.approx(same.ms)


def test_a_chip_without_the_simulated_units_is_left_to_the_graph() -> None:
    features = replace(PLAIN, estimates={ESTIMATE: 300.0})
    assert CompilerPredictor().predict(features, device("qualcomm/qcm6690"), "w8a8", "qnn_dlc") is None
    assert CompilerPredictor().predict(features, device("qualcomm/sa7255p"), "w8a8", "qnn_dlc") is not None


def test_a_device_between_measured_ones_lies_between_them_and_says_so() -> None:
    older, middle, newer = (predicted(f"qualcomm/{s}") for s in ("sm8650", "sm8750", "sm8850"))
    assert newer.ms < middle.ms < older.ms
    assert "not measured" in middle.warnings[0]
    assert middle.high / middle.low > older.high / older.low


def test_nothing_is_said_of_a_chip_that_nothing_is_known_of() -> None:
    unknown = DeviceProfile(target="acme/x1", name="X1", npu="?", kind="phone")
    assert GraphPredictor().predict(PLAIN, unknown, "float", "qnn_dlc") is None


def test_neural_engine_has_no_rate_for_int16() -> None:
    assert GraphPredictor().predict(PLAIN, device("apple/a17-pro"), "w8a16", "qnn_dlc") is None


@pytest.mark.parametrize("precision", ["float", "w8a16", "w4a16"])
def test_mediatek_says_that_nothing_was_measured(precision: str) -> None:
    found = predicted("mediatek/mt6989", precision=precision)
    assert "no device measurements" in found.warnings[0]
    assert found.high / found.low > 10


def test_unfamiliar_ops_widen_the_interval_and_are_named() -> None:
    strange = OpFeatures("GridSample", Kind.OTHER, 0, 0, ((1, 256, 100, 100),), (1, 256, 100, 100))
    plain, odd = (
        predicted("qualcomm/sm8650"),
        predicted("qualcomm/sm8650", ModelFeatures(GraphFeatures((CONV, strange), 1000))),
    )
    assert "GridSample" in odd.warnings[0]
    assert odd.high / odd.low > plain.high / plain.low


def test_a_linear_layer_is_familiar_under_either_name() -> None:
    shape = ((1, 4096),)
    names = [OpFeatures(op, Kind.LINEAR, 4096 * 4096, 4096 * 4096, shape, (1, 4096)) for op in ("Gemm", "MatMul")]
    first, second = (predicted("qualcomm/sm8650", ModelFeatures(GraphFeatures((CONV, op), 150_528))) for op in names)
    assert first == second and not first.warnings


@pytest.mark.parametrize("runtime", ["qnn_context_binary", "onnx", "tflite"])
def test_other_runtimes_follow_their_line(runtime: str) -> None:
    line = parameters().runtimes[runtime]["float"]
    base, other = predicted("qualcomm/sm8650"), predicted("qualcomm/sm8650", runtime=runtime)
    assert other.ms == pytest.approx(line.scale * base.ms + line.offset_ms)
    assert other.high / other.low >= base.high / base.low


def test_names_that_do_not_exist() -> None:
    with pytest.raises(UsageError, match="w8a16"):
        predicted("qualcomm/sm8650", precision="w9")
    with pytest.raises(UsageError, match="qnn_dlc"):
        predicted("qualcomm/sm8650", runtime="snpe")


def test_the_compilers_estimate_speaks_where_it_is() -> None:
    assert CompilerPredictor().predict(PLAIN, device("qualcomm/sm8650"), "float", "qnn_dlc") is None
    features = replace(PLAIN, estimates={ESTIMATE: 2870.0})
    slow = CompilerPredictor().predict(
        replace(PLAIN, estimates={ESTIMATE: 5740.0}), device("qualcomm/sm8650"), "float", "qnn_dlc"
    )
    found = CompilerPredictor().predict(features, device("qualcomm/sm8650"), "float", "qnn_dlc")
    assert found is not None and slow is not None
    assert found.predictor == "compiler"
    share = 1 - parameters().compiler["float"].graph_share
    assert 1.5**share < slow.ms / found.ms < 2.05**share


def test_an_estimate_that_the_compiler_bounds_loosely_is_none() -> None:
    bounds = {"sa8255p_us_low": 6595.0, "sa8255p_us_high": 61512.0}
    loose = replace(PLAIN, estimates={ESTIMATE: 19281.0, **bounds})
    assert CompilerPredictor().predict(loose, device("qualcomm/sm8650"), "float", "qnn_dlc") is None
    bounds["sa8255p_us_high"] = 20000.0
    tight = replace(PLAIN, estimates={ESTIMATE: 19281.0, **bounds})
    assert CompilerPredictor().predict(tight, device("qualcomm/sm8650"), "float", "qnn_dlc") is not None


def test_the_graph_has_its_share_in_what_the_compiler_says() -> None:
    """Geometric mean of both, between them whatever the share."""
    features, known = replace(PLAIN, estimates={ESTIMATE: 9000.0}), parameters()

    def ms(share: float) -> float:
        model = known.compiler["float"].model_copy(update={"graph_share": share})
        fitted = known.model_copy(update={"compiler": {"float": model}})
        found = CompilerPredictor(fitted).predict(features, device("qualcomm/sm8650"), "float", "qnn_dlc")
        assert found is not None
        assert found.low < found.ms < found.high
        return found.ms

    graph = predicted("qualcomm/sm8650").ms
    assert ms(1.0) == pytest.approx(graph)
    assert ms(0.0) > 2 * graph
    assert ms(0.25) == pytest.approx(ms(0.0) ** 0.75 * graph**0.25)


def test_resnet50_as_measured_on_a_galaxy_s24() -> None:
    """2870 µs by the compiler's simulation; Qualcomm AI Hub Models 0.65.0 measured 1.617 ms (float)."""
    graph = GraphFeatures.from_json(json.loads(gzip.decompress(FEATURES.read_bytes()))["resnet50"], "resnet50")
    found = CompilerPredictor().predict(
        ModelFeatures(graph, estimates={ESTIMATE: 2870.0}), device("qualcomm/sm8650"), "float", "qnn_dlc"
    )
    assert found is not None
    assert found.low < 1.617 < found.high


def test_the_compiler_speaks_where_it_can_and_warnings_stay() -> None:
    graph = Prediction(2.0, 1.0, 4.0, "graph", "g", ("odd op",))
    informed = Prediction(3.0, 1.0, 5.0, "compiler", "c")
    assert combined(graph, informed) == replace(informed, warnings=("odd op",))
    assert combined(graph, None) == graph


@pytest.mark.parametrize(
    ("scheme", "precision"), [("float", "float"), ("w8a8", "w8a8"), ("w8a16", "w8a16"), ("w4b32a16", "w4a16"), ("w4cfp16", "float"), ("w4a8", "w8a8")]
)  # fmt: skip
def test_schemes_have_a_precision(scheme: str, precision: str) -> None:
    assert precision_of(scheme) == precision


def test_parameters_say_where_they_come_from() -> None:
    known = parameters()
    assert "BSD-3-Clause" in known.provenance
    for models in (known.graph, known.compiler):
        for model in models.values():
            assert all(s.low <= 1 <= s.high for s in model.spreads.values())
            assert all(load_device(target) is not None for target in model.devices)
            assert model.devices[model.reference].matrix == 1.0
