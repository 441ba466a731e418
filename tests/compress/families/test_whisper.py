"""Whisper: the parity gate, log-mel features and greedy answers against transformers, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from whisper_models import AUDIO, CONFIG, GENERATION, save_whisper

from pocketport.calibration.capture import calibrate
from pocketport.compress.cache.integer_cache import key_ranges, with_integer_cache
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.registry import Lengths
from pocketport.compress.families.whisper.config import Generation, WhisperConfig
from pocketport.compress.families.whisper.features import LogMel, mel_filters
from pocketport.compress.families.whisper.host import WhisperHost
from pocketport.compress.families.whisper.load import load_whisper
from pocketport.compress.families.whisper.parity import cut_out
from pocketport.compress.families.whisper.runner import WhisperRunner, calibration_arrays
from pocketport.compress.ingest import ingest
from pocketport.compress.parity import check_parity
from pocketport.compress.sources.open import open_source
from pocketport.data import load_data
from pocketport.errors import InputError, UsageError, VerificationError
from pocketport.request import Request

transformers = pytest.importorskip("transformers")

FEATURE_TOLERANCE = 1e-6  # transformers rounds the spectrum to complex64


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint, made once; not to be written to."""
    return save_whisper(tmp_path_factory.mktemp("whisper") / "model")


