"""Checkpoints that Pocketport wrote in the format gptq, opened by GPTQModel itself: are its logits those of our own weights?

``python benchmarks/loads_in_gptqmodel.py --python OTHER/bin/python [FOLDER ...]``

`OTHER` is an environment that holds GPTQModel (7.7 wants a newer torch: ``pip install --no-deps``). Without folders a small
random Llama is ported in several forms. The other side is the same checkpoint, dequantized by Pocketport, in transformers.
"""

import argparse
import math
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
import yaml
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from pocketport.calibration.metrics import sqnr_db
from pocketport.commands.console import out, table
from pocketport.compress.families.transformers_reference import transformers_model
from pocketport.compress.sources.open import open_source

TOKENS = list(range(3, 60))
SCHEMES = (
    "w4b128fp16", "w4b32fp16", "w8b64fp16", "w3b128fp16", "w2b32fp16", "w4cfp16", "w4b64fp16 w3b32fp16 w8cfp16", "w5b64fp16",
    "w6cfp16 w3b32fp16 w5b32fp16",
)  # fmt: skip
LEAST_SQNR_DB = 30.0  # GPTQModel computes in bfloat16; a layout that is misread gives less than 10
PEER = """
import json, sys, traceback, numpy as np, torch
from gptqmodel import BACKEND, GPTQModel
tokens = torch.tensor([json.loads(sys.argv[1])])
for folder in sys.argv[3:]:
    try:
        model = GPTQModel.load(folder, backend=BACKEND.TORCH, device="cpu")
        with torch.inference_mode():
            np.save(sys.argv[2], model.model(input_ids=tokens).logits.float().numpy())
        print("kernel:", type(model.model.model.layers[0].mlp.up_proj).__name__, flush=True)
    except Exception:
        print("error:", traceback.format_exc().strip().splitlines()[-1], flush=True)
    sys.stdin.readline()
"""


def random_llama(folder: Path) -> Path:
    config = transformers.LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=512, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 4 if parameter.ndim > 1 else 1
    model.half().save_pretrained(folder)
    words = {f"w{i}": i for i in range(config.vocab_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w2").save_pretrained(folder)
    return folder


def ported(model: Path, scheme: str, root: Path) -> Path:
    """The model in the format gptq; of several schemes the second is for values, the third for the first layer's MLP."""
    recipe = root / f"{scheme}.yaml"
    rules = [{"scheme": s, "name": n} for s, n in zip(scheme.split(), ("*", "*v_proj", "*.0.mlp.*"), strict=False)]
    recipe.write_text(yaml.safe_dump({"version": 1, "rules": rules}))
    command = ["port", str(model), "--format", "gptq", "--recipe", str(recipe), "--out", str(root / scheme), "--json"]
    with (root / "log").open("w") as log:
        subprocess.run(["pocketport", *command], check=True, stdout=log)
    return root / scheme / "gptq"


def own_logits(folder: Path) -> NDArray[np.float32]:
    model = transformers_model(open_source(folder), "AutoModelForCausalLM")
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(input_ids=torch.tensor([TOKENS])).logits.numpy()
    return logits


def main() -> None:
    """Port, load, compare; exit 1 when a checkpoint does not load or differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--python", required=True, help="an interpreter that has GPTQModel")
    options = parser.parse_args()
    shown, failed = table("GPTQModel against Pocketport", "checkpoint", "its kernel", "logits", right=(2,)), False
    with tempfile.TemporaryDirectory(prefix="pocketport-gptq-") as name:
        root = Path(name)
        folders: list[Path] = options.folders
        if not folders:
            model = random_llama(root / "model")
            folders = [ported(model, scheme, root) for scheme in SCHEMES]
        logits = root / "logits.npy"
        command = [options.python, "-c", PEER, str(TOKENS), str(logits), *map(str, folders)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as peer:
            assert peer.stdin is not None and peer.stdout is not None
            for folder in folders:
                said = next(
                    (line for line in peer.stdout if line.startswith(("kernel: ", "error: "))), "error: it died"
                )
                kind, _, words = said.strip().partition(": ")
                quality = sqnr_db(own_logits(folder), np.load(logits)) if kind == "kernel" else -math.inf
                failed |= quality < LEAST_SQNR_DB
                shown.add_row(str(folder), words[:90], f"{quality:.1f} dB")
                peer.stdin.write("\n")
                peer.stdin.flush()
    out.print(shown)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
