"""Fit the latency models of the device profiles to measurements, cross-validate, and write both into the profiles.

    python benchmarks/fit_roofline.py DATA_DIR [--write]

DATA_DIR holds ``snapdragon_npu_latency.csv``, ``snapdragon_models.csv``, ``snapdragon_llm_speed.csv`` and
``coreml_ane_latency.csv``. Without ``--write`` only the tables are printed.

Devices that were measured are fitted; one between two measured generations gets the mean of its neighbours' rates;
all others get a measured chip's rates scaled by published figures. Each way has its own error, found by holding out
what it claims to predict, and that error becomes the interval of every prediction.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml
from latency_data import RUNTIME, Sample, features, print_row, read, samples, spread, times
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import t as student

PROFILES = Path(__file__).parent.parent / "profiles" / "devices"
ESTIMATES = Path(__file__).parent / "data" / "htp_estimates.csv"
PRECISIONS = ("float", "w8a8", "w8a16")
SOFT = 0.15  # residuals of log latency beyond this count linearly
FEWEST = 5  # models that a line through the compiler's estimates needs

NEXT = "Samsung Galaxy S26"
MEASURED = {
    "sm8450": "Samsung Galaxy S22 5G",
    "sm8550": "QCS8550 (Proxy)",
    "sm8650": "Samsung Galaxy S24",
    "sm8850": NEXT,
}
DRAM_GBPS = {"Samsung Galaxy S22 5G": 51.2, "QCS8550 (Proxy)": 67.2, "Samsung Galaxy S24": 76.8, NEXT: 84.8,
             "Snapdragon X Elite CRD": 135.0}  # fmt: skip
# int8 10¹² ops/s as quoted; of ranges the middle. Only these chips of the data have any.
TOPS = {"Samsung Galaxy S24": 39.5, "Snapdragon X Elite CRD": 45.0}
# layers, hidden, intermediate, query heads, key-value heads, head size, vocabulary: the models' public configurations
LANGUAGE_MODELS = {
    "llama_v3_1_8b_instruct": (32, 4096, 14336, 32, 8, 128, 128256), "llama_v3_8b_instruct": (32, 4096, 14336, 32, 8, 128, 128256),
    "llama_v3_2_1b_instruct": (16, 2048, 8192, 32, 8, 64, 128256), "qwen3_0_6b": (28, 1024, 3072, 16, 8, 128, 151936),
    "qwen3_1_7b": (28, 2048, 6144, 16, 8, 128, 151936), "intern3_5_vl_2b": (28, 2048, 6144, 16, 8, 128, 151936),
    "qwen2_5_vl_7b_instruct": (28, 3584, 18944, 28, 4, 128, 152064),
}  # fmt: skip

Rates = NDArray[np.float64]  # ms per GMAC, ms per op, offset ms


def predict(rates: Rates, data: Sequence[Sample], gbps: float) -> NDArray[np.float64]:
    """``profiles/roofline.py`` on arrays; `gbps` is the bandwidth reached."""
    gmacs, ops, megabytes = (np.array([getattr(s, k) for s in data]) for k in ("gmacs", "ops", "megabytes"))
    return np.maximum(rates[0] * gmacs + rates[1] * ops, megabytes / gbps) + rates[2]


def fit(data: Sequence[Sample], gbps: float) -> Rates:
    """Robust fit of log latency; the rates stay positive."""

    def residuals(logs: Rates) -> NDArray[np.float64]:
        return np.log(predict(np.exp(logs), data, gbps)) - np.log(times(data))

    starts = [np.log([rate, 0.004, 0.2]) for rate in (0.05, 0.3)]
    fits = [least_squares(residuals, s, loss="soft_l1", f_scale=SOFT, bounds=(-14, 5)) for s in starts]
    return np.exp(min(fits, key=lambda f: f.cost).x)


def held_out(data: Sequence[Sample], gbps: float, group: Callable[[Sample], str]) -> NDArray[np.float64]:
    """Predictions of every sample by a fit that never saw its group."""
    out = np.zeros(len(data))
    for name in sorted({group(s) for s in data}):
        rest = [s for s in data if group(s) != name]
        index = [i for i, s in enumerate(data) if group(s) == name]
        out[index] = predict(fit(rest, gbps), [data[i] for i in index], gbps)
    return out


def model(rates: Rates, error: dict[str, object]) -> dict[str, object]:
    per_gmac, per_op, offset = (float(f"{r:.4g}") if r > 1e-5 else 0.0 for r in rates)
    return {"ms_per_gmac": per_gmac, "ms_per_op": per_op, "offset_ms": offset, "spread": error}


def bandwidth_share(data: Path) -> tuple[float, str]:
    """Share of the published bandwidth that decoding reaches on the phone of the data, by leave-one-model-out."""
    peak_ms, measured = [], []
    for row in read(data / "snapdragon_llm_speed.csv"):
        shape = LANGUAGE_MODELS.get(row["model"])
        if shape and row["device"] == NEXT and row["runtime"] == "genie" and row["precision"] == "w4a16":
            layers, hidden, inner, heads, shared, size, vocabulary = shape
            linears = layers * hidden * (2 * heads * size + 2 * shared * size + 3 * inner)
            cache = 2 * layers * shared * size * int(row["ctx"])  # 8-bit keys and values
            peak_ms.append((linears / 2 + hidden * vocabulary + cache) / DRAM_GBPS[NEXT] / 1e6)
            measured.append(1e3 / float(row["tps"]))
    ratio = np.array(peak_ms) / np.array(measured)
    left_out = np.array([np.median(np.delete(ratio, i)) for i in range(len(ratio))])
    error = np.abs(ratio / left_out - 1)
    print(f"\ndecode, {NEXT}, genie w4a16: {np.median(ratio):.2f} of peak bandwidth, n {len(ratio)}, "
          f"leave-one-out median {np.median(error):.1%}, worst {error.max():.0%}")  # fmt: skip
    source = (f"LLM decoding on a {NEXT}, {len(ratio)} models, 4-bit linears + 8-bit head and cache: median share, "
              f"leave-one-out error {np.median(error):.0%} median, {error.max():.0%} worst")  # fmt: skip
    return round(float(np.median(ratio)), 3), source


def estimates(precision: str) -> dict[str, float]:
    """Model → the compiler's estimate for the SA8255P, ms, as ``htp_estimates.py`` got it."""
    return {r["model"]: float(r["sa8255p_us"]) / 1e3 for r in read(ESTIMATES) if r["precision"] == precision}


