"""llm-compressor over a local checkpoint, for `full_size.py` and `llm_weights.py`; wants an environment that has it.

``python llm_compressor_gptq.py MODEL TOKENS.npz OUT [OPTIONS]``: GPTQ with 4 bits, groups of 128, symmetric, its own defaults
otherwise. OPTIONS is a JSON object: ``weights``, arguments of its QuantizationArgs, and ``awq``, true for AWQ in the place of
GPTQ.
"""

import json
import sys

import numpy as np
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from transformers import AutoModelForCausalLM


def main() -> None:
    """Load, quantize, save."""
    model_folder, tokens_file, out, *rest = sys.argv[1:]
    options = json.loads(rest[0]) if rest else {}
    rows = np.load(tokens_file)["input_ids"]
    data = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": np.ones_like(rows).tolist()})
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=options.get("dtype", "bfloat16"))
    oneshot(
        model=model, dataset=data, recipe=modifiers(options), max_seq_length=rows.shape[1], num_calibration_samples=len(rows),
    )  # fmt: skip
    if options.get("weights", {}).get("num_bits") == 3:  # files that hardly anybody reads: write what they stand for
        plain = AutoModelForCausalLM.from_pretrained(model_folder, dtype=options.get("dtype", "bfloat16"))
        state = model.state_dict()
        plain.load_state_dict({name: state[name] for name in plain.state_dict()})
        plain.save_pretrained(out)
    else:
        model.save_pretrained(out, save_compressed=True)


def modifiers(options: dict) -> list:
    """What is to be done, in its own words."""
    if "weights" not in options:
        return [GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])]
    common = {
        "config_groups": {"all": {"targets": ["Linear"], "weights": options["weights"]}},
        "ignore": ["lm_head"],
    }
    if not options.get("awq"):
        return [GPTQModifier(**common)]
    from llmcompressor.modifiers.transform.awq import AWQModifier

    if not torch.accelerator.is_available():  # it pins memory for one all the same
        torch.Tensor.pin_memory = lambda self, *_: self
    return [AWQModifier(), QuantizationModifier(**common)]


if __name__ == "__main__":
    main()
