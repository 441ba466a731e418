"""AIMET-ONNX, for `vision_weights.py`; runs in an environment that has AIMET-ONNX.

``python aimet_quantize.py MODEL CALIBRATION.npz OUT OPTIONS``: OPTIONS is JSON with `bits` of the weights, `scheme` of the
ranges (``min_max`` or ``tf_enhanced``) and `rounding` (empty, ``seq_mse`` or ``adaround``). Every op that AIMET's default
configuration quantizes becomes integer, weights per channel. Prints the seconds without imports as JSON.
"""

import json
import sys
import time

import numpy as np
import onnx
from aimet_onnx import QuantizationSimModel, apply_adaround, apply_seq_mse, int4, int8
from aimet_onnx.common.quantsim_config.utils import get_path_for_per_channel_config

ADAROUND_ITERATIONS = 2000


def main() -> None:
    """Quantize and save."""
    model, calibration, out, text = sys.argv[1:]
    options = json.loads(text)
    start, cpu = time.perf_counter(), time.process_time()
    arrays = dict(np.load(calibration))
    count = len(next(iter(arrays.values())))
    samples = [{name: array[i] for name, array in arrays.items()} for i in range(count)]
    simulated = QuantizationSimModel(
        onnx.load(model), param_type={8: int8, 4: int4}[options["bits"]], activation_type=int8,
        quant_scheme=options["scheme"], config_file=get_path_for_per_channel_config(),
    )  # fmt: skip
    if options["rounding"] == "seq_mse":
        apply_seq_mse(simulated, samples)
    elif options["rounding"] == "adaround":
        apply_adaround(simulated, samples, num_iterations=ADAROUND_ITERATIONS)
    simulated.compute_encodings(samples)
    onnx.save(simulated.to_onnx_qdq(), out)
    print(json.dumps({"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}))


if __name__ == "__main__":
    main()
