"""Our plans of the activation arena beside the arenas that onnxruntime, LiteRT and OpenVINO really make on x86.

    python benchmarks/arena_check.py [--json FILE]

What is compared, float32, one thread, for each of the graphs in ``arenas/graphs.py``:

- onnxruntime, the graph as it is (no rewriting, the arena allocator off): the block of its memory pattern is the first large
  allocation of a second run. Planned from the ONNX graph alone.
- LiteRT, built-in reference kernels: from the first to the last byte of its tensors that are not constants. Planned over the
  ops of the .tflite that `pocketport.targets.mediatek` lowers the graph to.
- OpenVINO, f32: of the allocations of compiling, the largest that grows with the input as the input grows, in two larger copies
  of the graph. Planned over its runtime model, for it fuses ops.

``any`` is `arena_of`'s: what any allocator can do with, from the ONNX graph alone. Allocations are seen by a small library that is
compiled here (a C compiler is needed) and preloaded; Linux with glibc.
"""

import argparse
import ctypes
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PRELOADED = "POCKETPORT_HEAP_LOG"
HERE = Path(__file__).parent
TOLERANCE = 10.0  # percent
LEAST = 4096  # bytes of an allocation that is looked at: no graph's arena is smaller
PLAIN, ALIGNED = 1, 2
GROWN = (16, 32)


@dataclass(frozen=True)
class Arena:
    """One engine's arena of one graph, bytes."""

    graph: str
    engine: str
    actual: int
    planned: int
    any: int

    @property
    def error(self) -> float:
        """Percent."""
        return 100 * (self.planned / self.actual - 1)


class HeapLog:
    """Sizes of allocations, from the preloaded library."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.heap_log_start.argtypes = [ctypes.c_size_t, ctypes.c_int]
        self._library.heap_log_sizes.restype = ctypes.POINTER(ctypes.c_size_t)

    def during(self, work: Callable[[], Any], kinds: int) -> tuple[Any, list[int]]:
        """What `work` gives, and the sizes in order."""
        self._library.heap_log_start(LEAST, kinds)
        result = work()
        count = self._library.heap_log_stop()
        sizes = self._library.heap_log_sizes()
        return result, [int(sizes[i]) for i in range(count)]


def onnxruntime_actual(model: Any, log: HeapLog) -> int:
    import numpy as np
    import onnx_ir as ir
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = False
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.zeros(session.get_inputs()[0].shape, np.float32)}
    session.run(None, feeds)
    return log.during(lambda: session.run(None, feeds), PLAIN | ALIGNED)[1][0]


def litert(model: Any) -> tuple[int, int]:
    """Actual and planned."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    from pocketport.profiles.engine_arenas import Step, litert_arena
    from pocketport.targets.mediatek.lower import lower_graph

    lowered = lower_graph("main", model)
    assert not lowered.refused, lowered.refused
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "main.tflite"
        lowered.emitter.save(path, lowered.inputs, lowered.outputs, "arena check")
        interpreter = Interpreter(
            model_path=str(path), num_threads=1, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
        )
        interpreter.allocate_tensors()
        steps = [
            Step(op["op_name"], tuple(map(int, op["inputs"])), tuple(map(int, op["outputs"])))
            for op in interpreter._get_ops_details()
        ]
        inputs = {int(d["index"]) for d in interpreter.get_input_details()}
        outputs = {int(d["index"]) for d in interpreter.get_output_details()}
        spans = {}
        for tensor in inputs | {t for step in steps for t in step.writes}:
            view = interpreter.tensor(tensor)()
            spans[tensor] = (view.__array_interface__["data"][0], view.nbytes)
            del view
        actual = max(a + n for a, n in spans.values()) - min(a for a, _ in spans.values())
        planned = litert_arena(steps, {t: n for t, (_, n) in spans.items()}, inputs, outputs)
    return actual, planned


def openvino(make: Callable[[int], Any], log: HeapLog) -> tuple[int, int]:
    """Actual and planned."""
    import onnx_ir as ir
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}

    def compiled(more: int) -> tuple[Any, list[int]]:
        read = core.read_model(ir.to_proto(make(more)).SerializeToString())
        return log.during(lambda: core.compile_model(read, "CPU", settings), ALIGNED)

    model, sizes = compiled(0)
    pixels = math.prod(model.inputs[0].shape)
    larger = [(math.prod(other.inputs[0].shape) / pixels, set(seen)) for other, seen in map(compiled, GROWN)]
    actual = max(size for size in sizes if all(size * ratio in seen for ratio, seen in larger))
    return actual, openvino_planned(model)


def openvino_planned(model: Any) -> int:
    from pocketport.profiles.engine_arenas import Step, openvino_arena

    numbers: dict[tuple[str, int], int] = {}
    bytes_of: dict[int, int] = {}
    steps = []
    for node in model.get_runtime_model().get_ordered_ops():
        sources = [value.get_source_output() for value in node.inputs()]
        reads = tuple(numbers[s.get_node().get_friendly_name(), s.get_index()] for s in sources)
        for output in node.outputs():
            number = numbers[node.get_friendly_name(), output.get_index()] = len(numbers)
            bytes_of[number] = math.prod(output.get_shape()) * output.get_element_type().size
        writes = tuple(numbers[node.get_friendly_name(), o.get_index()] for o in node.outputs())
        steps.append(Step(node.get_rt_info()["layerType"].astype(str), reads, writes))
    return openvino_arena(steps, bytes_of)


def check() -> list[Arena]:
    from arenas.graphs import GRAPHS

    from pocketport.profiles.arena import arena_of
    from pocketport.profiles.engine_arenas import onnxruntime_arena

    log, found = HeapLog(), []
    for name, make in GRAPHS.items():
        model = make(0)
        least = arena_of(model, float_bits=32).high
        found.append(Arena(name, "onnxruntime", onnxruntime_actual(model, log), onnxruntime_arena(model), least))
        found.append(Arena(name, "LiteRT", *litert(model), least))
        found.append(Arena(name, "OpenVINO", *openvino(make, log), least))
        print(
            name,
            *(f"{a.engine} {a.actual:,} planned {a.planned:,} ({a.error:+.1f} %)" for a in found[-3:]),
            sep="; ",
            flush=True,
        )
    return found


def preload() -> None:
    """Start again with the library that sees allocations."""
    with tempfile.TemporaryDirectory(prefix="pocketport-heap-") as folder:
        library = Path(folder) / "heap_log.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, HERE / "arenas" / "heap_log.c"], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library), PRELOADED: "1"}
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    if PRELOADED not in os.environ:
        preload()
    found = check()
    print()
    for engine in ("onnxruntime", "LiteRT", "OpenVINO"):
        errors = [abs(a.error) for a in found if a.engine == engine]
        exact, within = sum(e < 0.05 for e in errors), sum(e <= TOLERANCE for e in errors)
        print(f"{engine}: {exact} of {len(errors)} exact, {within} within {TOLERANCE:.0f} %, worst {max(errors):.1f} %")
    if arguments.json:
        document = [{**asdict(a), "error_percent": round(a.error, 2)} for a in found]
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
