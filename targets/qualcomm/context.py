"""What a QNN context binary says about itself, read with the vendor's own ``libQnnSystem.so``.

The structures follow the public headers QnnSystemContext.h, QnnSystemInterface.h and HTP/QnnHtpSystemContext.h
(context binary info version 3, the one that QAIRT 2.51 writes).
"""

import ctypes as c
import os
from dataclasses import dataclass
from pathlib import Path

from pocketport.errors import InputError, ToolchainError
from pocketport.targets.qualcomm.target import Soc


@dataclass(frozen=True)
class GraphInfo:
    """One graph of a context. Sizes are bytes; `spill_fill` is the DDR buffer that VTCM overflows into."""

    name: str
    inputs: int
    outputs: int
    vtcm: int
    spill_fill: int
    io: int
    constants: int
    shared_weights: int


@dataclass(frozen=True)
class ContextInfo:
    """A context binary: the SoC (``soc_model``) and Hexagon architecture it is for, who built it, its graphs."""

    soc_model: int
    arch: int
    build: str
    graphs: tuple[GraphInfo, ...]

    def facts(self) -> dict[str, str | int | float]:
        """The figures that an Artifact carries, summed over the graphs."""
        return {
            "soc_model": self.soc_model,
            "hexagon": f"v{self.arch}",
            "build": self.build,
            "vtcm_bytes": max(g.vtcm for g in self.graphs),
            "spill_fill_bytes": sum(g.spill_fill for g in self.graphs),
            "io_bytes": sum(g.io for g in self.graphs),
            "constant_bytes": sum(g.constants for g in self.graphs),
        }

    def differences(self, soc: Soc) -> str:
        """What differs from `soc`, as text; empty when the binary is for it."""
        asked = {"soc_model": soc.model, "architecture": soc.arch, "VTCM bytes": soc.vtcm_mb << 20}
        found = {"soc_model": self.soc_model, "architecture": self.arch, "VTCM bytes": max(g.vtcm for g in self.graphs)}
        return "; ".join(f"{k} {found[k]}, asked {v}" for k, v in asked.items() if found[k] != v)


def _structure(name: str, *fields: tuple[str, type]) -> type[c.Structure]:
    return type(name, (c.Structure,), {"_fields_": list(fields)})


_U32, _U64, _PTR, _TEXT = c.c_uint32, c.c_uint64, c.c_void_p, c.c_char_p
_Version = _structure("Version", ("major", _U32), ("minor", _U32), ("patch", _U32))
_Interface = _structure(
    "Interface", ("backend", _U32), ("name", _TEXT), ("version", _Version), ("functions", c.c_void_p * 12)
)
_Graph = _structure(
    "Graph", ("version", _U32), ("name", _TEXT), ("inputs", _U32), ("input_list", _PTR), ("outputs", _U32),
    ("output_list", _PTR), ("updatable", _U32), ("updatable_list", _PTR), ("blob_bytes", _U32), ("blob", _PTR),
    ("start_op", _U32), ("end_op", _U32),
)  # fmt: skip
_BinaryV3 = _structure(
    "BinaryV3", ("backend", _U32), ("build", _TEXT), ("core", _Version), ("backend_version", _Version),
    ("soc", _TEXT), ("context_version", _Version), ("context_bytes", _U64), ("tensors", _U32), ("tensor_list", _PTR),
    ("graphs", _U32), ("graph_list", c.POINTER(_Graph)), ("platform", _PTR), ("metadata_bytes", _U32),
    ("metadata", _PTR), ("soc_model", _U32),
)  # fmt: skip
_Binary = _structure("Binary", ("version", _U32), ("v3", _BinaryV3))
# Version 1 of the graph blob, then (where the blob is this long) version 2 of its memory figures from byte 40 on.
_GraphBlob = _structure(
    "GraphBlob", ("version", _U32), ("spill_fill", _U64), ("vtcm", _U32), ("optimization", _U32), ("dlbc", c.c_uint8),
    ("hvx_threads", _U64), ("memory_version", _U64), ("key_channels", _U64), ("value_channels", _U64),
    ("shared_io", _U64), ("io", _U64), ("op_data", _U64), ("constants", _U64), ("ddr_tensors", _U64),
    ("shared_weights", _U64),
)  # fmt: skip


def read_context(path: Path) -> ContextInfo:
    """Read the binary at `path`.

    Raises:
        InputError: it is not a QNN context binary, or one of another layout than QAIRT 2.51 writes.
        ToolchainError: the vendor's library does not load.
    """
    import onnxruntime_qnn

    folder = os.path.dirname(onnxruntime_qnn.get_library_path())  # noqa: PTH120
    try:
        library = c.CDLL(f"{folder}/libQnnSystem.so")
    except OSError as error:
        raise ToolchainError(
            f"libQnnSystem.so does not load: {error}", where="onnxruntime-qnn", fix="install it again"
        ) from error
    providers = c.POINTER(c.POINTER(_Interface))()
    count = _U32()
    _check(library.QnnSystemInterface_getProviders(c.byref(providers), c.byref(count)), path)
    functions = providers[0].contents.functions
    create = c.CFUNCTYPE(_U64, c.POINTER(_PTR))(functions[0])
    describe = c.CFUNCTYPE(_U64, _PTR, _PTR, _U64, c.POINTER(c.POINTER(_Binary)), c.POINTER(_U64))(functions[1])
    free = c.CFUNCTYPE(_U64, _PTR)(functions[2])
    handle, data, found, size = _PTR(), path.read_bytes(), c.POINTER(_Binary)(), _U64()
    _check(create(c.byref(handle)), path)
    try:
        buffer = c.create_string_buffer(data, len(data))
        _check(describe(handle, buffer, len(data), c.byref(found), c.byref(size)), path)
        binary = found.contents.v3
        if found.contents.version != 3 or binary.metadata_bytes < 8:
            raise InputError(
                f"its layout is version {found.contents.version}", where=str(path), fix="compile it with QAIRT 2.51"
            )
        metadata = (_U32 * 2).from_address(binary.metadata)
        graphs = tuple(_graph(binary.graph_list[i], path) for i in range(binary.graphs))
        return ContextInfo(binary.soc_model, metadata[1], binary.build.decode(), graphs)
    finally:
        free(handle)


def _graph(graph: c.Structure, path: Path) -> GraphInfo:
    if graph.version != 3 or graph.blob_bytes < c.sizeof(_GraphBlob):
        raise InputError(
            f"its graph layout is version {graph.version}", where=str(path), fix="compile it with QAIRT 2.51"
        )
    blob = _GraphBlob.from_address(graph.blob)
    return GraphInfo(
        graph.name.decode(),
        graph.inputs,
        graph.outputs,
        blob.vtcm,
        blob.spill_fill,
        blob.io,
        blob.constants,
        blob.shared_weights,
    )


def _check(code: int, path: Path) -> None:
    if code:
        raise InputError(f"not a QNN context binary (code {code:#x})", where=str(path), fix="compile it again")
