"""GPTQModel's GPTQ over a local checkpoint, for `full_size.py` and `llm_weights.py`; wants an environment that has GPTQModel.

``python gptqmodel_gptq.py MODEL TOKENS.npz OUT [OPTIONS]``: 4 bits, groups of 128, symmetric, its own defaults otherwise;
OPTIONS is a JSON object of further arguments of its QuantizeConfig. It computes in float32: CPUs without bfloat16 units are slow in its
default.
"""

import json
import os
import sys

import numpy as np
import torch

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # with the default of one its own thread pool refuses to start

from gptqmodel import GPTQModel, QuantizeConfig


def main() -> None:
    """Load, quantize, save."""
    model_folder, tokens_file, out, *rest = sys.argv[1:]
    options = {"bits": 4, "group_size": 128, "sym": True} | (json.loads(rest[0]) if rest else {})
    rows = np.load(tokens_file)["input_ids"]
    samples = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in rows]
    model = GPTQModel.load(model_folder, QuantizeConfig(**options), device="cpu", dtype=torch.float32)
    model.quantize(samples, batch_size=1)
    model.save(out)


if __name__ == "__main__":
    main()
