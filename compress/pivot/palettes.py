"""Palettes in pivots: weights that are indices into look-up tables, in ONNX's own ops.

The indices, uint4 or uint8 in the weight's shape, go through Cast, where there are several tables through Add of where the
table of their channel begins, and Gather takes numbers out of the tables, which lie one behind another::

    weight = Gather(tables [groups · 2^bits], Cast(indices) + offsets [channels, 1, …])
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pocketport.calibration.encodings import Palette
from pocketport.compress.graph import constant, dimensions

INDEX_DTYPES = (ir.DataType.UINT4, ir.DataType.UINT8)


@dataclass(frozen=True)
class StoredPalette:
    """One weight of a pivot that is stored as indices.

    Attributes:
        indices: the constant, in the weight's shape.
        table: the constant that holds all tables.
        offsets: the constant of where each channel's table begins; None where there is one table.
        nodes: what looks the weight up, in order; the last one gives it.
        groups: number of tables.
    """

    indices: ir.Value
    table: ir.Value
    offsets: ir.Value | None
    nodes: tuple[ir.Node, ...]
    groups: int

    @property
    def bits(self) -> int:
        """Of an index."""
        return round(math.log2(_elements(self.table) / self.groups))

    def palette(self) -> Palette:
        """The tables; a weight with one has it along dimension 0."""
        table = np.asarray(constant(self.table), np.float32).reshape(self.groups, -1)
        shape = () if self.offsets is None else np.asarray(constant(self.offsets)).shape
        return Palette(table, next((axis for axis, size in enumerate(shape) if size > 1), 0))


def stored_palette(value: ir.Value | None) -> StoredPalette | None:
    """The palette behind a value; None if it is anything else."""
    gather = _producer(value, "Gather")
    if gather is None or gather.attributes.get_int("axis", 0) != 0 or not _is_constant(gather.inputs[0], 1):
        return None
    table, offsets, groups, chosen = gather.inputs[0], None, 1, gather.inputs[1]
    assert table is not None
    add = _producer(chosen, "Add")
    if add is not None:
        chosen, offsets = add.inputs
        if offsets is None or not _is_constant(offsets, None):
            return None
        starts = np.unique(np.asarray(constant(offsets)))
        groups = len(starts)
        if not np.array_equal(starts, np.arange(groups) * (_elements(table) // groups)):
            return None
    cast = _producer(chosen, "Cast")
    indices = None if cast is None else cast.inputs[0]
    if cast is None or indices is None or indices.dtype not in INDEX_DTYPES or not _is_constant(indices, None):
        return None
    return StoredPalette(indices, table, offsets, tuple(n for n in (cast, add, gather) if n is not None), groups)


def stored_palettes(graph: ir.Graph) -> dict[ir.Value, StoredPalette]:
    """Every weight of a graph that is stored as indices, by the value that is looked up."""
    found = ((node.outputs[0], stored_palette(node.outputs[0])) for node in graph if node.op_type == "Gather")
    return {value: palette for value, palette in found if palette is not None}


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type and node.domain in ("", "ai.onnx") else None


def _is_constant(value: ir.Value | None, rank: int | None) -> bool:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and rank in (None, len(dimensions(tensor)))


def _elements(value: ir.Value) -> int:
    tensor = ir.convenience.get_const_tensor(value)
    return 0 if tensor is None else math.prod(dimensions(tensor))
