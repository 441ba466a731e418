"""A whole small language model, quantized layer by layer: what comes out, and that kills and limits do not change it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from decoder_models import save_decoder

from pocketport.compress.blockwise import calibrated, engine, estimate
from pocketport.compress.blockwise.engine import quantize_weights
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Arrays, OrtExecutor
from pocketport.compress.families.registry import Lengths, family_of, host_of
from pocketport.compress.formats.compressed_tensors import CompressedTensorsFormat
from pocketport.compress.formats.contract import WeightPlan
from pocketport.compress.graph import clone_graph
from pocketport.compress.mixed_precision.checkpoint import as_floats
from pocketport.compress.planning.weights import plan_weights
from pocketport.compress.quantized_weights import PackedWeight, QuantizedWeight, QuantizedWeights
from pocketport.compress.recipe import Recipe, Rule
from pocketport.compress.sources.open import open_source
from pocketport.compress.sources.source import Source
from pocketport.errors import UsageError, VerificationError
from pocketport.files import sha256_path

TOKENS, COUNT = 24, 12
REFINED = {"propagation": 0.5, "sweeps": 2}
SEARCHED = {"propagation": 0.5, "damping_search": 3}


class Model:
    """A checkpoint, its graphs, and calibration sequences."""

    def __init__(self, folder: Path) -> None:
        self.source: Source = open_source(folder)
        self.bundle: ModelBundle = family_of(self.source).load(self.source, "small", Lengths(prompt=TOKENS))
        self.host = host_of(self.bundle)
        table = np.asarray(self.source.tensors["model.embed_tokens.weight"].numpy())
        tokens = np.random.default_rng(0).integers(0, len(table), (COUNT, TOKENS))
        self.embeds = [np.asarray(table[row], np.float32) for row in tokens]

    def feeds(self) -> Iterator[Arrays]:
        return (self.host.prefill_feeds(embeds, TOKENS) for embeds in self.embeds)

    def plans(self, algorithm: str, options: dict[str, float] | None = None) -> list[WeightPlan]:
        rule = Rule(algorithm=algorithm, scheme="w4b32fp16", algorithm_options=options or {})  # type: ignore[arg-type]
        recipe = Recipe(name="test", rules=[rule])
        return [p for p in plan_weights(self.source, self.bundle, recipe, CompressedTensorsFormat(), "") if p.quantized]

    def quantize(
        self, directory: Path, algorithm: str = "gptq", limit: int = 1 << 34, options: dict[str, float] | None = None
    ) -> QuantizedWeights:
        directory.mkdir(exist_ok=True)
        quantize_weights(
            self.source, self.bundle, self.plans(algorithm, options), directory,
            feeds={"prefill": self.feeds()}, memory_limit=limit,
        )  # fmt: skip
        return QuantizedWeights(directory)

    def logits(self, weights: QuantizedWeights | None) -> np.ndarray:
        """Of every calibration sequence, in onnxruntime, with the quantized weights in place."""
        graph = clone_graph(self.bundle["prefill"].graph)
        for name in weights or ():
            floats = as_floats((weights or {})[name], name).numpy()
            graph.graph.initializers[name].const_value = ir.Tensor(floats, name=name)
        executor = OrtExecutor(graph)
        return np.stack([executor.run(feeds)["logits"] for feeds in self.feeds()])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.manual_seed(0)
    return Model(save_decoder(tmp_path_factory.mktemp("llama"), "llama3-rope"))


@pytest.fixture(scope="module")
def whole(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    model.quantize(directory)
    return directory


def test_every_planned_weight_comes_out_in_its_form(model: Model, whole: Path) -> None:
    weights = QuantizedWeights(whole)
    plans = {p.tensor: p for p in model.plans("gptq")}
    assert set(weights) == plans.keys() and len(plans) == 2 * 7  # seven linear layers in each of two blocks
    for name, plan in plans.items():
        weight = weights[name]
        assert isinstance(weight, QuantizedWeight)
        assert (weight.shape, weight.bits, weight.block) == (plan.shape, 4, 32)


def test_calibrated_weights_serve_the_model_better_than_rounded_ones(model: Model, whole: Path, tmp_path: Path) -> None:
    expected = model.logits(None)

    def noise(weights: QuantizedWeights) -> float:
        return float(np.square(model.logits(weights) - expected).mean())

    assert noise(QuantizedWeights(whole)) < 0.7 * noise(model.quantize(tmp_path / "rtn", "rtn"))


def test_refining_brings_the_model_nearer_to_float(model: Model, whole: Path, tmp_path: Path) -> None:
    """On the sequences that it saw: propagation fits the float model's outputs there, sweeps the layers' own."""
    expected = model.logits(None)
    plain, refined = (
        float(np.square(model.logits(weights) - expected).mean())
        for weights in (QuantizedWeights(whole), model.quantize(tmp_path / "refined", options=REFINED))
    )
    assert refined < 0.9 * plain


def test_the_memory_limit_does_not_change_a_bit(
    model: Model, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spilled = []
    closing = calibrated.Activations.__exit__

    def watched(self: calibrated.Activations, *arguments: object) -> None:
        spilled.append(self.spilled)
        closing(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(calibrated.Activations, "__exit__", watched)
    monkeypatch.setattr(engine, "activation_budget", lambda plans, limit: limit)
    model.quantize(tmp_path / "spilled", limit=2000)
    assert spilled[0] > COUNT * TOKENS * 64 * 4  # all hidden states at least
    assert sha256_path(tmp_path / "spilled") == sha256_path(whole)


def test_blocks_of_ggml_bring_it_nearer_to_float_than_nearest_codes(model: Model, tmp_path: Path) -> None:
    """Weighed by importance they go to the same grids; all weights and both sizes of blocks, for 256 divides some columns."""
    expected, noise = model.logits(None), {}
    for algorithm in ("importance", "gptq"):
        kinds = {p.tensor: "q4_k" if p.shape[-1] % 256 == 0 else "iq4_nl" for p in model.plans("gptq")}
        plans = [replace(p, scheme=kinds[p.tensor], algorithm=algorithm) for p in model.plans("gptq")]
        _quantize(model, plans, tmp_path / algorithm)
        weights = QuantizedWeights(tmp_path / algorithm)
        assert {weights.form(name)["type"] for name in weights} <= {"q4_k", "iq4_nl"} and len(weights) == 2 * 7
        noise[algorithm] = float(np.square(model.logits(weights) - expected).mean())
    assert noise["gptq"] < 0.7 * noise["importance"]


def test_threads_do_not_change_a_bit(model: Model, whole: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            model.quantize(tmp_path / str(count))
            model.quantize(tmp_path / f"{count}-refined", options=REFINED)
            model.quantize(tmp_path / f"{count}-searched", options=SEARCHED)
            assert sha256_path(tmp_path / str(count)) == sha256_path(whole)
        for name in ("refined", "searched"):
            assert sha256_path(tmp_path / f"1-{name}") == sha256_path(tmp_path / f"2-{name}")
    finally:
        torch.set_num_threads(threads)


def test_searching_a_damping_takes_enough_samples_and_longer(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="holds out every 13th calibration sample, and there are 12"):
        model.quantize(tmp_path, options={"damping_search": COUNT + 1})
    monkeypatch.setattr(estimate, "_measured", lambda algorithms: {"mse": 1e8, "flops": 1e11})
    plain, searched = (model.plans("gptq", options) for options in (REFINED, {**REFINED, "damping_search": 3}))
    assert estimate.activation_budget(searched, 1 << 34) < estimate.activation_budget(plain, 1 << 34)
    assert estimate.estimate(searched, 1 << 14, 1 << 34).seconds > estimate.estimate(plain, 1 << 14, 1 << 34).seconds


class Killed(BaseException):
    """What a kill is to a test: nobody catches it."""


@pytest.mark.parametrize("algorithm", ["gptq", "importance", "refined", "blocks"])
@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_run_that_was_killed_anywhere_goes_on_to_the_same_bytes(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, writes: int
) -> None:
    plans = model.plans("gptq", REFINED if algorithm in ("refined", "blocks") else None)
    plans = [_packed(p) if algorithm == "importance" else p for p in plans]
    plans = [replace(p, scheme="iq4_nl") if algorithm == "blocks" else p for p in plans]
    expected, directory = tmp_path / "expected", tmp_path / "killed"
    _quantize(model, plans, expected)
    allowed = iter(range(writes))
    written = engine.Journal.write, engine.Journal.save_state

    def stopping(method: object) -> object:
        def call(self: object, *arguments: object) -> None:
            if next(allowed, None) is None:
                raise Killed
            method(self, *arguments)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patched:
        patched.setattr(engine.Journal, "write", stopping(written[0]))
        patched.setattr(engine.Journal, "save_state", stopping(written[1]))
        if writes < 3:  # one layer's activations and two parts
            with pytest.raises(Killed):
                _quantize(model, plans, directory)
        else:
            _quantize(model, plans, directory)
    done: list[int] = []
    _quantize(model, plans, directory, done)
    assert done[-1] == len(plans)
    assert sha256_path(directory) == sha256_path(expected)


def _quantize(model: Model, plans: list[WeightPlan], directory: Path, done: list[int] | None = None) -> None:
    directory.mkdir(exist_ok=True)
    quantize_weights(
        model.source, model.bundle, plans, directory, feeds={"prefill": model.feeds()}, memory_limit=1 << 34,
        progress=lambda count, total: done.append(count) if done is not None else None,
    )  # fmt: skip


def _packed(plan: WeightPlan) -> WeightPlan:
    return replace(plan, scheme="q4_0", algorithm="importance", options={})


@pytest.mark.parametrize("weighted", [False, True])
def test_importance_is_the_mean_square_of_each_input(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weighted: bool
) -> None:
    weights = np.random.default_rng(1).choice([0, 0.25, 1], (COUNT, TOKENS)) if weighted else np.ones((COUNT, TOKENS))
    found: dict[str, np.ndarray] = {}

    def noted(plan: WeightPlan, stored: torch.Tensor, importance: torch.Tensor) -> PackedWeight:
        found[plan.tensor] = importance.numpy().copy()
        return PackedWeight(plan.scheme, plan.shape, np.zeros((plan.shape[0], 1), np.uint8))

    monkeypatch.setattr(calibrated, "pack_ggml", noted)
    plans = {p.tensor: p for p in map(_packed, model.plans("gptq"))}
    feeds = list(model.feeds())
    if weighted:
        feeds = [{**f, "row_weights": w.astype(np.float32)} for f, w in zip(feeds, weights, strict=True)]
    (tmp_path / "watched").mkdir()
    quantize_weights(
        model.source, model.bundle, list(plans.values()), tmp_path / "watched",
        feeds={"prefill": iter(feeds)}, memory_limit=1 << 34,
    )  # fmt: skip
    graph = clone_graph(model.bundle["prefill"].graph)
    values = {v.name: v for node in graph.graph for v in node.outputs}
    names = sorted({p.activation for p in plans.values()})
    graph.graph.outputs.extend(values[name] for name in names if values[name] not in graph.graph.outputs)
    executor = OrtExecutor(graph)
    runs = [executor.run(feeds) for feeds in model.feeds()]
    squares = {}
    for name in names:
        rows = np.stack([np.square(run[name]) for run in runs])
        squares[name] = np.average(rows, axis=(0, 1), weights=weights[:, -rows.shape[1] :])
    for tensor, plan in plans.items():
        tolerance = 0.05 * float(squares[plan.activation].max())  # products may be in bfloat16
        np.testing.assert_allclose(found[tensor], squares[plan.activation], rtol=0.05, atol=tolerance)


def test_rows_of_weight_0_are_as_if_they_were_not_there(model: Model, tmp_path: Path) -> None:
    """A row that nobody attends to (the first is alone) changes nothing when it does not count either."""
    padding = 6
    results = []
    for seed in (0, 1):
        feeds = []
        for embeds in model.embeds:
            other = np.array(embeds)
            other[:padding] = np.random.default_rng(seed).normal(size=other[:padding].shape)
            weights = np.where(np.arange(TOKENS) < padding, 0, 1).astype(np.float32)
            feeds.append({**model.host.prefill_feeds(other, TOKENS - padding), "row_weights": weights})
        (tmp_path / str(seed)).mkdir()
        quantize_weights(
            model.source, model.bundle, model.plans("gptq"), tmp_path / str(seed),
            feeds={"prefill": iter(feeds)}, memory_limit=1 << 34,
        )  # fmt: skip
        results.append(QuantizedWeights(tmp_path / str(seed)))
    for name in results[0]:
        first, second = results[0][name], results[1][name]
        assert isinstance(first, QuantizedWeight) and isinstance(second, QuantizedWeight)
        np.testing.assert_array_equal(first.integers, second.integers)


def test_no_data_and_numbers_that_are_not_finite_are_errors(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UsageError, match="calibration data"):
        quantize_weights(model.source, model.bundle, model.plans("gptq"), tmp_path / "a", memory_limit=1 << 30)
    (tmp_path / "b").mkdir()
    feeds = [{**f, "inputs_embeds": np.full((TOKENS, 64), np.nan, np.float32)} for f in model.feeds()]
    with pytest.raises(VerificationError, match="not finite"):
        quantize_weights(
            model.source, model.bundle, model.plans("gptq"), tmp_path / "b",
            feeds={"prefill": iter(feeds)}, memory_limit=1 << 30,
        )  # fmt: skip
