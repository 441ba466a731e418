"""What the vendor's compiler estimates of a graph, and when it says something."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pocketport.profiles.device import DeviceProfile
from pocketport.profiles.prediction.features import GraphFeatures, Kind
from pocketport.profiles.prediction.parameters import Model
from pocketport.profiles.prediction.roofline import KINDS, Work, handed_over, visited

ESTIMATE = "sa8255p_us"  # the compiler's simulation, microseconds
OLDER_ESTIMATE = "sa8540p_us"  # for an older chip; asked for where activations have 16 bits
BOUNDS = ("sa8255p_us_low", "sa8255p_us_high")  # the compiler's own
UNCOSTED = "sa8255p_ops_without_cost"  # that the estimate is blind to
UNLIKE = 10.0  # times the reference's time for matrices, from which a chip has not what the simulated one computes them with (QCM6690: 32)
LOOSE = 4.0  # times that its bounds may be apart; those of 150 models are at most 3, GPUNet's in float 9 (and 20 times what it takes)
TRAFFIC = (
    "sa8255p_intermediate_fill_bytes", "sa8255p_intermediate_spill_bytes", "sa8255p_output_spill_bytes",
)  # fmt: skip


def certain(estimates: Mapping[str, float]) -> bool:
    """Whether the compiler estimated, and with bounds that say something."""
    low, high = (estimates.get(bound, estimates.get(ESTIMATE, 0.0)) for bound in BOUNDS)
    return ESTIMATE in estimates and high <= LOOSE * low


def estimate_work(estimates: Sequence[Mapping[str, float]], graphs: Sequence[GraphFeatures], precision: str) -> Work:
    """Estimates of `graphs` as `Work`: one op of the simulated milliseconds (of two chips their geometric mean), one of the gigabytes that
    go to DRAM and back, results included.

    What plain kernels visit is added: the compiler has no cost for them.
    """
    times = [math.sqrt(e[ESTIMATE] * e.get(OLDER_ESTIMATE, e[ESTIMATE])) / 1e3 for e in estimates]
    traffic = [sum(e.get(key, 0.0) for key in TRAFFIC) / 1e9 for e in estimates]
    n, kinds = len(estimates), (KINDS.index(Kind.LINEAR), KINDS.index(Kind.MOVE))
    return Work(
        graph=np.repeat(np.arange(n), 2),
        kind=np.tile(np.array(kinds, np.intp), n),
        work=np.stack([times, traffic], 1).reshape(-1),
        megabytes=np.zeros(2 * n),
        spilled=np.zeros(2 * n),
        visited=np.array([v for g in graphs for v in (sum(visited(op, precision) for op in g.ops), 0.0)]),
        io_megabytes=np.zeros(n),
        handed_over=handed_over(graphs),
    )


def simulated(graph: Model, device: DeviceProfile) -> bool:
    """Whether the compiler's simulated chip says something of a device, by its factors in the roofline `graph`."""
    return device.target not in graph.devices or graph.devices[device.target].matrix < UNLIKE
