"""What holds for every scheme, every packer and every shape: odd sizes, one row, long rows, magnitudes far apart.

The quick test draws a few examples of each property; the slow one 10,000 of all together.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from ggml_library import dequantized as dequantized_by_ggml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketport.calibration.encodings import INTEGER_RANGES, Encoding, Palette, encoding_for_range
from pocketport.calibration.observers import OBSERVERS, Histogram, make_observer
from pocketport.calibration.statistics import SecondMoment
from pocketport.compress.blockwise.grids import Form, extreme_grid, round_to, searched_grid
from pocketport.compress.builder import GraphBuilder
from pocketport.compress.formats.packing import pack_words, unpack_words
from pocketport.compress.ggml.blocks import FORMS
from pocketport.compress.ggml.quantize import quantize
from pocketport.compress.ggml.types import TYPES
from pocketport.compress.pivot.qdq import QdqWriter
from pocketport.compress.pivot.weights import quantize_weight
from pocketport.compress.planning.plan import TensorKind, TensorPlan
from pocketport.compress.quantized_weights import (
    QuantizedWeight,
    QuantizedWeights,
    pack_nibbles,
    write_index,
    write_part,
)
from pocketport.compress.schemes import Granularity, Scheme
from pocketport.errors import InputError, UsageError
from pocketport.formats import FORMATS, format_named

DRAWS = 10_000
QUICK = 12
HALF = 0.5 * (1 + 1e-3)  # of a step: float32 quotients near a tie
GREATEST_HALF = 65504
LOST = 2.0**-25 * 32 * 127  # where the scale of a super-block is too small for float16
SEEDS = st.integers(0, 2**32 - 1)
MAGNITUDES = st.sampled_from([1e-6, 1e-3, 1.0, 100.0, 1e4])
FILLS = st.sampled_from(["normal", "one outlier", "zeros", "one sign", "constant", "rows apart"])


def numbers(shape: tuple[int, ...], seed: int, size: float, fill: str) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    x = random.standard_normal(shape)
    if fill == "one outlier":
        x.reshape(-1)[int(random.integers(x.size))] *= 100
    elif fill == "zeros":
        x *= random.random(shape) < 0.3
    elif fill == "one sign":
        x = -np.abs(x)
    elif fill == "constant":
        x[:] = x.reshape(-1)[0]
    elif fill == "rows apart":
        x *= 10.0 ** random.integers(-3, 3, (shape[0], *(1,) * (len(shape) - 1)))
    return (size * x).astype(np.float32)


def check_nearest(real: Any, read: Any, scale: Any, zero: Any, low: int, high: int) -> None:
    """What is read is the nearest of the grid's numbers: within half a step of what the grid reaches; zero is zero."""
    real, read, scale, zero = (np.asarray(v, np.float64) for v in (real, read, scale, zero))
    assert np.isfinite(read).all() and np.isfinite(scale).all() and (scale != 0).all()
    assert ((zero >= low) & (zero <= high)).all()
    ends = np.sort([(low - zero) * scale, (high - zero) * scale], axis=0)
    reached = np.clip(real, *ends)
    slack = 1e-6 * np.maximum(np.abs(real), np.abs(reached))
    assert (np.abs(read - reached) <= HALF * np.abs(scale) + slack).all()
    assert not read[real == 0].any()


def encodings_of_ranges(dtype: str, a: float, b: float, symmetric: bool, seed: int) -> None:
    """Every encoding holds zero exactly, rounds monotonically, and reaches the range that it was made for."""
    encoding = encoding_for_range(min(a, b), max(a, b), dtype, symmetric=symmetric)
    low, high = encoding.bounds
    step, zero = float(encoding.scale), int(encoding.zero_point)
    reach = max(abs(a), abs(b))
    values = np.sort(np.concatenate([[0.0, a, b], np.random.default_rng(seed).uniform(-2 * reach, 2 * reach, 60)]))
    values = values.astype(np.float32)
    integers = encoding.quantize(values)
    assert (np.diff(integers) >= 0).all() and integers.min() >= low and integers.max() <= high
    check_nearest(values, encoding.dequantize(integers), encoding.scale, encoding.zero_point, low, high)
    least, greatest = (low - zero) * step, (high - zero) * step
    assert least <= 0 <= greatest
    assert least <= min(a, b, 0) + HALF * step + 1e-6 * reach and greatest >= max(a, b, 0) - HALF * step - 1e-6 * reach


