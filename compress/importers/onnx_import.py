"""Any ONNX file → ModelBundle of one component, ``main``: static shapes, a recent opset, one op for one function."""

import math
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
import psutil
from onnx import version_converter

from pocketport.compress.builder import IR_VERSION, OPSET
from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.graph import clone_graph, inferred, load_graph, static_shape, without_weights
from pocketport.compress.passes.base import run_passes
from pocketport.compress.passes.narrow_inputs import NarrowInputs
from pocketport.compress.passes.remove_noops import RemoveNoops
from pocketport.compress.passes.simplify import fold, simplify
from pocketport.errors import InputError, UsageError
from pocketport.files import sha256_files

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
QUANTIZED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    }
)
SPARE_BYTES = 1 << 30
MOST_TENSOR_BYTES = 16 << 30  # no phone has room for one activation of this size
OTHER_FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


def load_onnx(path: Path, shapes: Mapping[str, Sequence[int]], *, keep_rows: bool = True) -> ModelBundle:
    """Open an ONNX file and bring it to the form that everything after relies on.

    Args:
        path: the file; external weights beside it.
        shapes: static shapes by input name, for the inputs whose dimensions the file leaves open.
        keep_rows: see `simplify`.

    Raises:
        InputError: not a valid ONNX model, not a float32 one, an op that no opset has, or control flow that does
            not fold away.
        UsageError: an input's shape is open and not in `shapes`, or `shapes` contradicts the file.
    """
    opened = load_graph(path)
    model, config = import_graph(opened, path, shapes, keep_rows=keep_rows)
    return ModelBundle(
        name=path.stem,
        family="onnx",
        sha256=sha256_files({path, *external_files(opened)}),
        components={"main": Component("main", model)},
        config={"shapes": config},
    )


def import_graph(
    model: ir.Model, path: Path, shapes: Mapping[str, Sequence[int]], prefix: str = "", *, keep_rows: bool = True
) -> tuple[ir.Model, dict[str, list[int]]]:
    """An opened file in the form that everything after relies on, and the shapes of its inputs; see `load_onnx`.

    Args:
        model: what `path` holds; unchanged.
        path: for errors.
        shapes: static shapes by input name.
        prefix: of input names where users write them (``decoder.``).
        keep_rows: see `simplify`.
    """
    most = SPARE_BYTES + 2 * sum(file.stat().st_size for file in (path, *external_files(model)))
    try:
        with memory_bound(most):
            done = normalized(clone_graph(model), shapes, path, prefix, keep_rows=keep_rows)
    except MemoryError as error:
        raise InputError(
            f"more than {most >> 20} MB are needed to simplify it",
            where=str(path),
            fix="export the model without constants that fill memory",
        ) from error
    return done, {str(v.name): list(static_shape(v) or ()) for v in done.graph.inputs}


