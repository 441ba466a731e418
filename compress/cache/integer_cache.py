"""A key-value cache of 8- or 4-bit integers: decode reads it, prefill and decode write it, the host only copies.

Keys have a few channels that are wide for every token; values have none, but tokens differ. So keys get a range for each
channel and values one for each token (KIVI, Liu et al. 2024, arXiv 2402.02750). The ranges of keys are constants of the
graphs, measured on calibration samples (KVQuant, Hooper et al. 2024, arXiv 2401.18079), so that no tokens wait in float
until their group is full; those of values are computed in the graphs, and are a part of the cache. Each number stands for
least + step · integer.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from pocketport.calibration.reductions import KEYS
from pocketport.calibration.statistics import ChannelRange, Statistics
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.cache.nodes import KEY, RANGE, VALUE, CacheNodes
from pocketport.compress.graph import clone_graph, inferred, shape_of
from pocketport.errors import InputError, UsageError

PREFILL, DECODE = "prefill", "decode"
BITS = (4, 8)
EXACT = "/exact"  # ends the names of keys and values before they are rounded: what the graph itself goes on with

KeyRanges = Mapping[str, ChannelRange]
"""``key_i`` → extremes of each channel, [kv, d]."""


def key_ranges(statistics: Statistics) -> KeyRanges:
    """Extremes of every channel of the keys that ``prefill`` and ``decode`` gave in calibration, padding left out.

    Raises:
        UsageError: calibration saw none.
    """
    found: dict[str, ChannelRange] = {}
    for name, extremes in statistics.channels.items():
        component, _, tensor = name.partition("/")
        if component in (PREFILL, DECODE) and tensor.startswith(KEYS):
            state = tensor.removeprefix("present_")
            found[state] = extremes if state not in found else extremes.merged(found[state])
    if not found:
        raise UsageError("calibration saw no keys", where="key-value cache", fix="calibrate on the same model")
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
    check_cache(bundle, bits)
    return bundle.with_graphs({name: _rewritten(bundle[name].graph, ranges, bits) for name in (PREFILL, DECODE)})


def check_cache(bundle: ModelBundle, bits: int) -> None:
    """See to it that a bundle has a cache whose channels fill bytes.

    Raises:
        UsageError: it has none.
        InputError: 4-bit channels are odd in number.
    """
    known = {c.name for c in bundle}
    if not {PREFILL, DECODE} <= known or not cache_states(bundle[DECODE].graph.graph.inputs):
        raise UsageError(
            "it has no key-value cache", where=f"bundle {bundle.name}", fix="take `cache` out of the recipe"
        )
    for value in bundle[DECODE].graph.graph.inputs:
        if cache_states([value]):
            _stored_width(shape_of(value)[-1], bits, value.name or "")


def cache_states(values: Iterable[ir.Value]) -> list[str]:
    """``key_0``, ``value_0``, ``key_1`` … of all inputs or outputs that are keys and values."""
    names = ((v.name or "").removeprefix("past_").removeprefix("present_") for v in values)
    return [n for n in names if n.startswith((KEY, VALUE)) and not n.startswith(RANGE)]


def stored_bytes(state: str, shape: Sequence[int], bits: int) -> int:
    """What a state [1, kv, C, d] takes in integers of so many bits, ranges of values included; 0: in float32."""
    ranges = 8 * math.prod(shape[:-1]) if bits and state.startswith(VALUE) else 0  # two float32 a token and head
    return math.prod(shape) * (bits or 32) // 8 + ranges


def range_of(state: str) -> str:
    """``value_3`` → ``value_range_3``."""
    return RANGE + state.removeprefix(VALUE)


def _rewritten(model: ir.Model, ranges: KeyRanges, bits: int) -> ir.Model:
    copy = clone_graph(model)
    graph = copy.graph
    first, reading, writing = next(iter(graph)), CacheNodes(graph, bits), CacheNodes(graph, bits)
    for state in cache_states(graph.outputs):
        if state.startswith(KEY):
            if state not in ranges:
                raise InputError("no range of its channels", where=f"present_{state}", fix="calibrate the same model")
            writing.set_channels(state, ranges[state])
    for state in cache_states(graph.inputs):
        _read(reading, graph, state, bits)
    graph.insert_before(first, reading.made)
    for state in cache_states(graph.outputs):
        _write(writing, graph, state)
    graph.extend(writing.made)
    return inferred(copy)


def _read(nodes: CacheNodes, graph: ir.Graph, state: str, bits: int) -> None:
    """Replace a float input of the cache by integers and what makes floats of them."""
    name, inputs = f"past_{state}", graph.inputs
    index = next(i for i, v in enumerate(inputs) if v.name == name)
    *outer, width = shape_of(inputs[index])
    stored, kept = _input(name, (*outer, _stored_width(width, bits, name)), ir.DataType.UINT8), None
    if state.startswith(VALUE):
        kept = _input(f"past_{range_of(state)}", (*outer, 2), ir.DataType.FLOAT)
        inputs.append(kept)
    value = nodes.to_floats(state, stored, kept, name)
    ir.convenience.replace_all_uses_with(inputs[index], value)
    inputs[index] = stored


def _write(nodes: CacheNodes, graph: ir.Graph, state: str) -> None:
    """Put integers in the place of a float output of the cache."""
    name, outputs = f"present_{state}", graph.outputs
    index = next(i for i, v in enumerate(outputs) if v.name == name)
    outputs[index].name = f"{name}{EXACT}"
    integers, kept = nodes.to_integers(state, outputs[index], name)
    integers.name, outputs[index] = name, integers
    if kept is not None:
        kept.name = f"present_{range_of(state)}"
        outputs.append(kept)


def _stored_width(width: int, bits: int, name: str) -> int:
    """Bytes of a token's channels."""
    if width * bits % 8:
        raise InputError(f"{width} channels don't fill bytes", where=name, fix="use an 8-bit cache")
    return width * bits // 8


def _input(name: str, shape: tuple[int, ...], dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