def ranges_of_observers(
    name: str, dtype: str, symmetric: bool, shape: list[int], seed: int, size: float, fill: str
) -> None:
    """Whatever an observer chooses, the encoding holds zero, and min_max clips nothing."""
    values = numbers(tuple(shape), seed, size, fill)
    histogram = Histogram()
    histogram.update(values)
    first, last = INTEGER_RANGES[dtype]
    low, high = make_observer(name).range(histogram, last - first + 1, symmetric)
    assert np.isfinite([low, high]).all() and low <= high
    encoding = encoding_for_range(low, high, dtype, symmetric=symmetric)
    read = encoding.dequantize(encoding.quantize(values))
    check_nearest(values, read, encoding.scale, encoding.zero_point, first, last)
    assert encoding.dequantize(encoding.quantize(np.zeros(1, np.float32)))[0] == 0
    if name == "min_max":
        assert np.abs(read - values).max() <= 1.01 * float(encoding.scale) + 1e-6 * np.abs(values).max()


def weights_of_graphs(
    dtype: str, granularity: str, algorithm: str, turned: bool, rows: int, blocks: int, block: int, seed: int, size: float,
    fill: str,
) -> None:  # fmt: skip
    """Weights of pivots, in every integer type and granularity, by every algorithm, in both layouts."""
    low, high = INTEGER_RANGES[dtype]
    matrix = numbers((rows, blocks * block), seed, size, fill)
    x = numbers((40, blocks * block), seed + 1, 1.0, "normal")
    moment = SecondMoment(np.square(x).sum(0).astype(np.float64), len(x), x.T @ x)
    channel, summed = (1, 0) if turned else (0, 1)
    plan = TensorPlan(
        "w", TensorKind.WEIGHT, "n", "Gemm", "", dtype, "", symmetric=dtype.startswith("i"), granularity=granularity,
        axis={"t": None, "c": channel, "b": summed}[granularity], channel_axis=channel,
        block=block if granularity == "b" else 0, algorithm=algorithm,
    )  # fmt: skip
    real = matrix.T if turned else matrix
    done = quantize_weight(real, plan, moment, None)
    assert done.integers.shape == real.shape
    assert done.integers.min() >= low and done.integers.max() <= high
    encoding = done.encoding
    scale, zero = (spread(encoding, part) for part in (encoding.scale, encoding.zero_point))
    scale, zero = np.broadcast_to(scale, real.shape), np.broadcast_to(zero, real.shape)
    read = encoding.dequantize(done.integers)
    np.testing.assert_allclose(read, (done.integers - zero) * scale.astype(np.float64), rtol=1e-6)
    if algorithm == "gptq":
        assert np.isfinite(read).all() and (scale > 0).all()
    else:
        check_nearest(real, read, scale, zero, low, high)


def palettes_of_graphs(
    bits: int, algorithm: str, turned: bool, groups: int, group: int, columns: int, seed: int, size: float, fill: str
) -> None:
    """Palettes of pivots hold float16, and every weight that is not made to carry others' errors has its nearest entry."""
    matrix = numbers((groups * group, columns), seed, size, fill)
    x = numbers((40, columns), seed + 1, 1.0, "normal")
    moment = SecondMoment(np.square(x).sum(0).astype(np.float64), len(x), x.T @ x)
    plan = TensorPlan(
        "w", TensorKind.WEIGHT, "n", "Gemm", "", f"uint{bits}", "", granularity="p", axis=int(turned),
        channel_axis=int(turned), block=group, algorithm=algorithm,
    )  # fmt: skip
    real = matrix.T if turned else matrix
    try:
        done = quantize_weight(real, plan, moment, None)
    except InputError:
        assert np.abs(matrix).max() > GREATEST_HALF
        return
    assert isinstance(done.encoding, Palette)
    table = done.encoding.table
    assert done.integers.shape == real.shape and table.shape == (groups, 1 << bits)
    assert np.array_equal(table, table.astype(np.float16)) and (np.diff(table, axis=1) >= 0).all()
    read = done.encoding.dequantize(done.integers)
    read = read.T if turned else read
    entries = np.repeat(table, group, axis=0)[:, None, :]
    assert (np.abs(read[..., None] - entries).min(-1) == 0).all()
    if algorithm == "kmeans":
        np.testing.assert_array_equal(np.abs(read - matrix), np.abs(matrix[..., None] - entries).min(-1))


