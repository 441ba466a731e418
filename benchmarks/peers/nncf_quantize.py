"""NNCF's post-training quantization of ONNX, for `vision_weights.py`; runs in an environment that has NNCF.

``python nncf_quantize.py MODEL CALIBRATION.npz OUT OPTIONS``: OPTIONS is JSON with `transformer` (NNCF's model type, which
brings SmoothQuant) and `fast` (bias correction). Activations are asymmetric (preset `mixed`), weights 8 bits per channel.
Prints the seconds without imports as JSON.
"""

import json
import sys
import time

import nncf
import numpy as np
import onnx


def main() -> None:
    """Quantize and save."""
    model, calibration, out, text = sys.argv[1:]
    options = json.loads(text)
    start, cpu = time.perf_counter(), time.process_time()
    arrays = dict(np.load(calibration))
    count = len(next(iter(arrays.values())))
    samples = nncf.Dataset([{name: array[i] for name, array in arrays.items()} for i in range(count)])
    quantized = nncf.quantize(
        onnx.load(model), samples,
        preset=nncf.QuantizationPreset.MIXED, target_device=nncf.TargetDevice.CPU, subset_size=count,
        fast_bias_correction=options["fast"], model_type=nncf.ModelType.TRANSFORMER if options["transformer"] else None,
    )  # fmt: skip
    onnx.save(quantized, out)
    print(json.dumps({"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}))


if __name__ == "__main__":
    main()
