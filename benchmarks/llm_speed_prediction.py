"""Predicted against measured speed of language models on real devices, models and whole shapes held out.

    python benchmarks/llm_speed_prediction.py DATA_DIR [--write] [--json FILE]

DATA_DIR holds ``snapdragon_llm_speed.csv``. Shapes are the models' public configurations; models with other layers than
attention and a gated MLP (Gemma 3n-like, mixture of experts, hybrids) are left out. In the first column one measurement is held out, in the second
a model on all devices, with all runtimes and contexts, in the third all models of its shape (Llama 3 8B has six fine-tunings here). ``--write``
makes ``profiles/prediction/llm_parameters.json``.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from latency_data import read
from latency_fitting import targets
from numpy.typing import NDArray

from pocketport.profiles.prediction.conformal import bounds
from pocketport.profiles.prediction.llm import (
    ENCODINGS,
    Coefficients,
    LanguageParameters,
    LanguageShape,
    RuntimeSpeed,
    decode_terms,
    prefill_terms,
)

OUT = Path(__file__).parent.parent / "profiles" / "prediction" / "llm_parameters.json"
PROVENANCE = (
    "fitted by benchmarks/llm_speed_prediction.py to speeds of Qualcomm AI Hub Models 0.65.0 (perf.yaml files, © Qualcomm Technologies, "
    "BSD-3-Clause; no endorsement implied)"
)
QWEN3_2B, LLAMA3_8B = (
    LanguageShape(28, 2048, 6144, 16, 8, 128, 151936),
    LanguageShape(32, 4096, 14336, 32, 8, 128, 128256),
)
QWEN3_8B, SMOLLM2 = LanguageShape(36, 4096, 12288, 32, 8, 128, 151936), LanguageShape(24, 2048, 8192, 32, 32, 64, 49152)
SHAPES = {
    "qwen3_0_6b": LanguageShape(28, 1024, 3072, 16, 8, 128, 151936), "qwen3_1_7b": QWEN3_2B, "qwen3_vl_2b_instruct": QWEN3_2B, "intern3_5_vl_2b": QWEN3_2B,
    "qwen3_8b": QWEN3_8B, "qwen3_vl_8b_instruct": QWEN3_8B, "qwen2_5_vl_7b_instruct": LanguageShape(28, 3584, 18944, 28, 4, 128, 152064),
    "llama_v3_8b_instruct": LLAMA3_8B, "llama_v3_1_8b_instruct": LLAMA3_8B, "llama_v3_elyza_jp_8b": LLAMA3_8B, "llama_v3_taide_8b_chat": LLAMA3_8B,
    "llama_v3_1_sea_lion_3_5_8b_r": LLAMA3_8B, "llama_v3_2_1b_instruct": LanguageShape(16, 2048, 8192, 32, 8, 64, 128256),
    "phi_4_mini_instruct": LanguageShape(32, 3072, 8192, 24, 8, 128, 200064), "phi_3_5_mini_instruct": LanguageShape(32, 3072, 8192, 32, 32, 96, 32064),
    "granite_4_0_micro": LanguageShape(40, 2560, 8192, 40, 8, 64, 100352), "ibm_granite_v3_1_8b_instruct": LanguageShape(40, 4096, 12800, 32, 8, 128, 49155),
    "ministral_3_3b_instruct_2512": LanguageShape(26, 3072, 9216, 32, 8, 128, 131072), "smollm2_1_7b_it": SMOLLM2, "smolvlm2_2_2b_instruct": SMOLLM2,
}  # fmt: skip
STARTS = {"decode": (15.0, 10.0, 10.0, 0.1, 1.0), "prefill": (0.2, 0.5, 0.002)}
POOLED, OWN = 2.0, 0.5  # spread of log coefficients around the starts, and of a device's around its runtime's
NOISE = 0.05  # of one measurement: two of one shape, chip and context differ by 7 % (median)
ROUNDS = 40

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Speed:
    """One measured speed: milliseconds a token, and what it is made of."""

    model: str
    key: tuple[str, str, str]
    precision: str
    terms: Floats
    ms: float


def speeds(data: Path, column: str) -> list[Speed]:
    """Measured decode (``tps``) or prefill (``prefill_tps``) speeds of the known shapes; zeros are failures."""
    found = []
    for row in read(data / "snapdragon_llm_speed.csv"):
        shape, encoding = SHAPES.get(row["model"]), ENCODINGS.get(row["precision"])
        if shape is None or encoding is None or row["copy"] != "0" or float(row[column] or 0) <= 0:
            continue
        context = int(row["ctx"])
        terms = decode_terms(shape, encoding, context) if column == "tps" else prefill_terms(shape, context)
        key = (row["device"], row["runtime"], row["unit"])
        found.append(Speed(row["model"], key, row["precision"], terms, 1e3 / float(row[column])))
    return found


def fit_additive(terms: Floats, ms: Floats, start: Floats, spread: float, scaled: bool) -> Floats:
    """Positive coefficients by robust least squares of log time, held by a log-normal prior around `start`.

    With `scaled` a common factor of all coefficients is free: a device may be faster, its proportions are the prior's.
    """
    k = terms.shape[1]
    theta, columns = np.zeros(k + 1), np.concatenate([np.eye(k), np.ones((k, 1))], 1)
    sigma = np.array([spread] * k + [2.0 if scaled else 1e-3])
    for _ in range(ROUNDS):
        parts = terms * (start * np.exp(columns @ theta))
        total = parts.sum(1)
        error, jacobian = np.log(total / ms), (parts / total[:, None]) @ columns
        weight = np.minimum(1, 1.5 * NOISE / np.maximum(np.abs(error), 1e-12)) / NOISE**2
        hessian = (jacobian * weight[:, None]).T @ jacobian + np.diag(1 / sigma**2)
        step = np.linalg.solve(hessian, jacobian.T @ (weight * error) + theta / sigma**2)
        theta = theta - np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-5:
            break
    return np.asarray(start * np.exp(columns @ theta))


def fitted(seen: Sequence[Speed], phase: str) -> dict[tuple[str, str, str], Floats]:
    """Coefficients of every device and runtime: first the runtime's common proportions, then the device's own."""
    found = {}
    for runtime, unit in sorted({s.key[1:] for s in seen}):
        rows = [s for s in seen if s.key[1:] == (runtime, unit)]
        devices = sorted({s.key for s in rows})
        start = np.array(STARTS[phase])
        for _ in range(2):  # proportions from all devices at once, each at its own speed
            scale = {
                d: fit_additive(*_arrays([s for s in rows if s.key == d]), start, 1e-3, True)[0] / start[0]
                for d in devices
            }
            terms, ms = _arrays(rows)
            start = fit_additive(terms, ms / np.array([scale[s.key] for s in rows]), start, POOLED, False)
        for d in devices:
            found[d] = fit_additive(*_arrays([s for s in rows if s.key == d]), start, OWN, True)
    return found


def _arrays(rows: Sequence[Speed]) -> tuple[Floats, Floats]:
    return np.stack([s.terms for s in rows]), np.array([s.ms for s in rows])


def held_out(every: Sequence[Speed], phase: str, group: Callable[[Speed], object]) -> Floats:
    """Predicted milliseconds by fits that saw nothing of the group; NaN where nothing else was measured there."""
    out, names = np.full(len(every), np.nan), [group(s) for s in every]
    for name in dict.fromkeys(names):
        held = [i for i, other in enumerate(names) if other == name]
        runtimes = {every[i].key[1:] for i in held}
        seen = [s for s, other in zip(every, names, strict=True) if other != name and s.key[1:] in runtimes]
        known = fitted(seen, phase)
        for i in held:
            if every[i].key in known:
                out[i] = every[i].terms @ known[every[i].key]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ids, table = targets(), []
    coefficients: dict[str, dict[tuple[str, str, str], Coefficients]] = {"decode": {}, "prefill": {}}
    print(
        f"{'phase':8} {'runtime':16} {'unit':4} {'device':26} {'n':>4}  one: median  P90   by model: median  P90   by shape: median  P90"
    )
    for phase, column in (("decode", "tps"), ("prefill", "prefill_tps")):
        every = speeds(arguments.data, column)
        by_one, by_model, by_shape = (
            held_out(every, phase, id),
            held_out(every, phase, lambda s: s.model),
            held_out(every, phase, lambda s: SHAPES[s.model]),
        )
        ms = np.array([s.ms for s in every])
        values = fitted(every, phase)
        units = sorted({s.key[2] for s in every})
        pooled = [("all", "all", u) for u in units] + [("all", r, u) for r, u in sorted({s.key[1:] for s in every})]
        for key in pooled + sorted(values):
            same = [key in (s.key, ("all", *s.key[1:]), ("all", "all", s.key[2])) for s in every]
            rows = np.array(same) & ~np.isnan(by_shape)
            if rows.sum() < 4:
                continue
            errors = [np.abs(out[rows] / ms[rows] - 1) for out in (by_one, by_model, by_shape)]
            line = [float(v) for e in errors for v in (np.median(e), np.quantile(e, 0.9))]
            print(f"{phase:8} {key[1]:16} {key[2]:4} {key[0]:26} {rows.sum():4}       {line[0]:6.1%} {line[1]:5.0%}            {line[2]:6.1%} {line[3]:5.0%}            {line[4]:6.1%} {line[5]:5.0%}")  # fmt: skip
            table.append({"phase": phase, "device": key[0], "runtime": key[1], "unit": key[2], "n": int(rows.sum()), "by_measurement": line[:2], "by_model": line[2:4], "by_shape": line[4:]})  # fmt: skip
            if key[0] != "all":
                low, high = bounds(np.log(ms[rows] / by_shape[rows]))
                coefficients[phase][key] = Coefficients(
                    values=tuple(float(f"{v:.4g}") for v in values[key]), low=round(low, 3), high=round(high, 3), median_ape=round(line[4], 3), n=int(rows.sum())
                )  # fmt: skip
    if arguments.write:
        found = [
            RuntimeSpeed(target=ids[key[0]], runtime=key[1], unit=key[2], decode=decode, prefill=coefficients["prefill"].get(key))
            for key, decode in coefficients["decode"].items()
        ]  # fmt: skip
        text = LanguageParameters(provenance=PROVENANCE, speeds=tuple(found)).model_dump_json(indent=1)
        OUT.write_text(text + "\n", encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
