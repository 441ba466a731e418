"""onnxruntime's `quantize_static`, for `vision_weights.py`.

``python onnxruntime_static.py MODEL CALIBRATION.npz OUT OPTIONS``: OPTIONS is JSON with `method` (a CalibrationMethod),
`bits` of the weights, `operators` (empty: all that it quantizes) and `extra` options. Weights are per channel, activations
uint8. Where operators are named, only what they read is quantized. Prints the seconds without imports as JSON.
"""

import gc
import json
import sys
import time

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static


class Samples(CalibrationDataReader):
    """One sample after the other."""

    def __init__(self, path: str) -> None:
        arrays = dict(np.load(path))
        count = len(next(iter(arrays.values())))
        self._samples = iter([{name: array[i] for name, array in arrays.items()} for i in range(count)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next sample, None behind the last."""
        return next(self._samples, None)


def main() -> None:
    """Quantize and save."""
    model, calibration, out, text = sys.argv[1:]
    options = json.loads(text)
    gc.freeze()  # as in `pocketport_static.py`
    start, cpu = time.perf_counter(), time.process_time()
    quantize_static(
        model, out, Samples(calibration),
        quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type={8: QuantType.QInt8, 4: QuantType.QInt4}[options["bits"]],
        calibrate_method=CalibrationMethod[options["method"]], op_types_to_quantize=options["operators"],
        extra_options={"OpTypesToExcludeOutputQuantization": options["operators"], **options["extra"]},
    )  # fmt: skip
    print(json.dumps({"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}))


if __name__ == "__main__":
    main()
