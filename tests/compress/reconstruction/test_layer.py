"""Layers as matrix products of drawn rows, against onnxruntime's layers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from single_layers import graph_of, layer_of

from pocketport.calibration.encodings import Encoding, encoding_for_range
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.reconstruction import layer as module
from pocketport.compress.reconstruction.layer import as_matrix, from_matrix

CASES = [
    ("Conv", (1, 4, 9, 7), (6, 4, 3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
    ("Conv", (1, 6, 8, 8), (6, 1, 3, 3), {"group": 6, "pads": [1] * 4}),
    ("Conv", (1, 6, 8), (4, 3, 5), {"group": 2, "pads": [2, 2]}),
    ("Gemm", (5, 8), (3, 8), {"transB": 1}),
    ("Gemm", (5, 8), (8, 3), {}),
    ("MatMul", (2, 5, 8), (8, 3), {}),
]


@pytest.mark.parametrize(("op", "x", "weight", "attributes"), CASES)
def test_rows_times_the_matrix_are_the_layers_outputs(
    op: str, x: tuple[int, ...], weight: tuple[int, ...], attributes: dict, tmp_path: Path
) -> None:
    graph = graph_of(op, x, weight, **attributes)
    samples = [np.random.default_rng(i).standard_normal(x).astype(np.float32) for i in range(3)]
    axis = 0 if op == "Conv" or "transB" in attributes else 1
    encoding = Encoding("int4", np.ones(weight[axis], np.float32), np.zeros(weight[axis], np.int32), axis)
    rounding = encoding_for_range(-3, 3, "uint8", symmetric=False)
    layer = layer_of(graph, samples, encoding, rounding, tmp_path)
    executor = OrtExecutor(graph)
    for wanted, rows in ((samples, None), ([rounding.dequantize(rounding.quantize(s)) for s in samples], layer.rows)):
        found = layer.outputs if rows is None else layer.product(layer.weight, rows)
        found = found if layer.bias is None else found + layer.bias
        outputs = [next(iter(executor.run({"x": s}).values())) for s in wanted]
        moved = np.concatenate(
            [
                np.moveaxis(o, 1, -1).reshape(-1, o.shape[1]) if op == "Conv" else o.reshape(-1, o.shape[-1])
                for o in outputs
            ]
        )
        np.testing.assert_allclose(found.numpy(), moved, rtol=1e-4, atol=1e-4)


def test_few_rows_are_drawn_evenly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "VALUES", 2 * 4 * 10)
    graph = graph_of("Gemm", (100, 4), (4, 3))
    x = np.repeat(np.arange(100, dtype=np.float32)[:, None], 4, axis=1)
    layer = layer_of(graph, [x, x], Encoding("int4", np.ones(3, np.float32), np.zeros(3, np.int32), 1), None, tmp_path)
    places = layer.rows[:, 0, 0].numpy().reshape(2, 10)
    assert sorted(np.diff(np.sort(places[0]))) == [10] * 9 and not np.array_equal(places[0], places[1])
    assert np.array_equal(np.diff(np.sort(places[1])), [10] * 9)


@pytest.mark.parametrize(("shape", "axis"), [((3, 4), 0), ((3, 4), 1), ((2, 3, 5, 7), 0), ((2, 3, 5, 7), 1)])
def test_matrices_go_back_to_tensors(shape: tuple[int, ...], axis: int) -> None:
    tensor = np.arange(np.prod(shape)).reshape(shape)
    matrix = as_matrix(tensor, axis)
    assert matrix.shape[0] == shape[axis] and np.array_equal(matrix[1].ravel(), tensor.take(1, axis).ravel())
    assert np.array_equal(from_matrix(matrix, shape, axis), tensor)


def test_padding_is_left_out(tmp_path: Path) -> None:
    graph = graph_of("Gemm", (4, 4), (4, 3))
    encoding = Encoding("int4", np.ones(3, np.float32), np.zeros(3, np.int32), 1)
    from pocketport.compress.reconstruction import chains

    bias = np.array([[[0, 0, -100, -100]]], np.float32)
    real = chains.real_rows({"attention_bias": bias})
    assert real is not None and real.tolist() == [True, True, False, False]
    layer = layer_of(graph, [np.ones((4, 4), np.float32)], encoding, None, tmp_path)
    assert len(layer.rows) == 4
    node = next(iter(graph.graph))
    assert len(module._drawn(node, torch.ones(4, 4), (4, 3), real, 100, 0)) == 2
