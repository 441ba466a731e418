"""How long rounding on samples will take and how much memory, from the plan and a moment of measuring this machine."""

from math import prod

import onnx_ir as ir
import torch

from pocketport.compress.blockwise.estimate import BASE_BYTES, Estimate, best_seconds
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.graph import static_shape
from pocketport.compress.planning.plan import Plan, TensorPlan
from pocketport.compress.reconstruction.layer import VALUES
from pocketport.compress.reconstruction.options import AdaRound, Brecq, SequentialGptq, read_options
from pocketport.compress.reconstruction.pivot import planned_layers
from pocketport.compress.reconstruction.reconstruct import BUDGET
from pocketport.compress.structure import weight_operand
from pocketport.compress.torch_device import best_device, one_thread

CHAIN_PASSES = (
    4  # of every sample: both chains, and the float layers' outputs on drawn rows beside the means of the rounded
)
BACKWARDS = 3  # of one forward pass: with its gradients by inputs and weights
PROBE = 512
PROBES = 4  # runs, of which the best counts
ELEMENT_PASSES = 8  # over an activation, where it is made, rounded and kept


def estimate_on_samples(bundle: ModelBundle, plan: Plan, samples: int) -> Estimate | None:
    """Estimate `reconstruct`; None where the plan rounds nothing on samples.

    Args:
        bundle: the plan's.
        plan: for one target.
        samples: of calibration.
    """
    if not plan.on_samples:
        return None
    products, elements = 0.0, 0.0
    for component in plan:
        chosen = {t.tensor: t for t in component.tensors if t.on_samples}
        graph = bundle[component.component].graph
        if not chosen:
            continue
        made = sum(_elements(v) for node in graph.graph for v in node.outputs)
        forward = sum(2.0 * _elements(n.outputs[0]) * _columns(n) for n in graph.graph if weight_operand(n) is not None)
        products += CHAIN_PASSES * samples * forward
        elements += CHAIN_PASSES * samples * made * ELEMENT_PASSES
        steps = 0.0  # of blocks: so many runs of the whole component, forwards and backwards
        for node in planned_layers(graph, chosen):
            tensor = chosen[weight_operand(node).value.name or ""]  # type: ignore[union-attr]
            options = read_options(tensor.algorithm, tensor.options)
            products += _flops(node, tensor, options, samples)
            if isinstance(options, Brecq):
                steps = max(steps, float(options.iterations * options.samples))
        products += BACKWARDS * steps * forward
        elements += BACKWARDS * steps * made * ELEMENT_PASSES
    flops, rate = _measured()
    held = min(BUDGET, 8 * samples * max(sum(_elements(v) for v in c.graph.graph.inputs) for c in bundle))
    peak = BASE_BYTES + 3 * max(c.bytes_before for c in plan) + BUDGET // 2 + held // 2 + 3 * 4 * VALUES
    basis = f"measured here: {flops / 1e9:.0f} GFLOP/s, {rate / 1e9:.1f} G elements/s, one thread"
    return Estimate(products / flops + elements / rate, peak, basis)


def _flops(node: ir.Node, tensor: TensorPlan, options: object, samples: int) -> float:
    """Of one layer, beside the chains."""
    columns = _columns(node)
    rows = tensor.elements / columns
    if isinstance(options, AdaRound):
        return BACKWARDS * 2.0 * options.iterations * options.rows * tensor.elements
    if isinstance(options, Brecq):
        return 0.0
    groups = node.attributes.get_int("group", 1) or 1 if node.op_type == "Conv" else 1
    places = min(samples * _elements(node.outputs[0]) / rows, VALUES / (columns * groups))
    sums = 2.0 * places * groups * columns**2
    sweeps = options.sweeps if isinstance(options, SequentialGptq) else 0
    return sums + 2.0 * tensor.elements * columns * (1 + 3 * sweeps) + 4.0 * groups * columns**3


def _columns(node: ir.Node) -> int:
    """Products that make one output of a layer; 0 where it looks up a table."""
    operand = weight_operand(node)
    if operand is None or operand.kind == "table":
        return 0
    shape = static_shape(operand.value) or ()
    return prod(shape) // shape[operand.channel_axis]


def _elements(value: ir.Value) -> int:
    return prod(static_shape(value) or (0,))


def _measured() -> tuple[float, float]:
    """Flops of matrix products a second, and elements that are passed over, on one thread."""
    matrix = torch.rand(PROBE, PROBE, device=best_device())
    many = torch.rand(1 << 22, device=best_device())
    with one_thread():
        product, passed = best_seconds(lambda: matrix @ matrix, PROBES), best_seconds(lambda: many * 1.5, PROBES)
    return 2.0 * PROBE**3 / product, many.numel() / passed
