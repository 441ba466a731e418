"""The compiler's own estimate of how long a graph takes on a chip that it has a performance model for.

QAIRT 2.51 carries one for automotive and cloud parts, none for phones: the figure is that of a SA8255P (v73, 8 MB
of VTCM), a proxy with the same architecture as the sm8550. It is deterministic and executes nothing. Over eight public
float models it follows the times measured on SA8255P boards within 4 % (median; 13 % at worst) after one offset and slope.
Where activations have 16 bits, that of a SA8540P (v68) is given as well: the mean of both is nearer to phones than either
(docs/decisions/0015-latency-from-kinds-of-ops.md).
"""

import contextlib
import csv
import json
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from pocketport.compress.graph import load_graph
from pocketport.errors import ToolchainError
from pocketport.targets.contract import CompileRequest, Lowered, Target
from pocketport.targets.qualcomm.lower import lower
from pocketport.targets.qualcomm.qdq import parameters
from pocketport.targets.qualcomm.session import captured_log, open_session, provider_options
from pocketport.targets.qualcomm.target import SOCS, VENDOR, Soc

PROXY, OLDER = SOCS["sa8255p"], SOCS["sa8540p"]
FIGURES = {
    "us": "Simulated (Accelerator exec time us)",
    "us_low": "Simulated (Accelerator exec time us (lower estimate))",
    "us_high": "Simulated (Accelerator exec time us (upper estimate))",
    "cycles": "Simulated (Accelerator exec cycles)",
    "input_fill_bytes": "Input Fill",
    "intermediate_fill_bytes": "Intermediate Fill",
    "intermediate_spill_bytes": "Intermediate Spill",
    "output_spill_bytes": "Output Spill",
    "ops_without_cost": "Missing Ops (Number of Ops with no Costs associated)",
}
LESS_EFFORT = {"htp_graph_finalization_optimization_mode": "2"}  # a ViT-B: 9 s instead of 29, estimated 5 % longer
INT16 = ("uint16", "int16")


def estimate_graph(request: CompileRequest, lowered: Lowered) -> dict[str, float]:
    """Compile `lowered` once more, for the proxy chips; time (µs, with bounds), cycles and DDR bytes by name.

    A graph that was lowered for v73 or later gives the figures of that form; one for v68 or v69 those of its own.

    Raises:
        ToolchainError: the compiler failed or gave no estimate.
    """
    figures = {f"{PROXY.name}_{name}": value for name, value in _figures(request, lowered, PROXY).items()}
    if computes_in_16_bits(load_graph(request.pivot)):
        # In a folder of its own: `lowered` stays what it is.
        again = replace(request, target=Target(VENDOR, OLDER.name), work=request.work / OLDER.name)
        again.work.mkdir(exist_ok=True)
        figures[f"{OLDER.name}_us"] = _figures(again, lower(again), OLDER, **LESS_EFFORT)["us"]
    return figures


def computes_in_16_bits(model: ir.Model) -> bool:
    """Whether activations of a QDQ graph are quantized to 16 bits."""
    ports = (parameters(node) for node in model.graph.all_nodes() if node.op_type == "QuantizeLinear")
    return any(port is not None and port.dtype in INT16 for port in ports)


def _figures(request: CompileRequest, lowered: Lowered, chip: Soc, **options: str) -> dict[str, float]:
    where = f"{request.component}, estimate on {chip.name}"
    table, wrapper = Path("estimate.csv"), Path("estimate_ctx.onnx")
    given = {
        **provider_options(chip),
        **options,
        **json.loads(lowered.paths["options"].read_text()),
        "profiling_level": "basic",
        "profiling_file_path": str(table),
    }
    entries = {"ep.context_enable": "1", "ep.context_embed_mode": "0", "ep.context_file_path": str(wrapper)}
    with contextlib.chdir(request.work):
        for stale in (table, wrapper, Path(f"{wrapper.stem}_qnn.bin")):
            stale.unlink(missing_ok=True)
        with captured_log("REASON") as log:
            try:
                session = open_session(Path(lowered.paths["onnx"].name), given, entries)
            except Exception as error:  # onnxruntime raises a kind of its own for every status code
                raise ToolchainError(
                    f"{error}\n" + "\n".join(log[-6:]), where=where, fix="see the compiler's words above"
                ) from error
        del session  # the table is complete once the session is gone
        with table.open(newline="") as stream:
            found = {row[-1]: row[2] for row in list(csv.reader(stream))[1:]}
        for leftover in (wrapper, Path(f"{wrapper.stem}_qnn.bin")):
            leftover.unlink(missing_ok=True)
    figures = {name: float(found[key]) for name, key in FIGURES.items() if key in found}
    if "us" not in figures:
        raise ToolchainError("the compiler gave no estimate", where=where, fix="install onnxruntime-qnn 2.7.0")
    return figures