def compiled(data: Path, device: str, precision: str) -> tuple[list[Sample], NDArray[np.float64]]:
    """Measured models that have an estimate, and the estimates."""
    known = estimates(precision)
    measured = [s for s in samples(data, device, precision) if s.model in known]
    return measured, np.array([known[s.model] for s in measured])


def line(estimated: NDArray[np.float64], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    """(slope, offset) with the least squared relative error."""
    design = np.stack([estimated, np.ones_like(estimated)], 1) / measured[:, None]
    return np.asarray(np.linalg.lstsq(design, np.ones(len(measured)), rcond=None)[0])


def compiler_model(known: NDArray[np.float64], error: dict[str, object]) -> dict[str, object]:
    slope, offset = (round(float(v), 4) for v in known)
    return {"estimate": "sa8255p_us", "slope": slope, "offset_ms": offset, "spread": error}


def fit_compiler(data: Path, device: str) -> dict[str, object]:
    """Lines from the compiler's estimate to a device's times, held out by model."""
    found = {}
    for precision in PRECISIONS:
        measured, x = compiled(data, device, precision)
        if len(measured) < FEWEST:
            continue
        y, others = times(measured), ~np.eye(len(x), dtype=bool)
        out = np.array([line(x[keep], y[keep]) @ (value, 1.0) for keep, value in zip(others, x, strict=True)])
        print_row(device, precision, "compiler's estimate, by model", out, y)
        evidence = f"line through {RUNTIME} {precision} times on {device}, held out by model"
        found[precision] = compiler_model(line(x, y), spread(out, y, evidence))
    return found


def fit_compiler_between(data: Path) -> dict[str, object]:
    """The mean of two neighbours' lines; tested by putting the Galaxy S24 between its own, held out by model."""
    first, middle, last = MEASURED["sm8550"], MEASURED["sm8650"], NEXT
    found = {}

    def mean(low: str, high: str, precision: str, without: str = "") -> NDArray[np.float64]:
        lines = []
        for device in (low, high):
            measured, x = compiled(data, device, precision)
            keep = np.array([s.model != without for s in measured])
            lines.append(line(x[keep], times(measured)[keep]))
        return np.asarray((lines[0] + lines[1]) / 2)

    for precision in PRECISIONS:
        measured, x = compiled(data, middle, precision)
        if len(measured) < FEWEST:
            continue
        out = np.array([mean(first, last, precision, s.model) @ (v, 1.0) for s, v in zip(measured, x, strict=True)])
        print_row(middle, precision, "estimate, from neighbours", out, times(measured))
        evidence = (
            f"mean of {middle} and {last} lines; the same done to {middle} from its neighbours, held out by model"
        )
        found[precision] = compiler_model(mean(middle, last, precision), spread(out, times(measured), evidence))
    return found


def transferred(rates: Rates, tops: float) -> Rates:
    """The Galaxy S24's rates, its compute rate scaled by published int8 operations per second."""
    return rates * np.array([TOPS["Samsung Galaxy S24"] / tops, 1.0, 1.0])


def anchored(data: Path, rates: Rates, precision: str, gbps: float) -> tuple[float, float, int]:
    """One factor from another chip's roofline to the published A16 times: (factor, 80 % spread factor, n)."""
    models = {row["model"]: row for row in read(data / "snapdragon_models.csv")}
    label = {"float": "fp16"}.get(precision, precision)
    rows = [r for r in read(data / "coreml_ane_latency.csv")
            if r["soc"] == "A16" and r["precision"] == label and r["model"] in models]  # fmt: skip
    anchors = [features(models[r["model"]], precision, float(r["ms"])) for r in rows]
    logs = np.log(times(anchors) / predict(rates, anchors, gbps))
    width = student.ppf(0.9, len(logs) - 1) * logs.std(ddof=1) * math.sqrt(1 + 1 / len(logs))
    print(f"{'A16 (iPhone 14 Pro)':24} {precision:6} {'factor on Galaxy S24 rates':30} {len(logs):3}  "
          f"x{math.exp(logs.mean()):.2f}, 80 % within x/÷ {math.exp(width):.2f}")  # fmt: skip
    return math.exp(logs.mean()), math.exp(width), len(logs)


def write(soc: str, changes: dict[str, object]) -> None:
    path = PROFILES / f"{soc}.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8")) | changes
    path.write_text(yaml.safe_dump(document, sort_keys=False, width=110), encoding="utf-8")