def spread(encoding: Encoding, part: NDArray[Any]) -> NDArray[Any]:
    """A scale or zero point for every weight, by the definition."""
    if encoding.axis is None:
        return part
    if encoding.block:
        return np.repeat(part, encoding.block, axis=encoding.axis)
    return part.reshape([-1 if d == encoding.axis else 1 for d in range(2)])


def weights_of_checkpoints(
    bits: int, block: int | None, tail: str, symmetric: bool, searched: bool, rows: int, groups: int, seed: int, size: float,
    fill: str,
) -> None:  # fmt: skip
    """Weights of checkpoint formats, in every scheme of 2 to 8 bits."""
    columns = groups * (block or 7)
    scheme = str(Scheme.parse(f"w{bits}{f'b{block}' if block else 'c'}{tail}"))
    form = Form.of(scheme, symmetric, columns)
    weight = torch.from_numpy(numbers((rows, columns), seed, size, fill))
    importance = torch.from_numpy(np.random.default_rng(seed).random(columns).astype(np.float32))
    try:
        grid = searched_grid(weight, form, importance) if searched else extreme_grid(weight, form)
    except InputError:
        assert form.half and float(weight.abs().max()) > GREATEST_HALF
        return
    integers = round_to(weight, grid)
    assert int(integers.max()) <= form.highest
    scale, zero = (np.repeat(part.numpy(), form.group, axis=1) for part in (grid.scale, grid.zero))
    check_nearest(weight, grid.dequantized(integers), scale, zero, 0, form.highest)
    if form.half:
        assert torch.equal(grid.scale, grid.scale.half().float())


def schemes_of_formats(name: str, bits: int, kind: str, tail: str) -> None:
    """A format takes a scheme of the grammar as it is, or says that it has no place for it."""
    scheme = Scheme.parse(f"w{bits}{kind}{tail}")
    form, variant = format_named(name)
    try:
        choice = form.choose("a.q_proj.weight", (64, 1536), "prefill", "linear", variant, str(scheme))
    except UsageError as error:
        assert error.fix
        return
    assert Scheme.parse(choice.scheme).weight_bits == scheme.weight_bits
    assert choice.scheme == str(scheme) or choice.why  # kernels of fixed blocks repeat a channel's scale
    widths = (2, 3, 4, 5, 6, 8) if name == "gptq" else (2, 3, 4, 8)
    assert scheme.weight_bits in widths and scheme.activation_bits is None
    assert scheme.granularity is not Granularity.TENSOR


def blocks_of_ggml(kind: str, rows: int, blocks: int, seed: int, size: float, fill: str) -> None:
    """ggml reads what was packed, within a third of what its block holds at most; with four levels, within two thirds."""
    block = TYPES[kind].block
    matrix = numbers((rows, blocks * block), seed, size, fill)
    try:
        data = quantize(kind, matrix, None)
    except InputError:
        assert np.abs(matrix).max() > GREATEST_HALF
        return
    assert data.shape == (rows, TYPES[kind].row_bytes(blocks * block))
    read = dequantized_by_ggml(kind, data, blocks * block)
    greatest = np.abs(matrix).reshape(rows, -1, block).max(-1, keepdims=True)
    off = np.abs(read - matrix).reshape(rows, -1, block)
    assert (off <= (0.6 if kind == "q2_k" else 0.3) * greatest + LOST).all()


