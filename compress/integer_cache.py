"""A key-value cache of 8- or 4-bit integers: decode reads it, prefill and decode write it, the host only copies.

Keys have a few channels that are wide for every token; values have none, but tokens differ. So keys get a range for each
channel and values one for each token (KIVI, Liu et al. 2024, arXiv 2402.02750). The ranges of keys are constants of the
graphs, measured on calibration samples (KVQuant, Hooper et al. 2024, arXiv 2401.18079), so that no tokens wait in float
until their group is full; those of values are computed in the graphs, and are a part of the cache. Each number stands for
least + step · integer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executor import Arrays, OrtExecutor
from pocketport.compress.families.decoder.host import prompt_rows
from pocketport.compress.graph import clone_graph, inferred, shape_of
from pocketport.errors import InputError, UsageError

PREFILL, DECODE = "prefill", "decode"
KEY, VALUE, RANGE = "key_", "value_", "value_range_"
BITS = (4, 8)
LEAST_STEP = 1e-6  # where all numbers of a range are the same

KeyRanges = Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
"""``key_i`` → least and greatest of each channel, both [kv, d]."""


def key_ranges(bundle: ModelBundle, feeds: Iterable[Arrays]) -> KeyRanges:
    """Run ``prefill`` and keep the extremes of every channel of its keys, padding left out.

    Args:
        bundle: float graphs of a decoder.
        feeds: of ``prefill``, sample after sample.

    Raises:
        UsageError: there are no samples.
    """
    found: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    executor = OrtExecutor(bundle[PREFILL].graph)
    for sample in feeds:
        results = {n: v for n, v in executor.run(sample).items() if n.startswith(f"present_{KEY}")}
        for name, (axis, first, last) in prompt_rows(PREFILL, sample, results).items():
            rows = np.asarray(results[name][0, :, first:last], np.float32)  # axis 2 of [1, kv, S, d]
            low, high = rows.min(axis - 1), rows.max(axis - 1)
            known = found.get(name.removeprefix("present_"), (low, high))
            found[name.removeprefix("present_")] = np.minimum(low, known[0]), np.maximum(high, known[1])
    if not found:
        raise UsageError("there are no calibration samples", where="ranges of keys", fix="give data")
    return found


def with_integer_cache(bundle: ModelBundle, ranges: KeyRanges, bits: int) -> ModelBundle:
    """A bundle whose cache is integers: ``past_key_i`` and ``past_value_i`` are uint8 [1, kv, C, d] ([1, kv, C, d/2] of
    4 bits: channel c in the low half of a byte, c + d/2 in the high one), with a further ``past_value_range_i``, float32
    [1, kv, C, 2]: least and step of each token's values. ``present_…`` likewise. Other states stay as they are.

    Args:
        bundle: float or quantized graphs of a decoder; unchanged.
        ranges: see `key_ranges`.
        bits: 4 or 8.

    Raises:
        UsageError: other bits, or a bundle without a cache of keys and values.
        InputError: the ranges lack a layer's keys, or 4-bit channels are odd in number.
    """
    if bits not in BITS:
        raise UsageError(f"{bits} bits", where="key-value cache", fix="use 8 or 4")
    known = {c.name for c in bundle}
    if not {PREFILL, DECODE} <= known or not _states(bundle[DECODE].graph.graph.inputs, f"past_{KEY}"):
        raise UsageError("it has no key-value cache", where=f"bundle {bundle.name}", fix="leave the cache out")
    return bundle.with_graphs({name: _rewritten(bundle[name].graph, ranges, bits) for name in (PREFILL, DECODE)})


@dataclass
class _Nodes:
    """Nodes that are written into a graph, in order; constants go in at once."""

    graph: ir.Graph
    made: list[ir.Node] = field(default_factory=list)

    def op(self, op: str, inputs: Sequence[ir.Value], name: str, **attributes: object) -> ir.Value:
        """A node with one output, both of this name."""
        node = ir.node(op, inputs, attributes, name=name)
        node.outputs[0].name = name
        self.made.append(node)
        return node.outputs[0]

    def halves(self, value: ir.Value, name: str) -> Sequence[ir.Value]:
        """A tensor cut in two along its last axis."""
        node = ir.node("Split", [value], {"axis": -1, "num_outputs": 2}, num_outputs=2, name=name)
        node.outputs[0].name, node.outputs[1].name = f"{name}/first", f"{name}/second"
        self.made.append(node)
        return node.outputs

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """An initializer, shared by all that use its name."""
        if name not in self.graph.initializers:
            tensor = ir.Tensor(array, name=name)
            kind = ir.TensorType(tensor.dtype)
            value = ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=tensor)
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        """The same numbers in another dtype."""
        return self.op("Cast", [value], name, to=int(dtype))


def _states(values: Iterable[ir.Value], prefix: str) -> list[str]:
    """``key_0``, ``key_1`` … of all values that begin with ``past_key_`` or ``present_key_``."""
    names = (v.name or "" for v in values)
    return [n.removeprefix("past_").removeprefix("present_") for n in names if n.startswith(prefix)]


def _rewritten(model: ir.Model, ranges: KeyRanges, bits: int) -> ir.Model:
    copy = clone_graph(model)
    graph = copy.graph
    first, reading = next(iter(graph)), _Nodes(graph)
    for kind in (KEY, VALUE):
        for state in _states(graph.inputs, f"past_{kind}"):
            _read(reading, state, ranges, bits)
    graph.insert_before(first, reading.made)
    writing = _Nodes(graph)
    for kind in (KEY, VALUE):
        for state in _states(graph.outputs, f"present_{kind}"):
            _write(writing, state, ranges, bits)
    graph.extend(writing.made)
    return inferred(copy)


def _read(nodes: _Nodes, state: str, ranges: KeyRanges, bits: int) -> None:
    """Replace a float input of the cache by integers and what makes floats of them."""
    name, inputs = f"past_{state}", nodes.graph.inputs
    index = next(i for i, v in enumerate(inputs) if v.name == name)
    *outer, width = shape_of(inputs[index])
    stored = _input(name, (*outer, _stored(width, bits, name)), ir.DataType.UINT8)
    integers = stored
    if bits == 4:
        low = nodes.op("BitwiseAnd", [stored, nodes.constant("uint8_15", np.array(15, np.uint8))], f"{name}/low")
        shift = nodes.constant("uint8_4", np.array(4, np.uint8))
        high = nodes.op("BitShift", [stored, shift], f"{name}/high", direction="RIGHT")
        integers = nodes.op("Concat", [low, high], f"{name}/unpacked", axis=-1)
    steps = nodes.cast(integers, ir.DataType.FLOAT, f"{name}/steps")
    if state.startswith(VALUE):
        kept = _input(f"past_{_range_of(state)}", (*outer, 2), ir.DataType.FLOAT)
        inputs.append(kept)
        least, step = nodes.halves(kept, f"{kept.name}/split")
    else:
        least, step = _constants(nodes, state, ranges, bits)
    value = nodes.op("Add", [nodes.op("Mul", [steps, step], f"{name}/scaled"), least], f"{name}/float")
    ir.convenience.replace_all_uses_with(inputs[index], value)
    inputs[index] = stored


def _write(nodes: _Nodes, state: str, ranges: KeyRanges, bits: int) -> None:
    """Put integers in the place of a float output of the cache."""
    name, outputs = f"present_{state}", nodes.graph.outputs
    index = next(i for i, v in enumerate(outputs) if v.name == name)
    value = outputs[index]
    value.name = f"{name}/float"
    width = shape_of(value)[-1]
    if state.startswith(VALUE):
        kept, least, step = _token_range(nodes, value, f"present_{_range_of(state)}", bits)
        outputs.append(kept)
    else:
        least, step = _constants(nodes, state, ranges, bits)
    scaled = nodes.op("Div", [nodes.op("Sub", [value, least], f"{name}/shifted"), step], f"{name}/scaled")
    ends = [nodes.constant(f"float_{n}", np.array(n, np.float32)) for n in (0, 2**bits - 1)]
    clipped = nodes.op("Clip", [nodes.op("Round", [scaled], f"{name}/rounded"), *ends], f"{name}/clipped")
    _stored(width, bits, name)
    if bits == 8:
        outputs[index] = nodes.cast(clipped, ir.DataType.UINT8, name)
        return
    low, high = nodes.halves(nodes.cast(clipped, ir.DataType.UINT8, f"{name}/integers"), f"{name}/halves")
    shift = nodes.constant("uint8_4", np.array(4, np.uint8))
    outputs[index] = nodes.op(
        "BitwiseOr", [low, nodes.op("BitShift", [high, shift], f"{name}/high", direction="LEFT")], name
    )


def _token_range(nodes: _Nodes, value: ir.Value, name: str, bits: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Least and step over the last axis, as one tensor and [.., 1] each."""
    axes = nodes.constant("int64_-1", np.array([-1], np.int64))
    least, most = (nodes.op(op, [value, axes], f"{name}/{op}", keepdims=1) for op in ("ReduceMin", "ReduceMax"))
    levels = nodes.constant(f"float_{2**bits - 1}", np.array(2**bits - 1, np.float32))
    step = nodes.op("Div", [nodes.op("Sub", [most, least], f"{name}/width"), levels], f"{name}/exact_step")
    step = nodes.op("Max", [step, nodes.constant("least_step", np.array(LEAST_STEP, np.float32))], f"{name}/step")
    return nodes.op("Concat", [least, step], name, axis=-1), least, step


def _constants(nodes: _Nodes, state: str, ranges: KeyRanges, bits: int) -> tuple[ir.Value, ir.Value]:
    """Least and step of every channel of a layer's keys, [kv, 1, d]."""
    if state not in ranges:
        raise InputError("no range of its channels", where=f"present_{state}", fix="calibrate the same model")
    low, high = ranges[state]
    step = np.maximum((high - low) / (2**bits - 1), LEAST_STEP)
    return (
        nodes.constant(f"{state}/least", low[:, None].astype(np.float32)),
        nodes.constant(f"{state}/step", step[:, None].astype(np.float32)),
    )


def _stored(width: int, bits: int, name: str) -> int:
    """Bytes of a token's channels."""
    if width * bits % 8:
        raise InputError(f"{width} channels don't fill bytes", where=name, fix="use an 8-bit cache")
    return width * bits // 8


def _range_of(state: str) -> str:
    """``value_3`` → ``value_range_3``."""
    return RANGE + state.removeprefix(VALUE)


def _input(name: str, shape: tuple[int, ...], dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
