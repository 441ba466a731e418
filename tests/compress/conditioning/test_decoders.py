"""Conditioned decoders say what the unconditioned ones say, token by token, through the host's own loop."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from decoder_models import save_decoder, save_minicpm

from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.conditioning.condition import Conditioned, condition
from pocketport.compress.executors.ort_executor import Arrays, OrtExecutor
from pocketport.compress.families.decoder.session import DecoderSession
from pocketport.compress.families.language.load import load_language
from pocketport.compress.families.registry import Lengths, host_of
from pocketport.compress.recipe import Conditioning
from pocketport.compress.sources.open import open_source
from pocketport.errors import VerificationError

LENGTHS = Lengths(prompt=24, cache=32)
PROMPT = np.random.default_rng(3).integers(3, 160, 17).tolist()
ANSWER = np.random.default_rng(4).integers(3, 160, 4).tolist()


def load(folder: Path) -> ModelBundle:
    return load_language(open_source(folder), "tiny", LENGTHS)


def run(bundle: ModelBundle) -> tuple[list[tuple[str, Arrays]], np.ndarray]:
    """Feeds of every component, and the logits behind the prompt and behind each further token."""
    feeds: list[tuple[str, Arrays]] = []
    executors = {component.name: OrtExecutor(component.graph) for component in bundle}
    session = DecoderSession(
        executors, host_of(bundle), lambda name, given, _: feeds.append((name, {k: v.copy() for k, v in given.items()}))
    )
    logits = [session.start(session.embed(PROMPT), len(PROMPT)), *(session.step(token) for token in ANSWER)]
    return feeds, np.concatenate(logits)


def feeds_of(bundle: ModelBundle) -> Iterator[tuple[str, Arrays]]:
    return iter(run(bundle)[0])


def conditioned(bundle: ModelBundle, *steps: dict[str, Any]) -> tuple[ModelBundle, list[Conditioned]]:
    return condition(bundle, [Conditioning.model_validate(s) for s in steps], feeds_of, chained=True)


def weights(bundle: ModelBundle, component: str) -> dict[str, np.ndarray]:
    found = bundle[component].graph.graph.initializers.values()
    return {str(v.name): v.const_value.numpy() for v in found if v.const_value is not None}


STEPS = [
    {"rewrite": "smoothquant"}, {"rewrite": "fold_gain"}, {"rewrite": "equalize"}, {"rewrite": "awq", "options": {"steps": 4}},
    {"rewrite": "reorder"}, {"rewrite": "reorder", "options": {"by": "importance"}}, {"rewrite": "rotate"},
    {"rewrite": "rotate", "options": {"hadamard": 0, "seed": 3}}, {"rewrite": "split_hidden"},
]  # fmt: skip


@pytest.fixture(scope="module")
def minicpm(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """Scaled embeddings, scaled residuals, grouped queries; the embedding is the head too."""
    return load(save_minicpm(tmp_path_factory.mktemp("minicpm")))


@pytest.mark.parametrize(
    "step", STEPS, ids=lambda s: "-".join(map(str, (s["rewrite"], *s.get("options", {}).values())))
)
def test_the_same_logits(minicpm: ModelBundle, step: dict[str, Any]) -> None:
    before = {name: weights(minicpm, name) for name in minicpm.components}
    after, (done,) = conditioned(minicpm, step)
    assert sqnr_db(run(minicpm)[1], run(after)[1]) > 100
    assert done.streams >= 2 and {"prefill", "decode"} <= set(done.components)
    changed = [
        n for n, array in weights(after, "prefill").items() if not np.array_equal(array, before["prefill"].get(n))
    ]
    assert changed
    alike = weights(after, "decode")
    for name, array in weights(after, "prefill").items():
        if name in alike:
            np.testing.assert_array_equal(array, alike[name])
    for name in minicpm.components:  # the original is as it was
        for tensor, array in weights(minicpm, name).items():
            np.testing.assert_array_equal(array, before[name][tensor])


def test_one_after_the_other(minicpm: ModelBundle) -> None:
    after, done = conditioned(minicpm, *({"rewrite": name} for name in ("rotate", "smoothquant", "reorder", "awq")))
    assert [d.rewrite for d in done] == ["rotate", "smoothquant", "reorder", "awq"]
    assert sqnr_db(run(minicpm)[1], run(after)[1]) > 100


@pytest.mark.parametrize("name", ["llama", "llama-multi-head", "qwen3", "qwen3_5-shared-keys"])
def test_other_decoders(tmp_path: Path, name: str) -> None:
    """Biases, ungrouped heads, normed queries and keys, linear attention."""
    pytest.importorskip("transformers")
    bundle = load(save_decoder(tmp_path, name))
    expected = run(bundle)[1]
    for rewrite in ("rotate", "equalize", "reorder"):
        after, (done,) = conditioned(bundle, {"rewrite": rewrite})
        assert sqnr_db(expected, run(after)[1]) > 100, rewrite
        assert rewrite == "equalize" or "embed" in done.components  # the residual stream is among what changed


def test_norms_that_add_to_the_stream_stop_a_rotation_of_it(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    bundle = load(save_decoder(tmp_path, "gemma3_text"))
    with pytest.raises(VerificationError, match="gain of a norm"):
        conditioned(bundle, {"rewrite": "rotate", "options": {"values": 0}})
    after, (done,) = conditioned(bundle, {"rewrite": "rotate"})
    assert "embed" not in done.components
    assert sqnr_db(run(bundle)[1], run(after)[1]) > 100


def test_online_rotations_beside_folded_ones(minicpm: ModelBundle) -> None:
    steps = ({"rewrite": "rotate"}, {"rewrite": "rotate_online", "component": "[pd]*"}, {"rewrite": "smoothquant"})
    after, (_, done, _) = conditioned(minicpm, *steps)
    assert (done.streams, done.components, done.crossings) == (2, ("prefill", "decode"), ())  # one a layer
    assert sqnr_db(run(minicpm)[1], run(after)[1]) > 100
    alike = weights(after, "decode")
    for name, array in weights(after, "prefill").items():
        if name in alike and array.dtype == np.float32:
            np.testing.assert_array_equal(array, alike[name])


def test_what_others_read_stays_unless_they_change_too(minicpm: ModelBundle) -> None:
    """Without decode, or where the user's own files hold the cache, values keep their channels."""
    for component, chained in (("prefill", True), ("*", False)):
        step = Conditioning(rewrite="rotate", component=component)
        with pytest.raises(VerificationError, match="found nothing"):
            condition(minicpm, [step], feeds_of, chained=chained)


