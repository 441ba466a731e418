"""Device profiles and predictions."""

import numpy as np
import pytest

from pocketport.errors import InputError
from pocketport.profiles.cost import ComponentCost
from pocketport.profiles.device import device_ids, load_device, parse_device
from pocketport.profiles.measurement import Measurement, ProvenanceKind
from pocketport.profiles.roofline import predict_component

TARGETS = [
    "apple/a16", "apple/a17-pro", "apple/a18-pro", "mediatek/mt6989", "mediatek/mt6991",
    "qualcomm/sm8450", "qualcomm/sm8550", "qualcomm/sm8650", "qualcomm/sm8750",
    "qualcomm/sm8850",
]  # fmt: skip


def cost(macs: float, megabytes: float, ops: int) -> ComponentCost:
    return ComponentCost(0, int(macs), int(megabytes * 1e6), int(megabytes * 1e6), 0, 0, ops, ())


def predicted(target: str, what: ComponentCost, scheme: str, **estimates: float) -> Measurement:
    device = load_device(target)
    assert device is not None
    found = predict_component(what, device, scheme=scheme, estimates=estimates)
    assert found is not None
    return found


def test_every_target_has_a_profile_with_sources() -> None:
    assert device_ids() == TARGETS
    for target in TARGETS:
        device = load_device(f"{target}@1.0")
        assert device is not None and device.graph
        figures = [device.dram_gbps, device.dram_share, device.npu_tops_int8, device.on_chip_mb, device.app_memory_mb]
        assert all(f.source and f.value > 0 for f in figures if f is not None)
        assert all(0 < m.spread.low < 1 < m.spread.high for m in (*device.graph.values(), *device.compiler.values()))


def test_unknown_device_predicts_nothing() -> None:
    assert load_device("qualcomm/sm9999") is None


def test_neural_engine_has_no_rate_for_int16() -> None:
    device = load_device("apple/a17-pro")
    assert device is not None
    assert predict_component(cost(1e9, 1, 10), device, scheme="w8a16", estimates={}) is None


def test_roofline_by_hand() -> None:
    device = load_device("qualcomm/sm8650")
    assert device is not None
    m = device.graph["float"]
    compute = predicted("qualcomm/sm8650", cost(4e9, 1, 100), "float")
    assert compute.value == pytest.approx(4 * m.ms_per_gmac + 100 * m.ms_per_op + m.offset_ms)
    memory = predicted("qualcomm/sm8650", cost(1e6, 4000, 1), "float")
    assert memory.value == pytest.approx(4000 / (76.8 * device.dram_share.value) + m.offset_ms)
    assert memory.low == pytest.approx(memory.value * m.spread.low)
    assert memory.provenance.kind is ProvenanceKind.PREDICTED
    assert m.spread.evidence in memory.provenance.detail


def test_compilers_estimate_speaks_where_it_is_known() -> None:
    device = load_device("qualcomm/sm8650")
    assert device is not None
    line = device.compiler["float"]
    informed = predicted("qualcomm/sm8650", cost(4e9, 1, 100), "float", **{line.estimate: 2870.0})
    assert informed.value == pytest.approx(line.slope * 2.87 + line.offset_ms)
    assert "compiler" in informed.provenance.detail


def test_published_measurements_lie_near_the_predictions() -> None:
    """ResNet-50, ViT-B/16 and MobileNetV2 as Qualcomm AI Hub Models 0.65.0 measured them on a Galaxy S24 (float)."""
    published = {(4.089, 25.56, 72): 1.617, (17.564, 86.57, 344): 8.2, (0.301, 3.5, 64): 0.598}
    values = [predicted("qualcomm/sm8650", cost(g * 1e9, 2 * p, ops), "float").value for g, p, ops in published]
    assert np.all(np.abs(np.log(np.array(values) / list(published.values()))) < np.log(2))


def test_four_bit_weights_say_that_they_borrow() -> None:
    assert "4-bit weights" in predicted("qualcomm/sm8650", cost(1e9, 1, 10), "w4b32a16").provenance.detail


def test_mediatek_says_that_nothing_was_measured() -> None:
    figure = predicted("mediatek/mt6989", cost(1e9, 1, 10), "w8a16")
    assert "no device measurements" in figure.provenance.detail
    assert figure.low is not None and figure.high is not None
    assert figure.high / figure.low > 4


def test_damaged_profile() -> None:
    with pytest.raises(InputError, match=r"x\.yaml"):
        parse_device("target: a/b\nnpu: [", "x.yaml")
    with pytest.raises(InputError, match="tops"):
        parse_device("target: a/b\nname: n\nnpu: x\ntops: 4", "x.yaml")