def sound(seconds: float, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Loud and quiet noise."""
    rng = np.random.default_rng(seed)
    count = round(seconds * 16000)
    return (rng.standard_normal(count) * np.linspace(0.001, 0.3, count)).astype(np.float32)


def runner(folder: Path, prompts: list[list[int]] | None = None) -> WhisperRunner:
    """Over onnxruntime; `prompts` collects what embed is given."""

    def observe(component: str, feeds: Any, results: Any) -> None:
        if component == "embed" and prompts is not None:
            prompts.append(feeds["input_ids"].tolist())

    bundle = ingest(folder)
    return WhisperRunner({c.name: OrtExecutor(c.graph) for c in bundle}, bundle.config, observe)


def test_every_output_is_what_transformers_computes(saved: Path) -> None:
    bundle = ingest(saved)
    report = check_parity(bundle, saved)
    compared = {(figure.component, figure.tensor) for figure in report.figures}
    outputs = {(c.name, str(v.name)) for c in bundle if c.name != "embed" for v in c.graph.graph.outputs}
    assert outputs <= compared
    assert {("encoder", "input_features"), ("decode", "token_ids")} <= compared
    assert min(figure.sqnr_db for figure in report.figures) > 100


def test_the_gate_sees_a_changed_weight(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(saved / "model.safetensors")
    tensors["model.decoder.layers.1.encoder_attn.v_proj.bias"] += 0.01
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(VerificationError, match="differs from the original"):
        check_parity(ingest(saved), tmp_path)


def test_weights_have_their_published_names_and_no_shape_is_open(saved: Path) -> None:
    bundle = ingest(saved)
    tensors = set(open_source(saved).tensors)
    used = {name for c in bundle for name in c.graph.graph.initializers if name.startswith(("model.", "proj_out"))}
    assert used == tensors
    for component in bundle:
        gemms = [node for node in component.graph.graph if node.op_type == "Gemm"]
        assert all(node.attributes["transB"].as_int() == 1 and len(node.inputs[0].shape) == 2 for node in gemms)  # type: ignore[union-attr, arg-type]
        assert all(isinstance(d, int) for node in component.graph.graph for v in node.outputs for d in v.shape or ("",))
    states = [group for group in bundle.shared if group[0].startswith("prefill/")]
    assert states[0] == ["prefill/present_key_0", "decode/past_key_0", "decode/present_key_0"]
    assert ["encoder/cross_value_1", "prefill/cross_value_1", "decode/cross_value_1"] in bundle.shared


@pytest.mark.parametrize("changes", [{"activation_function": "gelu_new"}, {"tie_word_embeddings": False}])
def test_forms_that_published_models_may_have(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = save_whisper(tmp_path / "model", **changes)
    bundle = ingest(folder)
    assert ("proj_out.weight" in bundle["decode"].graph.graph.initializers) == ("tie_word_embeddings" in changes)
    assert min(figure.sqnr_db for figure in check_parity(bundle, folder).figures) > 90


def test_a_large_model_is_compared_by_its_first_and_last_layers(saved: Path) -> None:
    whole = open_source(saved)
    part = cut_out(whole)
    assert (part.config["encoder_layers"], part.config["decoder_layers"]) == (2, 2)
    name = "model.encoder.layers.{}.fc1.weight"
    assert np.array_equal(part.tensors[name.format(1)].numpy(), whole.tensors[name.format(2)].numpy())
    assert name.format(2) not in part.tensors
    assert load_whisper(part, "part", Lengths(prompt=3, cache=8)).config["audio"]["chunk_length"] == 1


# Features


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({}, 30.0),
        ({}, 3.21),
        ({"feature_size": 128}, 11.0),
        ({"chunk_length": 2}, 0.0001),
        ({"padding_value": 0.01}, 1.0),
    ],
)
def test_features_are_those_of_transformers(settings: dict[str, Any], seconds: float) -> None:
    ours, theirs = LogMel.from_hf(settings), transformers.WhisperFeatureExtractor(**settings)
    waveform = sound(seconds)
    found = ours.apply(waveform)
    expected = theirs(waveform, sampling_rate=16000, return_tensors="np")["input_features"]
    assert found.dtype == np.float32 and found.shape == expected.shape == (1, ours.feature_size, ours.frames)
    assert np.abs(found - expected).max() <= 10 * FEATURE_TOLERANCE  # with torch it works in float32
    padded = np.full(ours.samples, ours.padding_value, np.float32)
    padded[: len(waveform)] = waveform
    in_numpy = theirs._np_extract_fbank_features(padded[None], "cpu")
    assert np.abs(found - in_numpy).max() <= FEATURE_TOLERANCE


@pytest.mark.parametrize("mels", [80, 128])
def test_the_filter_bank_is_transformers(mels: int) -> None:
    expected = transformers.WhisperFeatureExtractor(feature_size=mels).mel_filters
    assert np.allclose(mel_filters(201, mels, 16000), expected.T, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros(0, np.float32), "0 samples"),
        (np.zeros(16001, np.float32), "16001 samples"),
        (np.zeros((2, 100), np.float32), "one channel"),
        (np.zeros(100, np.int16), "int16"),
        (np.array([0.0, np.nan]), "NaN"),
    ],
)
def test_sounds_that_are_refused(waveform: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LogMel(chunk_length=1).apply(waveform)


# Answers


@pytest.mark.parametrize("options", [{"language": "de", "task": "translate"}, {"language": None, "task": "transcribe"}])
def test_answers_are_those_of_generate(tmp_path: Path, options: dict[str, Any]) -> None:
    prompts, answers = [], set()
    for seed in (2, 6):
        folder = save_whisper(tmp_path / f"{seed}", seed=seed)
        model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
        extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
        for waveform in (sound(0.8, 1), sound(0.5, 9)):
            prompts.clear()
            found = runner(folder, prompts).transcribe(waveform, max_new_tokens=10, **options)
            features = extractor(waveform, sampling_rate=16000, return_tensors="pt")["input_features"]
            with torch.inference_mode():
                expected = model.generate(features, do_sample=False, max_new_tokens=10, **options)[0].tolist()
                language = 104 if options["language"] else int(model.detect_language(features)[0])
            assert [token for token in found if token != 100] == [token for token in expected if token != 100]
            forced = [101, language, GENERATION["task_to_id"][options["task"]], 119]
            assert [prompt for prompt in prompts if prompt[0] == 101] == [forced]
            answers.add(tuple(expected))
    assert len(answers) >= 3 and all(len(set(answer)) > 2 for answer in answers)


@pytest.mark.parametrize(("bits", "noise"), [(8, 0.01), (4, 0.3)])
def test_a_cache_of_integers(saved: Path, bits: int, noise: float) -> None:
    """The host copies whatever the graphs give."""
    bundle = ingest(saved)
    graphs = {c.name: c.graph for c in bundle}

    def transcribed(own: dict[str, Any]) -> tuple[list[int], list[tuple[str, Any]], list[Any]]:
        calls: list[tuple[str, Any]] = []
        logits: list[Any] = []

        def observe(component: str, feeds: Any, results: Any) -> None:
            calls.append((component, {n: np.array(v) for n, v in feeds.items()}))
            if component in ("prefill", "decode"):
                logits.append(results["logits"])

        runner = WhisperRunner({n: OrtExecutor(g) for n, g in own.items()}, bundle.config, observe)
        return runner.transcribe(sound(0.7), language="en", max_new_tokens=6), calls, logits

    tokens, calls, logits = transcribed(graphs)
    made = with_integer_cache(bundle, key_ranges(calibrate(graphs, calls)), bits)
    rounded, integers, others = transcribed({c.name: c.graph for c in made})
    before, after = (next(f for n, f in c if n == "decode") for c in (calls, integers))
    assert after["past_key_0"].dtype == np.uint8 and after["past_value_range_1"].dtype == np.float32
    assert after["past_key_0"].shape[-1] == before["past_key_0"].shape[-1] * bits // 8
    np.testing.assert_array_equal(logits[0], others[0], "prefill sees no cache")
    assert 0 < np.square(others[1] - logits[1]).mean() < noise * np.square(logits[1]).mean()
    assert bits == 4 or rounded == tokens


def test_forced_tokens() -> None:
    generation = Generation.from_hf(GENERATION, 120)
    assert generation.prefix(generation.language_id("zh"), None) == [101, 103, 106, 119]
    assert generation.prefix(generation.language_id("<|en|>"), "translate") == [101, 102, 105, 119]
    english = Generation.from_hf({"decoder_start_token_id": 101, "no_timestamps_token_id": 119}, 120)
    assert english.prefix(None, None) == english.prefix(None, "transcribe") == [101, 119]
    older = {"decoder_start_token_id": 101, "forced_decoder_ids": [[1, 102], [2, 106], [3, 119]]}
    assert Generation.from_hf(older, 120).prefix(None, None) == [101, 102, 106, 119]
    assert Generation.from_hf({**older, "no_timestamps_token_id": 119}, 120).prefix(None, None)[-2:] == [106, 119]
    for wrong in (lambda: generation.language_id("xx"), lambda: english.language_id("en")):
        with pytest.raises(UsageError, match="language"):
            wrong()
    for wrong_task in (lambda: generation.prefix(102, "sing"), lambda: english.prefix(None, "translate")):
        with pytest.raises(UsageError, match="task"):
            wrong_task()


def test_suppressed_tokens_are_never_chosen(saved: Path) -> None:
    host = WhisperHost.of(ingest(saved).config)
    logits = np.zeros((1, 120), np.float32)
    logits[0, [7, 20, 50]] = 3, 2, 1
    assert (host.choose(logits, first=True), host.choose(logits, first=False)) == (50, 20)
    logits[0, [102, 104]] = 0.1, 0.2
    assert host.heard_language(logits) == 104


def test_what_does_not_fit(saved: Path) -> None:
    found = runner(saved)
    with pytest.raises(UsageError, match="22 new tokens"):
        found.transcribe(sound(0.5), max_new_tokens=22)
    with pytest.raises(InputError, match="prompt has 5 tokens"):
        found.host.embed_feeds([1] * 5)
    with pytest.raises(InputError, match="vocabulary"):
        found.host.embed_feeds([120])
    for lengths in (Lengths(prompt=24), Lengths(cache=25), Lengths(patches=3)):
        with pytest.raises(UsageError, match="lengths"):
            load_whisper(open_source(saved), "whisper", lengths)


# Files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 0}, "d_model"),
        ({"d_model": "wide"}, "d_model"),
        ({"decoder_layers": None}, "decoder_layers"),
        ({"decoder_attention_heads": 5}, "decoder_attention_heads"),
        ({"encoder_attention_heads": 3}, "encoder_attention_heads"),
        ({"activation_function": "relu6"}, "activation_function"),
        ({"max_target_positions": float("nan")}, "max_target_positions"),
    ],
)
def test_configurations_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WhisperConfig.from_hf({**CONFIG, **change})


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config", {"decoder_layers": 3}, r"decoder\.layers\.2"),
        ("config", {"decoder_layers": 1}, "no place"),
        ("config", {"vocab_size": 121}, "embed_tokens"),
        ("config", {"max_source_positions": 49}, "max_source_positions"),
        ("preprocessor_config", {"feature_size": 80}, "feature_size"),
        ("preprocessor_config", {"n_fft": "400 samples"}, "n_fft"),
        ("preprocessor_config", {"dither": 0.1}, "dither"),
        ("generation_config", {"lang_to_id": {"<|en|>": 120}}, "<|en|>"),
        ("generation_config", {"task_to_id": ["transcribe"]}, "task_to_id"),
        ("generation_config", {"no_timestamps_token_id": -1}, "no_timestamps_token_id"),
        ("generation_config", {"forced_decoder_ids": [[1, 120]]}, "forced_decoder_ids"),
    ],
)
def test_files_that_do_not_fit(saved: Path, tmp_path: Path, file: str, change: dict[str, Any], message: str) -> None:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    document = json.loads((saved / f"{file}.json").read_text())
    (tmp_path / f"{file}.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(InputError, match=message):
        ingest(tmp_path)


def test_one_file_of_arrays_calibrates_every_component(saved: Path, tmp_path: Path) -> None:
    bundle = ingest(saved)
    executors = {c.name: OrtExecutor(c.graph) for c in bundle}
    arrays = calibration_arrays(executors, bundle.config, [sound(0.7, seed) for seed in range(4)], tokens=5)
    np.savez(tmp_path / "speech.npz", **arrays)
    data = load_data(bundle, Request(source=str(saved), data=str(tmp_path / "speech.npz")))
    names = []
    for name, feeds in data.calibration():
        assert set(executors[name].run(feeds)) == set(executors[name].outputs)
        names.append(name)
    assert names == ["encoder", "embed", "prefill", "decode"] * 3
    assert AUDIO["feature_size"] == arrays["input_features"].shape[2]