def words(bits: int, rows: int, columns: int, seed: int) -> None:
    """Words of 32 bits come back, and are those of GPTQModel's shifts and of the package compressed-tensors."""
    integers = np.random.default_rng(seed).integers(0, 2**bits, (rows, columns)).astype(np.uint8)
    packed = pack_words(integers, bits)
    np.testing.assert_array_equal(unpack_words(packed, bits, columns), integers)
    if 32 % bits == 0:
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        signed = torch.from_numpy(integers.astype(np.int16) - 2 ** (bits - 1)).to(torch.int8)
        np.testing.assert_array_equal(packed, pack_to_int32(signed, bits).numpy())
        shifts = np.arange(0, 32, bits)
        by_shift = (packed.astype(np.int64)[:, :, None] >> shifts) & (2**bits - 1)
        np.testing.assert_array_equal(by_shift.reshape(rows, -1)[:, :columns], integers)


def directories(bits: int, rows: int, groups: int, block: int, reordered: bool, seed: int) -> None:
    """Quantized weights on disk come back, whatever their shape."""
    random = np.random.default_rng(seed)
    columns = groups * block
    weight = QuantizedWeight(
        bits, block, False, random.integers(0, 2**bits, (rows, columns)).astype(np.uint8),
        random.random((rows, groups)).astype(np.float32), random.integers(0, 2**bits, (rows, groups)).astype(np.uint8),
        random.permutation(np.arange(columns) // block).astype(np.int32) if reordered else None,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        write_index(Path(folder), write_part(Path(folder) / "part.safetensors", {"w": weight}))
        read = QuantizedWeights(Path(folder))["w"]
        assert isinstance(read, QuantizedWeight)
        np.testing.assert_array_equal(read.dequantized(), weight.dequantized())
        np.testing.assert_array_equal(read.integers, weight.integers)


def constants_of_coreai(bits: int, rows: int, columns: int, seed: int) -> None:
    """Apple's sub-byte constants: one stream of bits, the first integer in the lowest ones."""
    from pocketport.targets.apple.weights import pack

    integers = np.random.default_rng(seed).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns))
    stream = np.unpackbits(pack(integers, bits), bitorder="little")
    assert len(stream) == -(-integers.size * bits // 8) * 8
    fields = stream[: integers.size * bits].reshape(-1, bits).astype(np.int64) @ (1 << np.arange(bits))
    np.testing.assert_array_equal(fields, integers.ravel() % 2**bits)


def constants_of_openvino(signed: bool, rows: int, columns: int, seed: int) -> None:
    """Two integers of 4 bits in a byte, as OpenVINO's runtime reads them."""
    import openvino
    from openvino import opset15

    from pocketport.targets.x86.openvino_weights import SIGN_BITS

    integers = np.random.default_rng(seed).integers(0, 16, (rows, columns)).astype(np.uint8)
    packed = pack_nibbles(integers.reshape(1, -1)).ravel()
    packed = packed ^ np.uint8(SIGN_BITS[4]) if signed else packed
    kind = openvino.Type.i4 if signed else openvino.Type.u4
    constant = opset15.constant(openvino.Tensor(packed, openvino.Shape([rows, columns]), kind))
    model = openvino.Model([opset15.convert(constant, "f32")], [])
    (read,) = openvino.Core().compile_model(model, "CPU")({}).values()
    np.testing.assert_array_equal(read + 8 * signed, integers)


def constants_of_tflite(shape: list[int], seed: int) -> None:
    """int4 constants of a ``.tflite`` file come back from its buffer."""
    from ai_edge_litert import schema_py_generated as schema

    from pocketport.targets.mediatek.emit import Emitter

    values = np.random.default_rng(seed).integers(-8, 8, shape).astype(np.int8)
    emitter = Emitter()
    encoding = Encoding("int4", np.ones((), np.float32), np.zeros((), np.int32))
    stored = emitter.constant(values, dtype="int4", encoding=encoding)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.tflite"
        emitter.save(path, {}, {"y": stored}, "test")
        model = schema.Model.GetRootAs(path.read_bytes(), 0)
    tensor = model.Subgraphs(0).Tensors(0)
    raw = model.Buffers(tensor.Buffer()).DataAsNumpy()
    assert tensor.ShapeAsNumpy().tolist() == shape and len(raw) == -(-values.size // 2)
    nibbles = np.stack([raw & 15, raw >> 4], axis=1).reshape(-1)[: values.size].astype(np.int16)
    np.testing.assert_array_equal(np.where(nibbles > 7, nibbles - 16, nibbles), values.ravel())


def products_of_onnxruntime(rows: int, blocks: int, exponent: int, blocked: bool, turned: bool, seed: int) -> None:
    """MatMulNBits on our bytes is the product with the dequantized weights."""
    from pocketport.targets.x86.packing import pack_int4_layers

    block = 2**exponent
    columns, random = blocks * block, np.random.default_rng(seed)
    g = GraphBuilder("main")
    x = g.input("x", (2, columns))
    shape = (columns, rows) if turned else (rows, columns)
    w = g.weight("w", random.standard_normal(shape).astype(np.float32))
    y = g.node("MatMul", [x, w], "n", output="y") if turned else g.node("Gemm", [x, w], "n", transB=1, output="y")
    g.output(y)
    model = g.finish()
    summed, channel = (0, 1) if turned else (1, 0)
    axis = summed if blocked else channel
    scales = tuple(d // block if i == summed else d for i, d in enumerate(shape)) if blocked else (rows,)
    encoding = Encoding(
        "int4", random.uniform(0.5, 2, scales).astype(np.float32), np.zeros(scales, np.int32), axis, block * blocked
    )
    integers = random.integers(-8, 8, shape).astype(np.int32)
    values = {v.name: v for v in model.graph.initializers.values()}
    QdqWriter(model).constant(values["w"], integers, encoding)
    model.graph.sort()
    pack_int4_layers(model)
    assert [n.op_type for n in model.graph if n.op_type != "DequantizeLinear"] == ["MatMulNBits"]
    feed = random.standard_normal((2, columns)).astype(np.float32)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": feed})
    real = encoding.dequantize(integers).astype(np.float64)
    expected = feed @ (real if turned else real.T)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(feed).sum() * float(np.abs(real).max()))


def scales_of_the_htp(rows: int, blocks: int, block: int, seed: int, size: float, fill: str) -> None:
    """Block scales of Qualcomm's LPBQ are whole sixteenths of their channel's, as its lowering recognizes them."""
    from pocketport.targets.qualcomm.rewrites import has_lpbq_scales

    matrix = numbers((rows, blocks * block), seed, size, fill)
    plan = TensorPlan(
        "w", TensorKind.WEIGHT, "n", "Gemm", "", "int4", "", granularity="b", axis=1, channel_axis=0, block=block,
        block_scale_levels=16, algorithm="mse",
    )  # fmt: skip
    done = quantize_weight(matrix, plan, None, None)
    scale = np.repeat(done.encoding.scale, block, axis=1)
    check_nearest(matrix, done.encoding.dequantize(done.integers), scale, np.zeros_like(scale), -8, 7)
    value = ir.Value(name="s", const_value=ir.tensor(done.encoding.scale, name="s"))
    node = ir.node("DequantizeLinear", [ir.Value(name="w"), value], attributes={"axis": 1, "block_size": block})
    assert has_lpbq_scales(node)


NARROW = st.sampled_from([d for d in INTEGER_RANGES if d != "int32"])
FLOATS = st.floats(-1e6, 1e6, allow_nan=False, width=32)
DATA: Mapping[str, st.SearchStrategy[Any]] = {"seed": SEEDS, "size": MAGNITUDES, "fill": FILLS}
ROWS, LONG = st.integers(1, 7), st.one_of(st.integers(1, 100), st.integers(4000, 5000))


@dataclass(frozen=True)
class Property:
    """A check and what is drawn for its arguments."""

    check: Callable[..., None]
    arguments: Mapping[str, st.SearchStrategy[Any]]

    def hold(self, draws: int) -> None:
        """Raise where an example contradicts it."""

        def test(**arguments: Any) -> None:
            self.check(**arguments)

        settings(max_examples=draws, deadline=None, database=None)(given(**self.arguments)(test))()


PROPERTIES = [
    Property(encodings_of_ranges, {"dtype": NARROW, "a": FLOATS, "b": FLOATS, "symmetric": st.booleans(), "seed": SEEDS}),
    Property(
        ranges_of_observers,
        {"name": st.sampled_from(sorted(OBSERVERS)), "dtype": st.sampled_from(["int8", "uint8", "int16", "uint16"]),
         "symmetric": st.booleans(), "shape": st.lists(st.integers(1, 9), min_size=1, max_size=3), **DATA},
    ),
    Property(
        weights_of_graphs,
        {"dtype": st.sampled_from(["int2", "uint2", "int4", "uint4", "int8", "uint8"]), "granularity": st.sampled_from("tcb"),
         "algorithm": st.sampled_from(["rtn", "mse", "gptq"]), "turned": st.booleans(), "rows": ROWS,
         "blocks": st.integers(1, 3), "block": st.integers(1, 9), **DATA},
    ),
    Property(
        palettes_of_graphs,
        {"bits": st.sampled_from([1, 2, 3, 4, 6, 8]), "algorithm": st.sampled_from(["kmeans", "gptq"]), "turned": st.booleans(),
         "groups": st.integers(1, 4), "group": st.integers(1, 5), "columns": st.integers(1, 40), **DATA},
    ),
    Property(
        weights_of_checkpoints,
        {"bits": st.integers(2, 8), "block": st.one_of(st.none(), st.integers(1, 40)), "tail": st.sampled_from(["fp16", "fp32"]),
         "symmetric": st.booleans(), "searched": st.booleans(), "rows": ROWS, "groups": st.integers(1, 4), **DATA},
    ),
    Property(
        schemes_of_formats,
        {"name": st.sampled_from(sorted(set(FORMATS) - {"gguf"})), "bits": st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 16]),
         "kind": st.sampled_from(["t", "c", "b16", "b24", "b32", "b64", "b128", "b1536"]),
         "tail": st.sampled_from(["a8", "a16", "fp16", "fp32"])},
    ),
    Property(
        blocks_of_ggml,
        {"kind": st.sampled_from(sorted(FORMS)), "rows": ROWS, "blocks": st.one_of(st.integers(1, 4), st.just(33)), **DATA},
    ),
    Property(words, {"bits": st.integers(1, 8), "rows": ROWS, "columns": LONG, "seed": SEEDS}),
    Property(
        directories,
        {"bits": st.integers(2, 8), "rows": ROWS, "groups": st.integers(1, 4), "block": st.one_of(st.integers(1, 33), st.just(2001)),
         "reordered": st.booleans(), "seed": SEEDS},
    ),
    Property(constants_of_coreai, {"bits": st.sampled_from([1, 2, 3, 4, 6, 8]), "rows": ROWS, "columns": LONG, "seed": SEEDS}),
    Property(constants_of_openvino, {"signed": st.booleans(), "rows": ROWS, "columns": LONG, "seed": SEEDS}),
    Property(constants_of_tflite, {"shape": st.lists(st.integers(1, 21), min_size=1, max_size=3), "seed": SEEDS}),
    Property(
        products_of_onnxruntime,
        {"rows": ROWS, "blocks": st.integers(1, 3), "exponent": st.integers(4, 6), "blocked": st.booleans(),
         "turned": st.booleans(), "seed": SEEDS},
    ),
    Property(scales_of_the_htp, {"rows": ROWS, "blocks": st.integers(1, 5), "block": st.sampled_from([4, 16, 32]), **DATA}),
]  # fmt: skip
NAMES = [p.check.__name__ for p in PROPERTIES]


@pytest.mark.parametrize("name", NAMES)
def test_properties(name: str) -> None:
    PROPERTIES[NAMES.index(name)].hold(QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_properties_in_ten_thousand_draws(name: str) -> None:
    PROPERTIES[NAMES.index(name)].hold(-(-DRAWS // len(PROPERTIES)))