def external_files(model: ir.Model) -> set[Path]:
    """The files that hold a model's external weights."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return {Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}


def normalized(
    model: ir.Model, shapes: Mapping[str, Sequence[int]], path: Path, prefix: str = "", *, keep_rows: bool = True
) -> ir.Model:
    """The model with static shapes, a recent opset, and one op for one function; see `load_onnx`."""
    _check_ops(model, path)
    _remove_initialized_inputs(model)
    model = _with_static_inputs(model, shapes, path, prefix)
    model = simplify(_with_opset(fold(model), path), keep_rows=keep_rows)
    model = run_passes(model, [NarrowInputs(), RemoveNoops()]).graph
    _check_float(model, path)
    _check_static(model, path)
    return model


@contextmanager
def memory_bound(extra: int) -> Iterator[None]:
    """The process may allocate `extra` bytes more than now; then MemoryError.

    ONNX's shape inference counts out constants element by element, so that a few bytes of a file could fill any memory. Files
    that are only mapped do not count: every external tensor maps the whole of its file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = psutil.Process().memory_info().data + extra
    resource.setrlimit(resource.RLIMIT_DATA, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _check_ops(model: ir.Model, path: Path) -> None:
    """Every op must be in an opset that the file imports, or be a function of the file."""
    functions = {(f.domain, f.name) for f in model.functions.values()}
    for node in model.graph.all_nodes():
        if (node.domain, node.op_type) in functions:
            continue
        version = model.opset_imports.get(node.domain, 0)
        if not (version and onnx.defs.has(node.op_type, version, node.domain)):
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise InputError(
                f"the op {operator} is in no ONNX opset {version or 'that the file imports'}",
                where=f"{path}, node {node.name or node.outputs[0].name}", fix="export the model with standard ONNX ops only",
            )  # fmt: skip


def _remove_initialized_inputs(model: ir.Model) -> None:
    """Before IR version 4 weights were listed as inputs too."""
    for value in [v for v in model.graph.inputs if v.name in model.graph.initializers]:
        model.graph.inputs.remove(value)


def _with_static_inputs(model: ir.Model, shapes: Mapping[str, Sequence[int]], path: Path, prefix: str) -> ir.Model:
    """Fix the inputs' shapes, and forget what the file says about shapes that follow from them."""
    inputs = {str(v.name): v for v in model.graph.inputs}
    for name in shapes:
        if name not in inputs:
            raise UsageError(
                f"no input {name!r}; it has {', '.join(inputs)}",
                where=f"{path}, --shape",
                fix="name one of those",
            )
    for name, value in inputs.items():
        declared = (
            [d if isinstance(d, int) and d > 0 else None for d in value.shape] if value.shape is not None else None
        )
        given = list(shapes[name]) if name in shapes else declared
        if given is None or None in given:
            shown = "?" if declared is None else ",".join("?" if d is None else str(d) for d in declared)
            raise UsageError(
                f"its shape is open: [{shown}]",
                where=f"{path}, input {name}",
                fix=f"say which, e.g. --shape {prefix}{name}={_example(declared)}",
            )
        fits = declared is None or (
            len(given) == len(declared) and all(d in (None, g) for g, d in zip(given, declared, strict=True))
        )
        if not fits or not all(isinstance(d, int) and d > 0 for d in given):
            raise UsageError(
                f"{given} does not fit the declared shape {declared}",
                where=f"{path}, input {name}",
                fix="give one that does",
            )
        value.shape = ir.Shape([d for d in given if d is not None])
    for node in model.graph.all_nodes():
        for output in node.outputs:
            output.shape = None
    _check_sizes(model, path)
    return inferred(model)


def _check_sizes(model: ir.Model, path: Path) -> None:
    """No tensor may be said to fill any memory: shape inference that follows constants would count it out."""
    graph = onnx.shape_inference.infer_shapes(ir.to_proto(without_weights(model))).graph
    for value in graph.value_info:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if math.prod(dims) * 4 > MOST_TENSOR_BYTES:
            raise InputError(
                f"{value.name} would have the shape {dims}", where=str(path), fix="export the model with smaller shapes"
            )


def _example(declared: Sequence[int | None] | None) -> str:
    return ",".join("1" if d is None else str(d) for d in declared) if declared else "1,3,224,224"


def _with_opset(model: ir.Model, path: Path) -> ir.Model:
    """The model at opset `OPSET` or later. Weights stay outside while ONNX's converter works."""
    if model.graph.opset_imports.get("", 1) >= OPSET:
        return model
    weights = {v.name: v.const_value for v in model.graph.initializers.values()}
    bare = without_weights(model)
    kept = len(model.graph.inputs)
    try:
        converted: ir.Model = ir.from_proto(version_converter.convert_version(ir.to_proto(bare), OPSET))
    except Exception as error:  # the converter raises RuntimeError and its own kinds
        raise InputError(
            f"it cannot be brought to opset {OPSET}: {error}",
            where=str(path),
            fix=f"export it with opset {OPSET}",
        ) from error
    converted.ir_version = IR_VERSION
    for value in list(converted.graph.inputs)[kept:]:
        converted.graph.inputs.remove(value)
        value.const_value = weights[value.name]
        converted.graph.register_initializer(value)
    return converted


def _check_float(model: ir.Model, path: Path) -> None:
    """Everything after starts from float32: a model that is quantized already, or of another width, is refused."""
    for node in model.graph:
        where = f"{path}, node {node.name or node.outputs[0].name}"
        if node.op_type in QUANTIZED:
            raise InputError(
                f"the model is quantized already ({node.op_type})", where=where, fix="give the float model"
            )
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.dtype in OTHER_FLOATS:
                raise InputError(
                    f"{value.name} is {value.dtype.name}, not FLOAT", where=where, fix="export the model in float32"
                )


def _check_static(model: ir.Model, path: Path) -> None:
    """Nothing dynamic may be left: the targets' compilers take static graphs only."""
    for node in model.graph:
        where = f"{path}, node {node.name or node.outputs[0].name}"
        if node.op_type in CONTROL_FLOW:
            raise InputError(
                f"{node.op_type} depends on the input's values",
                where=where,
                fix="export the model without control flow",
            )
        for output in node.outputs:
            if output.name and math.prod(static_shape(output) or ()) * 4 > MOST_TENSOR_BYTES:
                raise InputError(
                    f"{output.name} ({node.op_type}) would have the shape {list(static_shape(output) or ())}",
                    where=where, fix="export the model with smaller shapes",
                )  # fmt: skip
            if output.name and static_shape(output) is None:
                raise InputError(
                    f"the shape of {output.name} ({node.op_type}) depends on the input's values",
                    where=where, fix="export the model with static shapes",
                )  # fmt: skip
    if not any(value.uses() for value in model.graph.inputs):
        raise InputError("its outputs do not depend on any input", where=str(path), fix="export the model again")
