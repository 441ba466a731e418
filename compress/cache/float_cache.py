"""Graphs with an integer cache, used as those with a float one are: for samples that the float graphs gave, for comparing."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pocketport.compress.cache.integer_cache import cache_states, range_of
from pocketport.compress.cache.nodes import LEAST_STEP, VALUE, CacheNodes, channel_constants
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.graph import clone_graph, inferred, shape_of


@dataclass(frozen=True)
class CacheConversion:
    """What a host would have to do to keep floats for a graph; nothing where its cache is float.

    Attributes:
        bits: of an integer; 0: floats.
        channels: ``key_i`` → least and step, [kv, 1, d] each.
    """

    bits: int = 0
    channels: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: ir.Model) -> "CacheConversion":
        """That of ``prefill`` or ``decode``; other components have none."""
        keys = [v for v in graph.graph.outputs if v.dtype is ir.DataType.UINT8 and cache_states([v])]
        states = {state: v for v in keys for state in cache_states([v]) if not state.startswith(VALUE)}
        if not states:
            return cls()
        channels = {state: channel_constants(graph.graph, state) for state in states}
        state, value = next(iter(states.items()))
        return cls(8 * shape_of(value)[-1] // channels[state][0].shape[-1], channels)

    def stored(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Inputs of the graph from those of its float twin."""
        found = dict(feeds)
        for state in self._states(feeds, "past_"):
            x, levels = np.asarray(feeds[f"past_{state}"], np.float32), np.float32(2**self.bits - 1)
            if state.startswith(VALUE):
                least = x.min(axis=-1, keepdims=True)
                step = np.maximum((x.max(axis=-1, keepdims=True) - least) / levels, np.float32(LEAST_STEP))
                found[f"past_{range_of(state)}"] = np.concatenate([least, step], axis=-1)
            else:
                least, step = self.channels[state]
            integers = np.clip(np.rint((x - least) / step), 0, levels).astype(np.uint8)
            if self.bits == 4:
                low, high = np.split(integers, 2, axis=-1)
                integers = low | high << 4
            found[f"past_{state}"] = integers
        return found

    def restored(self, results: Arrays) -> dict[str, NDArray[np.generic]]:
        """Outputs of the float twin from those of the graph."""
        found = dict(results)
        for state in self._states(results, "present_"):
            integers = np.asarray(results[f"present_{state}"], np.uint8)
            if self.bits == 4:
                integers = np.concatenate([integers & 15, integers >> 4], axis=-1)
            if state.startswith(VALUE):
                least, step = np.split(np.asarray(found.pop(f"present_{range_of(state)}"), np.float32), 2, axis=-1)
            else:
                least, step = self.channels[state]
            found[f"present_{state}"] = integers.astype(np.float32) * step + least
        return found

    def _states(self, arrays: Arrays, prefix: str) -> list[str]:
        own = {*self.channels, *(VALUE + state.partition("_")[2] for state in self.channels)}
        return [state for state in sorted(own) if f"{prefix}{state}" in arrays]


def with_float_ends(model: ir.Model) -> ir.Model:
    """The graph with a float cache as inputs and outputs, which it rounds as the host's integers would be.

    Itself where its cache is float.
    """
    bits = CacheConversion.of(model).bits
    if not bits:
        return model
    copy = clone_graph(model)
    graph = copy.graph
    first, before, behind = next(iter(graph)), CacheNodes(graph, bits), CacheNodes(graph, bits)
    values = {v.name: v for v in (*graph.inputs, *graph.outputs)}
    for state in cache_states(graph.inputs):
        name = f"past_{state}"
        stored, kept = values[name], values.get(f"past_{range_of(state)}")
        *outer, width = shape_of(stored)
        shape = ir.Shape((*outer, 8 * width // bits))
        given = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        integers, token_range = before.to_integers(state, given, f"{name}/given")
        ir.convenience.replace_all_uses_with(stored, integers)
        graph.inputs[graph.inputs.index(stored)] = given
        if kept is not None and token_range is not None:
            ir.convenience.replace_all_uses_with(kept, token_range)
            graph.inputs.remove(kept)
    graph.insert_before(first, before.made)
    for state in cache_states(graph.outputs):
        name = f"present_{state}"
        stored, kept = values[name], values.get(f"present_{range_of(state)}")
        floats = behind.to_floats(state, stored, kept, f"{name}/taken")
        graph.outputs[graph.outputs.index(stored)] = floats
        stored.name, floats.name = f"{name}/stored", name
        if kept is not None:
            graph.outputs.remove(kept)
    graph.extend(behind.made)
    RemoveUnusedNodesPass()(copy)
    return inferred(copy)
