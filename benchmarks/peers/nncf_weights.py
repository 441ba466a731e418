"""NNCF's weight compression over a local checkpoint, for `llm_weights.py`; wants an environment that has NNCF.

``python nncf_weights.py MODEL TOKENS.npz OUT OPTIONS``: OPTIONS is a JSON object with ``group_size`` (-1: a channel) and
``sym``; 4 bits, with AWQ and scale estimation. (Its GPTQ takes OpenVINO models only.) NNCF's torch models are no checkpoint, so
that what is written are the weights that its own decompressors give.
"""

import json
import sys

import nncf
import numpy as np
import torch
from nncf.torch.function_hook import get_hook_storage
from nncf.torch.function_hook.hook_storage import decode_hook_name
from transformers import AutoModelForCausalLM


def main() -> None:
    """Load, compress, save."""
    model_folder, tokens_file, out, text = sys.argv[1:]
    options = json.loads(text)
    rows = torch.from_numpy(np.load(tokens_file)["input_ids"].astype(np.int64))
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model.config.use_cache = False
    samples = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in rows]
    mode = nncf.CompressWeightsMode.INT4_SYM if options["sym"] else nncf.CompressWeightsMode.INT4_ASYM
    compressed = nncf.compress_weights(
        model, mode=mode, ratio=1.0, group_size=options["group_size"], backup_mode=nncf.BackupMode.NONE,
        dataset=nncf.Dataset(samples), subset_size=len(samples), awq=True, scale_estimation=True,
    )  # fmt: skip
    weights = dict(compressed.named_parameters())
    state = {name: value for name, value in compressed.state_dict().items() if not name.startswith("__nncf")}
    for hook, decompressor in get_hook_storage(compressed).named_hooks():
        name = decode_hook_name(hook)[1]
        state[name] = decompressor(weights[name]).detach()
    plain = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    plain.load_state_dict(state)
    plain.save_pretrained(out)


if __name__ == "__main__":
    main()
