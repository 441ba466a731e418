"""GPTQModel's GPTQ over a local checkpoint, for `full_size.py`; runs in an environment that has GPTQModel.

``python gptqmodel_gptq.py MODEL TOKENS.npz OUT``: 4 bits, groups of 128, symmetric, its own defaults otherwise.
"""

import os
import sys

import numpy as np

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # with the default of one its own thread pool refuses to start

from gptqmodel import GPTQModel, QuantizeConfig


def main() -> None:
    """Load, quantize, save."""
    model_folder, tokens_file, out = sys.argv[1:]
    rows = np.load(tokens_file)["input_ids"]
    samples = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in rows]
    model = GPTQModel.load(model_folder, QuantizeConfig(bits=4, group_size=128, sym=True), device="cpu")
    model.quantize(samples, batch_size=1)
    model.save(out)


if __name__ == "__main__":
    main()
