"""Latency of a component on an NPU, before anyone holds the phone.

Two predictors, one interface. From the graph alone, a roofline (Williams et al. 2009, doi 10.1145/1498765.1498785)::

    milliseconds = max(ms_per_gmac·GMACs + ms_per_op·ops, bytes / (dram_share·dram_gbps)) + offset_ms

where bytes are the constants streamed plus the graph's inputs and outputs. And, where the vendor's compiler gives
an estimate of its own and the device's profile knows what that estimate is worth, a line through it. Coefficients
and errors come from ``benchmarks/fit_roofline.py``, never from here.
"""

from collections.abc import Mapping

from pocketport.compress.schemes import Scheme
from pocketport.profiles.cost import ComponentCost
from pocketport.profiles.device import DeviceProfile, GraphModel, Spread
from pocketport.profiles.measurement import Measurement, Provenance, ProvenanceKind


def precision_of(scheme: str) -> str:
    """The precision that decides the compute rate: ``float``, ``w8a8`` or ``w8a16``; weight width only moves bytes."""
    bits = Scheme.parse(scheme).activation_bits
    return "float" if bits is None else f"w8a{bits}"


def graph_latency_ms(model: GraphModel, device: DeviceProfile, *, macs: float, ops: float, moved_bytes: float) -> float:
    """The roofline of the module's docstring, milliseconds."""
    compute = model.ms_per_gmac * macs / 1e9 + model.ms_per_op * ops
    memory = moved_bytes / (device.dram_share.value * device.dram_gbps.value * 1e6)
    return max(compute, memory) + model.offset_ms


def predict_component(
    cost: ComponentCost,
    device: DeviceProfile,
    *,
    scheme: str,
    estimates: Mapping[str, float],
    name: str = "latency",
) -> Measurement | None:
    """Predicted latency of one call.

    Args:
        cost: of the graph as it is compiled, costed with ``float_bits=16``.
        device: the chip's profile.
        scheme: how the component is quantized.
        estimates: ``CompileResult.estimates``.
        name: of the Measurement.

    Returns:
        Milliseconds with the interval that held 80 % of held-out measurements, or None where the profile has no
        model for the scheme's precision.
    """
    precision = precision_of(scheme)
    informed = device.compiler.get(precision)
    if informed is not None and informed.estimate in estimates:
        value = informed.slope * estimates[informed.estimate] / 1e3 + informed.offset_ms
        return _measurement(name, value, informed.spread, f"the compiler's estimate, mapped to {device.name}")
    model = device.graph.get(precision)
    if model is None:
        return None
    value = graph_latency_ms(
        model, device, macs=cost.macs, ops=cost.ops, moved_bytes=cost.streamed_bytes + cost.io_bytes
    )
    bits = Scheme.parse(scheme).weight_bits
    borrowed = f"; {precision} rates with {bits}-bit weights" if bits not in (None, 8) and precision != "float" else ""
    return _measurement(name, value, model.spread, f"{precision} roofline of {device.name}{borrowed}")


def _measurement(name: str, value: float, spread: Spread, model: str) -> Measurement:
    provenance = Provenance(ProvenanceKind.PREDICTED, f"{model}; {spread.evidence}")
    return Measurement(name, value, "ms", provenance, low=value * spread.low, high=value * spread.high)
