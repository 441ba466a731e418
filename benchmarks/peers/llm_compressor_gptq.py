"""llm-compressor's GPTQ over a local checkpoint, for `full_size.py`; runs in an environment that has llm-compressor.

``python llm_compressor_gptq.py MODEL TOKENS.npz OUT``: 4 bits, groups of 128, symmetric, its own defaults otherwise.
"""

import sys

import numpy as np
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForCausalLM


def main() -> None:
    """Load, quantize, save."""
    model_folder, tokens_file, out = sys.argv[1:]
    rows = np.load(tokens_file)["input_ids"]
    data = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": np.ones_like(rows).tolist()})
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="bfloat16")
    recipe = GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])
    oneshot(
        model=model, dataset=data, recipe=recipe, max_seq_length=rows.shape[1], num_calibration_samples=len(rows),
    )  # fmt: skip
    model.save_pretrained(out, save_compressed=True)


if __name__ == "__main__":
    main()
