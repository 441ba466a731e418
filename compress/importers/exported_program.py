"""`torch.export.ExportedProgram`, in memory or as a ``.pt2`` file → ModelBundle of one component, ``main``."""

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch.export import ExportedProgram

from pocketport.compress.bundle import Component, ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.registry import Pair
from pocketport.compress.graph import load_graph, save_graph
from pocketport.compress.importers.onnx_import import import_graph
from pocketport.compress.importers.pt2_archive import open_pt2
from pocketport.compress.random_inputs import random_input
from pocketport.errors import InputError, UsageError
from pocketport.files import sha256_file

OPSET = 23
SUFFIX = ".pt2"
SAMPLE_SEED, SAMPLE_COUNT = 7, 2


def load_exported(
    program: ExportedProgram | Path, shapes: Mapping[str, Sequence[int]], *, keep_rows: bool = True
) -> ModelBundle:
    """Translate a program to ONNX with torch's own exporter, and bring it to the form that everything after relies on.

    Args:
        program: in memory, or a ``.pt2`` file, which is opened without unpickling (see `pt2_archive`).
        shapes: static shapes by input name, for inputs whose dimensions the program leaves open.
        keep_rows: see `simplify`.

    Raises:
        UsageError: onnxscript is not installed, or as `load_onnx`.
        InputError: the file is damaged or hostile, the program can't be translated, or as `load_onnx`.
    """
    name = program.stem if isinstance(program, Path) else "program"
    where = program if isinstance(program, Path) else Path("ExportedProgram")
    opened = open_pt2(program) if isinstance(program, Path) else program
    sha256 = sha256_file(program) if isinstance(program, Path) else _digest(program)
    model = translated(opened, where)
    with tempfile.TemporaryDirectory(prefix="pocketport-exported-") as folder:
        path = Path(folder) / f"{name}.onnx"
        save_graph(model, path)
        graph, config = import_graph(load_graph(path), path, shapes, keep_rows=keep_rows)
        for value in graph.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):  # the folder will be gone
                value.const_value = ir.Tensor(np.array(value.const_value.numpy()), name=value.name)
    return ModelBundle(name, "exported", sha256, {"main": Component("main", graph)}, config={"shapes": config})


def translated(program: ExportedProgram, where: Path) -> ir.Model:
    """The program in ONNX, opset 23, by ``torch.onnx.export(dynamo=True)``.

    Raises:
        UsageError: onnxscript is not installed.
        InputError: torch can't translate it.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "onnxscript is not installed: torch translates programs with it",
            where=str(where),
            fix='pip install "pocketport[export]"',
        ) from error
    try:
        with _quiet():
            translation = torch.onnx.export(program, (), dynamo=True, opset_version=OPSET, verbose=False)
    except Exception as error:  # the exporter raises its own kinds and torch's
        raise InputError(
            f"torch can't translate it to ONNX: {error}", where=str(where), fix="export the model to ONNX yourself"
        ) from error
    assert translation is not None
    model: ir.Model = translation.model
    return model


def compare_exported(bundle: ModelBundle, program: ExportedProgram | Path) -> Iterator[Pair]:
    """The program's own outputs against the graph's, on random inputs."""
    opened = open_pt2(program) if isinstance(program, Path) else program
    module, graph = opened.module(check_guards=False), bundle["main"].graph.graph
    executor, rng = OrtExecutor(bundle["main"].graph), np.random.default_rng(SAMPLE_SEED)
    declared = [opened_value.meta["val"] for opened_value in _inputs(opened)]
    for _ in range(SAMPLE_COUNT):
        feeds, tensors = {}, []
        for value, meta in zip(graph.inputs, declared, strict=True):
            array = random_input(value, rng)
            feeds[str(value.name)] = array
            tensors.append(torch.from_numpy(array).to(meta.dtype))
        spec = opened.call_spec.in_spec
        assert spec is not None
        arguments, keywords = torch.utils._pytree.tree_unflatten(tensors, spec)
        with torch.inference_mode():
            expected = torch.utils._pytree.tree_leaves(module(*arguments, **keywords))
        found = executor.run(feeds)
        for output, tensor in zip(graph.outputs, expected, strict=True):
            yield "main", str(output.name), tensor.numpy(), found[str(output.name)]


def _inputs(program: ExportedProgram) -> list[torch.fx.Node]:
    """The placeholders of what the user gives, in order."""
    names = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


def _digest(program: ExportedProgram) -> str:
    """Hash of the graph's text and of every tensor."""
    digest = hashlib.sha256(str(program.graph).encode())
    for name, tensor in sorted({**program.state_dict, **program.tensor_constants}.items()):
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + raw.numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages that it could use too."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
