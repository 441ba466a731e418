"""Palettes in both Apple formats: executed against onnxruntime, and against coremltools' own palettization."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pocketport.calibration.encodings import Palette
from pocketport.compress.algorithms import PaletteProblem
from pocketport.compress.algorithms.kmeans import kmeans
from pocketport.compress.pivot.qdq import QdqWriter
from pocketport.targets.apple import backend
from pocketport.targets.apple.lint import lint
from pocketport.targets.apple.target import chip_of
from pocketport.targets.apple.weights import pack, palettize

from .both_formats import TARGET, Results, bench, both_formats
from .op_graphs import Sampler

BITS = (1, 2, 3, 4, 6, 8)
FLOAT16_DB = 50.0


def palettized_ops() -> tuple[ir.Model, dict[str, NDArray[np.generic]]]:
    """Linear layers with palettes of every width, for all channels and for groups; MatMul and convolutions with some."""
    s = Sampler()
    x, image = "matrix", "image"  # [6, 32], [1, 8, 12, 10]
    weights: dict[str, tuple[NDArray[np.float32], int, int, int]] = {}  # name → weight, bits, channel axis, groups

    def weight(shape: tuple[int, ...], bits: int, axis: int, groups: int) -> str:
        name = s.weight(s.normal(*shape))
        weights[name] = s.normal(*shape), bits, axis, groups
        return name

    for bits in BITS:
        for groups in (1, 4):
            s.add("Gemm", [x, weight((16, 32), bits, 0, groups), s.weight(s.normal(16))], transB=1)
    s.add("MatMul", [x, weight((32, 16), 3, 1, 8)])
    s.add("Gemm", [x, weight((32, 16), 4, 1, 2)])
    s.add("Conv", [image, weight((4, 8, 3, 3), 4, 0, 2), s.weight(s.normal(4))], pads=[1, 1, 1, 1])
    s.add("Conv", [image, weight((8, 1, 3, 3), 2, 0, 4)], group=8)
    s.add("ConvTranspose", [image, weight((8, 4, 2, 2), 3, 1, 2)], strides=[2, 2])
    feeds: dict[str, NDArray[np.generic]] = {x: s.normal(6, 32, scale=1.0), image: s.normal(1, 8, 12, 10, scale=1.0)}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in feeds.items()]
    outputs = [helper.make_empty_tensor_value_info(name) for name in s.outputs]
    graph = helper.make_graph(s.nodes, "palettes", inputs, outputs, list(s.weights.values()))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    writer = QdqWriter(model)
    for name, (real, bits, axis, groups) in weights.items():
        table = np.sort(s.rng.standard_normal((groups, 1 << bits)).astype(np.float16), axis=1).astype(np.float32)
        writer.palette(model.graph.initializers[name], s.rng.integers(0, 1 << bits, real.shape), Palette(table, axis))
    model.graph.sort()
    return model, feeds


MODEL, FEEDS = palettized_ops()
OUTPUTS = [str(v.name) for v in MODEL.graph.outputs]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    pytest.importorskip("coreai")
    pytest.importorskip("coremltools")
    pivot = tmp_path_factory.mktemp("palettes") / "palettes.onnx"
    ir.save(MODEL, pivot)
    with bench("apple palettes") as worker:
        yield both_formats(worker, pivot, OUTPUTS, FEEDS)


@pytest.mark.parametrize("kind", ["aimodel", "mlpackage"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_both_formats_compute_what_onnxruntime_does(kind: str, output: str, results: Results) -> None:
    expected, found = (np.asarray(side[output], np.float64) for side in (results.expected, results.found[kind]))
    assert found.shape == expected.shape
    noise = np.square(expected - found).sum()
    assert noise == 0 or 10 * np.log10(np.square(expected).sum() / noise) >= FLOAT16_DB


def test_weights_stay_indices_of_their_width(results: Results) -> None:
    for artifact in results.artifacts.values():
        for bits in BITS:
            assert int(artifact.facts[f"uint{bits}_elements"]) >= 2 * 16 * 32


def test_nothing_of_the_looking_up_is_left_to_run() -> None:
    """No op for it in the package, none in the predicted offload, and no objection."""
    assert backend.check("main", MODEL, TARGET) == ()
    offload, found = lint(MODEL, "main", chip_of(TARGET))
    assert offload.npu_ops == offload.total_ops == len(OUTPUTS)
    assert [d.code for d in found] == ["apple.residency-unobserved"]


@given(st.sampled_from(BITS), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_packing_is_coremltools_own(bits: int, count: int, seed: int) -> None:
    utilities = pytest.importorskip("coremltools.optimize._utils")
    indices = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint8)
    np.testing.assert_array_equal(pack(indices, bits), utilities.pack_elements_into_bits(indices, bits))


@given(st.sampled_from(BITS), st.sampled_from([(0, 1), (0, 3), (1, 4)]), st.integers(0, 2**32 - 1))
def test_weights_are_what_coremltools_decompresses(bits: int, layout: tuple[int, int], seed: int) -> None:
    utilities = pytest.importorskip("coremltools.optimize._utils")
    axis, groups = layout
    rng = np.random.default_rng(seed)
    palette = Palette(rng.standard_normal((groups, 1 << bits)).astype(np.float32), axis)
    weight = palettize(rng.integers(0, 1 << bits, (6, 8)), palette)
    np.testing.assert_array_equal(weight.dense(), utilities.lut_to_dense(weight.indices, weight.table))
    turned = weight.transposed((1, 0))
    np.testing.assert_array_equal(turned.dense(), weight.dense().T)
    np.testing.assert_array_equal(turned.dense(), utilities.lut_to_dense(turned.indices, turned.table))


def layer(bits: int) -> PaletteProblem:
    rng = np.random.default_rng(bits)
    weight = (
        (0.05 * rng.standard_normal((64, 96)) * rng.lognormal(0, 0.5, (64, 1))).astype(np.float16).astype(np.float32)
    )
    return PaletteProblem(weight, bits, 16)


def float_package(weight: NDArray[np.float32]) -> Any:
    """x · weightᵀ as a Core ML package of float16."""
    from coremltools.converters.mil.mil import Builder, Function, Program, types

    coremltools = pytest.importorskip("coremltools")
    with Function(
        {"x": Builder.placeholder((4, 96), dtype=types.fp16)}, opset_version=coremltools.target.iOS18
    ) as function:
        y = Builder.linear(x=function.inputs["x"], weight=weight.astype(np.float16), name="y")
        function.set_outputs([y])
    program = Program()
    program.add_function("main", function)
    return coremltools.convert(
        program, source="milinternal", convert_to="mlprogram", minimum_deployment_target=coremltools.target.iOS18,
        skip_model_load=True, pass_pipeline=coremltools.PassPipeline.EMPTY, compute_precision=coremltools.precision.FLOAT32,
    )  # fmt: skip


@pytest.mark.parametrize("bits", BITS)
def test_the_package_is_what_coremltools_makes_of_the_same_table(bits: int, tmp_path: Path) -> None:
    """`palettize_weights` in mode ``custom``, given our tables and indices, writes the bytes that our package has."""
    optimize = pytest.importorskip("coremltools.optimize.coreml")
    problem = layer(bits)
    weight, done = problem.weight, kmeans(problem)
    tables = {rows.tobytes(): i for i, rows in enumerate(weight.astype(np.float16).reshape(4, 16, 96))}

    def lut_function(group: NDArray[np.float16]) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        i = tables[np.ascontiguousarray(group).tobytes()]
        return done.table[i].astype(np.float16), done.indices.reshape(4, -1)[i]

    settings = optimize.OpPalettizerConfig(
        mode="custom", lut_function=lut_function, granularity="per_grouped_channel", group_size=16, weight_threshold=0
    )
    theirs = optimize.palettize_weights(float_package(weight), optimize.OptimizationConfig(global_config=settings))
    theirs.save(str(tmp_path / "theirs.mlpackage"))

    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 96))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4, 64))], [onnx.numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))
    QdqWriter(model).palette(model.graph.initializers["w"], done.indices, Palette(done.table, 0))
    model.graph.sort()
    from pocketport.targets.apple.coreml_program import write_mlpackage

    write_mlpackage(model, "main", tmp_path / "ours.mlpackage")
    file = "Data/com.apple.CoreML/weights/weight.bin"
    ours, expected = ((tmp_path / f"{name}.mlpackage" / file).read_bytes() for name in ("ours", "theirs"))
    assert ours == expected


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("group", [16, 64])
def test_coremltools_kmeans_errs_no_less(bits: int, group: int) -> None:
    """Unweighted, as coremltools has it, on the same weight in the same groups."""
    passes = pytest.importorskip("coremltools.optimize.coreml._quantization_passes")
    weight = layer(bits).weight
    theirs = passes.palettize_weights.blockwise_compress(weight, "KMEANS", bits, [0 if group == 64 else group, 0])
    read = passes.palettize_weights.decompress(theirs)
    ours = kmeans(PaletteProblem(weight, bits, group)).dense()
    assert np.square(ours - weight).sum() <= np.square(read - weight).sum()
