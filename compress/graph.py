"""Graphs are `onnx_ir.Model`; this module opens, writes and inspects them."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.errors import InputError

EXTERNAL_DATA_THRESHOLD = 256  # bytes; smaller tensors stay in the protobuf
LISTS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
SMALL_BYTES = 4096  # what ONNX's shape inference may want to read is smaller


def load_graph(path: Path) -> ir.Model:
    """Open an ONNX file; external weights are memory-mapped.

    Raises:
        InputError: missing, truncated, not ONNX, or external data that leaves the file's folder.
    """
    if not path.is_file():
        raise InputError("no such file", where=str(path), fix="check the path")
    try:
        proto = onnx.load(path, load_external_data=False)
        check_tensors(proto, path)
        model: ir.Model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)
    except InputError:
        raise
    except Exception as error:  # protobuf, onnx_ir and numpy each raise their own kinds on damaged input
        raise InputError(
            f"not a readable ONNX model: {error}", where=str(path), fix="download or export the file again"
        ) from error
    if not model.graph.outputs:
        raise InputError(
            "the graph has no outputs: the file is empty or truncated",
            where=str(path),
            fix="export the file again",
        )
    _check_external_tensors(model, path)
    return model


def _check_external_tensors(model: ir.Model, path: Path) -> None:
    """External data must lie inside the model's folder, and each tensor's be as long as it says."""
    sizes: dict[str, int] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location, where = str(tensor.location), f"{path}, tensor {value.name}"
        if location not in sizes:
            sizes[location] = _size_beside(path, location, where)
        if tensor.length is not None and tensor.length != tensor.nbytes:
            raise InputError(
                f"its external data are {tensor.length} bytes long, its shape needs {tensor.nbytes}",
                where=where,
                fix="download or export the file again",
            )
        if (tensor.offset or 0) + tensor.nbytes > sizes[location]:
            raise InputError(
                "its external data ends beyond the file: truncated",
                where=where,
                fix="download or export the file again",
            )


def _size_beside(path: Path, location: str, where: str) -> int:
    """Bytes of a file in a model's folder."""
    folder = path.parent.resolve()
    file = (folder / location).resolve()
    if not file.is_relative_to(folder):
        raise InputError(
            f"its external data {location} leaves the model's folder",
            where=where,
            fix="use a file beside the model",
        )
    if not file.is_file():
        raise InputError(
            f"its external data file {location} is missing",
            where=where,
            fix="copy the data file beside the model",
        )
    return file.stat().st_size


def save_graph(model: ir.Model, path: Path) -> None:
    """Write `model` to ``path``, its weights to ``<stem>.data`` beside it. The model in memory is unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path, external_data=f"{path.stem}.data", size_threshold_bytes=EXTERNAL_DATA_THRESHOLD)


def clone_graph(model: ir.Model) -> ir.Model:
    """A copy whose structure can change without touching `model`; the weights' memory is shared."""
    return model.clone()


def inferred(model: ir.Model) -> ir.Model:
    """A copy with every intermediate shape and dtype filled in where ONNX can infer it; weights are shared."""
    proto = ir.to_proto(without_weights(model))
    result = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    shapes = {v.name: v for v in (*result.value_info, *result.output)}
    copy = model.clone()
    for node in copy.graph.all_nodes():
        for output in node.outputs:
            info = shapes.get(output.name or "")
            if info is not None and (static_shape(output) is None or output.dtype is None):
                known = ir.from_proto(info)
                output.shape, output.type = known.shape, known.type
    return copy


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, those in its nodes, subgraphs and functions among them."""
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while waiting:
        graph = waiting.pop()
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            yield from [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
            waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def check_tensors(proto: onnx.ModelProto, path: Path) -> None:
    """Every tensor in the file itself must be as large as its shape says.

    Raises:
        InputError: names the first that is not.
    """
    for tensor in _tensors(proto):
        count = math.prod(tensor.dims)
        wrong = any(d < 0 for d in tensor.dims)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            listed = sum(len(getattr(tensor, name)) for name in LISTS)
            if tensor.HasField("raw_data"):
                wrong |= -(-count * ir.DataType(tensor.data_type).bitwidth // 8) != len(tensor.raw_data)
            else:
                wrong |= count > 8 * listed  # several small integers may share a number
        if wrong:
            raise InputError(
                f"its shape {list(tensor.dims)} is not that of its data",
                where=f"{path}, tensor {tensor.name}",
                fix="download or export the file again",
            )


def without_weights(model: ir.Model) -> ir.Model:
    """A copy whose large initializers are graph inputs, behind the others: what ONNX's C++ tools are to stay under 2 GB."""
    copy = model.clone()
    graph = copy.graph
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > SMALL_BYTES:
            value.shape, value.dtype = ir.Shape(dimensions(tensor)), tensor.dtype
            value.const_value = None
            del graph.initializers[value.name]  # type: ignore[arg-type]
            graph.inputs.append(value)
        elif isinstance(tensor, ir.ExternalTensor):  # a protobuf would keep its file's name but not its folder
            value.const_value = ir.Tensor(tensor.numpy(), name=tensor.name)
    return copy


def hollowed(model: ir.Model) -> ir.Model:
    """A copy whose large initializers are zeros without memory (strides of 0): for looks that need shapes, not weights."""
    copy = model.clone()
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > SMALL_BYTES and tensor.dtype == ir.DataType.FLOAT:
            value.const_value = ir.Tensor(np.broadcast_to(np.float32(0), dimensions(tensor)), name=tensor.name)
    return copy


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The array behind a value that is an initializer or a Constant node's output, else None."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def dimensions(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """A tensor's shape; tensors, unlike values, have no unknown dimensions."""
    return tuple(d for d in tensor.shape if isinstance(d, int))


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape, if every dimension of it is a known integer, else None."""
    if value.shape is None or not all(isinstance(d, int) for d in value.shape):
        return None
    return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The static shape.

    Raises:
        InputError: the shape is unknown or dynamic.
    """
    shape = static_shape(value)
    if shape is None:
        raise InputError(
            f"its shape {value.shape} is not static",
            where=f"tensor {value.name}",
            fix="give the model static input shapes",
        )
    return shape


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The main graph's nodes in topological order."""
    return iter(model.graph)
