"""Integer caches against the same cache kept in float and rounded by the formulas in numpy; bytes by hand."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from decoder_models import save_decoder
from small_models import cnn_bundle

from pocketport.calibration.capture import calibrate
from pocketport.calibration.statistics import ChannelRange, Statistics
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.cache.float_cache import CacheConversion, with_float_ends
from pocketport.compress.cache.integer_cache import KeyRanges, key_ranges, with_integer_cache
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.decoder.host import DecoderHost
from pocketport.compress.families.decoder.session import DecoderSession
from pocketport.compress.families.registry import Lengths, family_of, host_of
from pocketport.compress.sources.open import open_source
from pocketport.errors import InputError, UsageError
from pocketport.profiles.memory import memory_plan

PROMPT, CACHE, LENGTH = 16, 20, 11


class Model:
    def __init__(self, folder: Path, name: str) -> None:
        source = open_source(save_decoder(folder, name))
        self.bundle: ModelBundle = family_of(source).load(source, name, Lengths(prompt=PROMPT, cache=CACHE))
        self.host: DecoderHost = host_of(self.bundle)
        self.rng = np.random.default_rng(0)
        graphs = {c.name: c.graph for c in self.bundle}
        self.ranges: KeyRanges = key_ranges(calibrate(graphs, (("prefill", f) for f in self.feeds())))

    def tokens(self, count: int) -> list[int]:
        return [int(t) for t in self.rng.integers(0, self.host.config.vocab_size, count)]

    def feeds(self) -> Iterator[dict[str, np.ndarray]]:
        embed = OrtExecutor(self.bundle["embed"].graph)
        rng = np.random.default_rng(0)
        for _ in range(4):
            tokens = [int(t) for t in rng.integers(0, self.host.config.vocab_size, LENGTH)]
            embeds = np.array(embed.run({"input_ids": self.host.prompt_ids(tokens)})["embeds"])
            yield self.host.prefill_feeds(embeds, LENGTH)


@pytest.fixture(scope="module", params=["qwen3", "qwen3_5"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp(request.param), request.param)


def restored(name: str, x: np.ndarray, ranges: KeyRanges, bits: int) -> np.ndarray:
    """What a column is after rounding: keys by channel, values by token, between least and greatest."""
    levels = 2**bits - 1
    if name.startswith("key_"):
        low, high = ranges[name].low[:, None], ranges[name].high[:, None]
        room = np.float32(0.25 if bits == 8 else 0) * (high - low)
        low, high = low - room, high + room
    elif name.startswith("value_"):
        low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    else:
        return x
    step = np.maximum((high - low) / np.float32(levels), np.float32(1e-6))
    return np.clip(np.rint((x - low) / step), 0, levels) * step + low


class Rounded:
    """A float graph whose keys and values are rounded when they come out, and when they go in."""

    def __init__(self, executor: OrtExecutor, ranges: KeyRanges, bits: int) -> None:
        self.executor, self.ranges, self.bits = executor, ranges, bits

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.rounded(self.executor.run(self.rounded(feeds)))

    def rounded(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = {n: n.removeprefix("present_").removeprefix("past_") for n in arrays}
        return {n: restored(names[n], v, self.ranges, self.bits) for n, v in arrays.items()}


def logits(session: DecoderSession, tokens: list[int]) -> np.ndarray:
    first = session.start(session.embed(tokens[:LENGTH]), LENGTH)
    return np.concatenate([first, *(session.step(t) for t in tokens[LENGTH:])])


def decode_feeds(model: Model, steps: int) -> Iterator[dict[str, np.ndarray]]:
    """Of the float chain."""
    calls: list[dict[str, np.ndarray]] = []

    def observe(component: str, feeds: dict[str, np.ndarray], results: dict[str, np.ndarray]) -> None:
        if component == "decode":
            calls.append({n: np.array(v) for n, v in feeds.items()})

    executors = {c.name: OrtExecutor(c.graph) for c in model.bundle}
    session = DecoderSession(executors, model.host, observe)
    session.start(session.embed(model.tokens(LENGTH)), LENGTH)
    for token in model.tokens(steps):
        session.step(token)
    return iter(calls)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_graphs_compute_what_a_rounded_float_cache_gives(model: Model, bits: int) -> None:
    made = with_integer_cache(model.bundle, model.ranges, bits)
    plain = {c.name: OrtExecutor(c.graph) for c in model.bundle}
    rounding = {n: Rounded(e, model.ranges, bits) if n != "embed" else e for n, e in plain.items()}
    integer = {c.name: OrtExecutor(c.graph) for c in made}
    tokens = model.tokens(LENGTH + CACHE - PROMPT)
    exact, expected, got = (logits(DecoderSession(e, model.host), tokens) for e in (plain, rounding, integer))
    np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max())
    np.testing.assert_array_equal(got[0], exact[0], "the first logits see no cache")
    noise = np.square(got - exact)[1:].mean() / np.square(exact)[1:].mean()
    assert 0 < noise < (0.01 if bits == 8 else 0.5)
    stored = integer["prefill"].run(next(model.feeds()))
    for name in model.host.config.state_names():
        assert stored[f"present_{name}"].dtype == (np.uint8 if name.startswith(("key_", "value_")) else np.float32)


def test_ranges_of_keys_leave_padding_out_and_take_decoded_tokens_in(model: Model) -> None:
    feeds = [("prefill", next(model.feeds())), *((("decode", f)) for f in decode_feeds(model, 2))]
    executors = {n: OrtExecutor(model.bundle[n].graph) for n in ("prefill", "decode")}
    found = key_ranges(calibrate({n: model.bundle[n].graph for n in executors}, feeds))
    assert found.keys() == {n for n in model.host.config.state_names() if n.startswith("key_")}
    for name, extremes in found.items():
        runs = [executors[n].run(f)[f"present_{name}"][0] for n, f in feeds]
        tokens = np.concatenate([runs[0][:, PROMPT - LENGTH :], *runs[1:]], axis=1)
        np.testing.assert_array_equal(extremes.low, tokens.min(1))
        np.testing.assert_array_equal(extremes.high, tokens.max(1))


@pytest.mark.parametrize("bits", [8, 4])
def test_float_ends_round_as_the_host_would(model: Model, bits: int) -> None:
    """The graph with float ends, and the conversion of feeds and results, against the float graph rounded in numpy."""
    made = with_integer_cache(model.bundle, model.ranges, bits)
    for name, feeds in (("prefill", next(model.feeds())), *(("decode", f) for f in decode_feeds(model, 1))):
        graph, plain = made[name].graph, OrtExecutor(model.bundle[name].graph)
        expected = Rounded(plain, model.ranges, bits).run(feeds)
        conversion = CacheConversion.of(graph)
        converted = conversion.restored(OrtExecutor(graph).run(conversion.stored(feeds)))
        ended = OrtExecutor(with_float_ends(graph)).run(feeds)
        assert conversion.bits == bits and expected.keys() == converted.keys() == ended.keys()
        for key, value in expected.items():
            scale = 2e-3 * np.abs(value).max()
            step = 0 if key == "logits" else np.abs(value).max() / 2 ** (bits - 2)  # one may round to the next integer
            for other in (converted[key], ended[key]):
                assert np.mean(np.abs(other - value) > scale) < 1e-2 and np.abs(other - value).max() <= scale + step
    graph = model.bundle["decode"].graph
    assert with_float_ends(graph) is graph and CacheConversion.of(graph).stored(feeds).keys() == feeds.keys()


@pytest.mark.parametrize("bits", [8, 4])
def test_memory_counts_its_bytes(model: Model, bits: int) -> None:
    config, made = model.host.config, with_integer_cache(model.bundle, model.ranges, bits)
    before, after = (
        next(s.cache for s in memory_plan({c.name: c.graph for c in b}, float_bits=32).steps if s.name == "decode")
        for b in (model.bundle, made)
    )
    heads, attending = config.num_key_value_heads, sum(kind != "linear_attention" for kind in config.layer_types)
    saved = 2 * heads * CACHE * config.head_dim * (32 - bits) // 8 - heads * CACHE * 2 * 4  # a range for each token
    assert before - after == attending * saved


def test_a_wide_channel_costs_the_others_nothing(model: Model) -> None:
    """Why keys have a range for each channel: one range for a token's keys would lose the narrow ones."""
    rng = np.random.default_rng(3)
    keys = rng.standard_normal((1, 2, 64, 32)).astype(np.float32)
    keys[..., 5] += 40
    ranges = {"key_0": ChannelRange(keys[0].min(1), keys[0].max(1))}
    by_channel = np.square(restored("key_0", keys, ranges, 4) - keys).mean()
    by_token = np.square(restored("value_0", keys, ranges, 4) - keys).mean()
    assert by_channel < by_token / 20


def test_what_can_not_be_done_is_an_error(model: Model) -> None:
    with pytest.raises(UsageError, match="3 bits"):
        with_integer_cache(model.bundle, model.ranges, 3)
    with pytest.raises(UsageError, match="no key-value cache"):
        with_integer_cache(cnn_bundle()[0], {}, 8)
    with pytest.raises(InputError, match="no range"):
        with_integer_cache(model.bundle, {}, 8)
    with pytest.raises(UsageError, match="saw no keys"):
        key_ranges(Statistics())