def _stream(bundle: ModelBundle, feeds: list[tuple[str, Arrays]]) -> np.ndarray:
    """The residual stream behind the first layer of prefill."""
    graph = bundle["prefill"].graph.clone()
    graph.graph.outputs[:] = [v for n in graph.graph for v in n.outputs if v.name == "model.layers.0.mlp.residual"]
    (values,) = OrtExecutor(graph).run(next(f for n, f in feeds if n == "prefill")).values()
    return np.asarray(values[-len(PROMPT) :])


def test_rotating_spreads_outliers(minicpm: ModelBundle) -> None:
    graphs = {c.name: c.graph.clone() for c in minicpm}
    table = graphs["embed"].graph.initializers["model.embed_tokens.weight"]
    numbers = np.array(table.const_value.numpy())  # type: ignore[union-attr]
    numbers[:, 5] *= 100
    table.const_value = ir.tensor(numbers, name=table.name)
    planted = minicpm.with_graphs(graphs)
    after, _ = conditioned(planted, {"rewrite": "rotate"})
    spans = []
    for bundle in (planted, after):
        feeds, _ = run(bundle)
        x = _stream(bundle, feeds)
        spans.append(np.abs(x).max() / np.sqrt(np.square(x).mean()))
    assert spans[1] < 0.6 * spans[0]
    np.testing.assert_allclose(
        np.linalg.norm(_stream(planted, run(planted)[0]), axis=1), np.linalg.norm(x, axis=1), rtol=1e-4
    )


def test_rotations_are_where_quarot_puts_them(minicpm: ModelBundle) -> None:
    """E·R, W·diag(g)·R behind norms, Rᵀ·W before the residual (arXiv 2404.00456, section 4); R is the embedding's."""
    after, _ = conditioned(minicpm, {"rewrite": "rotate", "options": {"values": 0}})
    old, new = ({n: w.astype(np.float64) for n, w in weights(b, "prefill").items()} for b in (minicpm, after))
    tables = [weights(b, "embed")["model.embed_tokens.weight"].astype(np.float64) for b in (minicpm, after)]
    r = np.linalg.lstsq(*tables, rcond=None)[0]
    np.testing.assert_allclose(r @ r.T, np.eye(64), atol=1e-5)
    np.testing.assert_allclose(np.abs(r), 1 / 8, atol=1e-5)  # Hadamard: every channel is spread over all
    head, norm = "model.embed_tokens.weight", "model.norm.weight"
    np.testing.assert_allclose(new[head], old[head] * old[norm] @ r, atol=1e-5)
    assert (new[norm] == 1).all()
    for i in range(2):
        path = f"model.layers.{i}"
        for name, gain in (("self_attn.q", "input"), ("self_attn.v", "input"), ("mlp.up", "post_attention")):
            w, g = f"{path}.{name}_proj.weight", f"{path}.{gain}_layernorm.weight"
            np.testing.assert_allclose(new[w], old[w] * old[g] @ r, atol=1e-5)
        for name in ("self_attn.o", "mlp.down"):
            w = f"{path}.{name}_proj.weight"
            np.testing.assert_allclose(new[w], r.T @ old[w], atol=1e-5)


def test_values_turn_head_by_head(minicpm: ModelBundle) -> None:
    after, _ = conditioned(minicpm, {"rewrite": "rotate", "options": {"residual": 0}})
    old, new = (weights(b, "prefill") for b in (minicpm, after))
    v, o = (f"model.layers.0.self_attn.{n}_proj.weight" for n in "vo")
    heads = [w[v].astype(np.float64).reshape(2, 16, 64) for w in (old, new)]  # 2 heads of keys and values, 4 of queries
    r = np.linalg.lstsq(heads[0][0].T, heads[1][0].T, rcond=None)[0]
    np.testing.assert_allclose(r @ r.T, np.eye(16), atol=1e-5)
    np.testing.assert_allclose(heads[1][1], r.T @ heads[0][1], atol=1e-5)
    np.testing.assert_allclose(new[o].reshape(64, 4, 16), old[o].reshape(64, 4, 16) @ r, atol=1e-5)
    changed = {n for n in old if not np.array_equal(old[n], new[n])}
    assert changed == {f"model.layers.{i}.self_attn.{n}_proj.weight" for i in range(2) for n in "vo"}