def fit_measured(data: Path, device: str, share: float) -> dict[str, object]:
    """Models of a device that the data has."""
    gbps, graph = share * DRAM_GBPS[device], {}
    for precision in PRECISIONS:
        known = samples(data, device, precision)
        by_model = held_out(known, gbps, lambda s: s.model)
        by_family = held_out(known, gbps, lambda s: s.family)
        print_row(device, precision, "held out by model", by_model, times(known))
        print_row(device, precision, "held out by family", by_family, times(known))
        evidence = f"fitted to {RUNTIME} times on {device}, held out by model family"
        graph[precision] = model(fit(known, gbps), spread(by_family, times(known), evidence))
    return {"graph": graph, "compiler": fit_compiler(data, device)}


def between(data: Path, precision: str, first: str, last: str, share: float, without: str = "") -> Rates:
    """Geometric mean of two devices' rates, fitted without one family."""
    rates = [
        fit([s for s in samples(data, d, precision) if s.family != without], share * DRAM_GBPS[d])
        for d in (first, last)
    ]
    return np.sqrt(rates[0] * rates[1])


def fit_between(data: Path, share: float) -> dict[str, object]:
    """A chip between the Galaxy S24's and the S26's generations; tested by putting the S24 between its neighbours."""
    first, middle, last = MEASURED["sm8550"], MEASURED["sm8650"], NEXT
    graph = {}
    for precision in PRECISIONS:
        known = samples(data, middle, precision)
        out = np.zeros(len(known))
        for family in sorted({s.family for s in known}):
            rates = between(data, precision, first, last, share, without=family)
            index = [i for i, s in enumerate(known) if s.family == family]
            out[index] = predict(rates, [known[i] for i in index], share * DRAM_GBPS[middle])
        print_row(middle, precision, "from neighbours, by family", out, times(known))
        evidence = (
            f"mean of {middle} and {last} rates; the same done to {middle} from its neighbours, held out by family"
        )
        graph[precision] = model(between(data, precision, middle, last, share), spread(out, times(known), evidence))
    return {"graph": graph, "compiler": fit_compiler_between(data)}


