"""llama.cpp's quantizer with an importance matrix over a local checkpoint, for `llm_weights.py`.

``python llama_cpp_imatrix.py MODEL TOKENS.npz OUT OPTIONS``: OPTIONS is a JSON object with ``bin`` (the folder of llama-imatrix
and llama-quantize) and ``type`` (``IQ4_NL``, ``Q4_0``, …). llama-imatrix reads the text that the calibration tokens are of, in
chunks as long as their rows; embedding and vocabulary projection stay float. OUT gets the GGUF file.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer


def main() -> None:
    """Convert, measure the matrix, quantize."""
    model, tokens, out, text = sys.argv[1:]
    options = json.loads(text)
    programs, result = Path(options["bin"]), Path(out)
    result.mkdir(parents=True)
    rows = np.load(tokens)["input_ids"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run([sys.executable, "-m", "pocketport", "port", model, "--format", "gguf:f32", "--out", name])
        plain = next(folder.rglob("*.gguf"))
        prose, matrix = folder / "calibration.txt", folder / "imatrix.gguf"
        tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
        prose.write_text("".join(tokenizer.decode(row.tolist()) for row in rows), "utf-8")
        run([programs / "llama-imatrix", "-m", plain, "-f", prose, "-o", matrix, "-c", rows.shape[1], "--no-ppl"])
        float_ends = ["--token-embedding-type", "f32", "--output-tensor-type", "f32"]
        quantized = result / "model.gguf"
        run(
            [programs / "llama-quantize", "--imatrix", matrix, "--pure", *float_ends, plain, quantized, options["type"]]
        )


def run(command: list[object]) -> None:
    """One program, with what it says where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr.decode(errors='replace')[-3000:]}")


if __name__ == "__main__":
    main()