def fit_others(data: Path, share: float) -> dict[str, dict[str, object]]:
    """Apple by one factor from published times, MediaTek by published figures alone."""
    source, twin = MEASURED["sm8650"], "Snapdragon X Elite CRD"
    out: dict[str, dict[str, object]] = {
        soc: {"graph": {}} for soc in ("a16", "a17-pro", "a18-pro", "mt6989", "mt6991")
    }
    profiles = {soc: yaml.safe_load((PROFILES / f"{soc}.yaml").read_text(encoding="utf-8")) for soc in out}
    tops = {soc: profile["npu_tops_int8"]["value"] for soc, profile in profiles.items()}
    vendors_apart = []
    for precision in PRECISIONS:
        known = samples(data, source, precision)
        rates = fit(known, share * DRAM_GBPS[source])
        there = samples(data, twin, precision)
        moved = np.zeros(len(there))
        for family in sorted({s.family for s in there}):
            blind = fit([s for s in known if s.family != family], share * DRAM_GBPS[source])
            index = [i for i, s in enumerate(there) if s.family == family]
            moved[index] = predict(transferred(blind, TOPS[twin]), [there[i] for i in index], share * DRAM_GBPS[twin])
        print_row(twin, precision, "S24 rates by published figures", moved, times(there))
        ratio = times(there) / moved
        low, high = float(np.quantile(ratio, 0.1)), float(np.quantile(ratio, 0.9))
        if precision != "w8a16":  # no published time of an int16 activation on a Neural Engine, which refuses it
            gbps = share * profiles["a16"]["dram_gbps"]["value"]
            factor, width, n = anchored(data, rates, precision, gbps)
            vendors_apart += [factor / width, factor * width]
            evidence = f"{source} rates times one factor from {n} published times on an iPhone 14 Pro (Student's t)"
            error: dict[str, object] = {
                "low": round(1 / width, 3),
                "high": round(width, 3),
                "n": n,
                "evidence": evidence,
            }
            out["a16"]["graph"][precision] = model(rates * factor, error)
            for soc in ("a17-pro", "a18-pro"):
                # The A16's 17 is taken as a float16 rate, the later chips' 35 is an int8 rate: 2 · 17 against 35.
                rate = rates * factor * np.array([2 * tops["a16"] / tops[soc], 1.0, 1.0])
                wide = {"low": round(math.exp(-math.hypot(math.log(width), math.log(low))), 3),
                        "high": round(math.exp(math.hypot(math.log(width), math.log(high))), 3), "n": n,
                        "evidence": f"no measurement on this chip: A16 rates by published figures; {evidence}"}  # fmt: skip
                out[soc]["graph"][precision] = model(rate, wide)
        for soc in ("mt6989", "mt6991"):
            out[soc]["graph"][precision] = model(
                transferred(rates, tops[soc]), {"low": low, "high": high, "n": 0, "evidence": ""}
            )
    for soc in ("mt6989", "mt6991"):
        for entry in out[soc]["graph"].values():
            error = entry["spread"]
            error["low"] = round(min(error["low"], *vendors_apart), 3)
            error["high"] = round(max(error["high"], *vendors_apart), 3)
            error["evidence"] = (f"no device measurements: roofline on published figures with {source} rates; interval the widest "
                                 f"of the same transfer to a {twin} and to an iPhone 14 Pro")  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    data: Path = arguments.data
    share, source = bandwidth_share(data)
    print(f"\n{'device':24} {'prec.':6} {'model':30} {'n':>3}  median    P90    rho  in 2x")
    changes = {soc: fit_measured(data, device, share) for soc, device in MEASURED.items()}
    changes["sm8750"] = fit_between(data, share)
    changes |= fit_others(data, share)
    for soc, change in changes.items():
        change["dram_share"] = {"value": share, "source": source, "certainty": "uncertain"}
        if arguments.write:
            write(soc, change)


if __name__ == "__main__":
    main()
