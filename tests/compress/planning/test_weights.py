"""What every tensor becomes, on the reference model and a format that takes little."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.registry import Lengths, family_of
from pocketport.compress.formats.contract import SchemeChoice
from pocketport.compress.formats.sizes import GGML_BLOCKS, scheme_bytes
from pocketport.compress.ingest import REFERENCE, path_of
from pocketport.compress.planning.weights import plan_weights
from pocketport.compress.quantized_weights import QuantizedWeight, QuantizedWeights
from pocketport.compress.recipe import Recipe, Rule
from pocketport.compress.schemes import Scheme
from pocketport.compress.sources.open import open_source
from pocketport.compress.sources.source import QuantizedTensor, Source
from pocketport.errors import UsageError


class Plain:
    """A format that takes 4 and 8 bits in linear layers of the language model."""

    name, variants, default_scheme = "plain", ("",), "w4b32fp16"

    def check(self, source: Source, bundle: ModelBundle, variant: str) -> None: ...

    def choose(
        self, tensor: str, shape: tuple[int, ...], component: str, role: str, variant: str, wanted: str | None
    ) -> SchemeChoice:
        if role != "linear" or component != "prefill":
            return SchemeChoice("source", f"{role} of {component or 'the host'}")
        scheme = wanted or self.default_scheme
        if Scheme.parse(scheme).weight_bits not in (4, 8):
            raise UsageError("4 or 8 bits", where=tensor, fix="w4b32fp16")
        return SchemeChoice(scheme, "asked for" if wanted else "the default")

    def write(
        self, source: Source, bundle: ModelBundle, weights: QuantizedWeights, directory: Path, variant: str,
        progress: Callable[[int, int], None],
    ) -> list[Path]:  # fmt: skip
        return []


@pytest.fixture(scope="module")
def reference() -> tuple[Source, ModelBundle]:
    source = open_source(path_of(REFERENCE))
    return source, family_of(source).load(source, REFERENCE, Lengths())


def recipe(*rules: Rule) -> Recipe:
    return Recipe(name="test", rules=list(rules))


def test_every_tensor_is_planned_once(reference: tuple[Source, ModelBundle]) -> None:
    source, bundle = reference
    plans = {p.tensor: p for p in plan_weights(source, bundle, recipe(), Plain(), "")}
    assert plans.keys() == set(source.tensors)
    q = plans["llm.model.layers.0.self_attn.q_proj.weight"]
    assert (q.component, q.scheme, q.algorithm) == ("prefill", "w4b32fp16", "mse")
    assert q.activation == "llm.model.layers.0.input_layernorm"
    table, norm = plans["llm.model.embed_tokens.weight"], plans["llm.model.norm.weight"]
    assert (table.algorithm, norm.algorithm) == ("cast", "cast")
    assert plans["vpm.encoder.layers.0.mlp.fc1.weight"].component == "vision"
    assert plans["resampler.attn.in_proj_weight"].component == ""  # its graph holds three slices of it
    n, k = q.shape
    assert q.bytes_before == n * k * 2 and q.bytes_after == n * k // 2 + n * k // 32 * 2


def test_rules_reach_the_layers_they_name(reference: tuple[Source, ModelBundle]) -> None:
    rules = (Rule(algorithm="gptq"), Rule(name="*layers.0.*", scheme="w8cfp16", algorithm="rtn"))
    plans = {p.tensor: p for p in plan_weights(*reference, recipe(*rules), Plain(), "")}
    first, second = (plans[f"llm.model.layers.{i}.mlp.up_proj.weight"] for i in (0, 1))
    assert (first.scheme, first.algorithm) == ("w8cfp16", "rtn")
    assert (second.scheme, second.algorithm) == ("w4b32fp16", "gptq")


def test_what_a_format_refuses_is_an_error_unless_a_fallback_is_named(reference: tuple[Source, ModelBundle]) -> None:
    with pytest.raises(UsageError, match="4 or 8 bits"):
        plan_weights(*reference, recipe(Rule(scheme="w3b32fp16")), Plain(), "")
    plans = plan_weights(*reference, recipe(Rule(scheme="w3b32fp16", fallback=["w8cfp16"])), Plain(), "")
    assert {p.scheme for p in plans} == {"w8cfp16", "source"}


def test_an_integer_cache_is_no_matter_of_weights(reference: tuple[Source, ModelBundle]) -> None:
    mine = Recipe.model_validate({"name": "mine", "cache": "int8", "targets": {"plain": {"cache": "float"}}})
    assert plan_weights(*reference, mine, Plain(), "")
    with pytest.raises(UsageError, match="holds no key-value cache"):
        plan_weights(*reference, Recipe(name="mine", cache="int4"), Plain(), "")


def test_a_rule_says_whether_zero_points_vary(reference: tuple[Source, ModelBundle]) -> None:
    rules = (Rule(symmetric=False), Rule(name="*layers.0.*", symmetric=True))
    plans = {p.tensor: p for p in plan_weights(*reference, recipe(*rules), Plain(), "")}
    first, second = (plans[f"llm.model.layers.{i}.mlp.up_proj.weight"] for i in (0, 1))
    assert (first.symmetric, second.symmetric) == (True, False)
    n, k = second.shape
    assert second.bytes_after - first.bytes_after == n * k // 32 // 2  # a zero point of 4 bits for each block

    class Blocks(Plain):
        def choose(self, *arguments: object) -> SchemeChoice:  # type: ignore[override]
            return SchemeChoice("q4_0", "the format's")

    with pytest.raises(UsageError, match="zero points of its own"):
        plan_weights(*reference, recipe(Rule(symmetric=False)), Blocks(), "")


@pytest.mark.parametrize("algorithm", ["adaround", "brecq", "sequential_mse"])
def test_algorithms_of_targets_are_refused(reference: tuple[Source, ModelBundle], algorithm: str) -> None:
    with pytest.raises(UsageError, match="for the graphs of targets") as caught:
        plan_weights(*reference, Recipe.model_validate({"name": "t", "rules": [{"algorithm": algorithm}]}), Plain(), "")
    assert "gptq" in caught.value.fix


def test_options_that_gptq_does_not_have_are_refused_before_anything_is_done(
    reference: tuple[Source, ModelBundle],
) -> None:
    with pytest.raises(UsageError, match="no option 'sweep'"):
        plan_weights(*reference, recipe(Rule(algorithm="gptq", algorithm_options={"sweep": 2})), Plain(), "")


def test_a_plan_that_would_do_nothing_is_an_error(reference: tuple[Source, ModelBundle]) -> None:
    class Nothing(Plain):
        def choose(self, *arguments: object) -> SchemeChoice:  # type: ignore[override]
            return SchemeChoice("source", "no place")

    with pytest.raises(UsageError, match="nothing would be quantized"):
        plan_weights(*reference, recipe(), Nothing(), "")


class Published(QuantizedTensor):
    """Integers in groups of 32, 4 bits, symmetric."""

    def quantized(self) -> QuantizedWeight:
        n, k = (int(d) for d in self.shape if isinstance(d, int))
        groups = (n, k // 32)
        return QuantizedWeight(
            4, 32, True, np.full((n, k), 9, np.uint8), np.ones(groups, np.float32), np.full(groups, 8, np.uint8)
        )

    def fits(self, scheme: Scheme, symmetric: bool) -> bool:
        return scheme.weight_bits == 4 and scheme.block == 32 and symmetric


def test_integers_of_the_publisher_are_taken_over(reference: tuple[Source, ModelBundle]) -> None:
    source, bundle = reference
    name = "llm.model.layers.0.self_attn.q_proj.weight"
    shape = tuple(int(d) for d in source.tensors[name].shape if isinstance(d, int))
    changed = Source(source.path, source.config, {**source.tensors, name: Published(shape, name)})
    plans = {p.tensor: p for p in plan_weights(changed, bundle, recipe(), Plain(), "")}
    assert plans[name].algorithm == "stored"
    eight = {p.tensor: p for p in plan_weights(changed, bundle, recipe(Rule(scheme="w8cfp16")), Plain(), "")}
    assert eight[name].algorithm == "mse"


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("w4b128fp16", 4096 * 4096 // 2 + 4096 * 32 * 2), ("w8cfp16", 4096 * 4096 + 4096 * 2), ("f16", 4096 * 4096 * 2),
     ("q4_k", 4096 * 4096 // 256 * 144), ("source", 7)],
)  # fmt: skip
def test_bytes_of_schemes(scheme: str, expected: int) -> None:
    assert scheme_bytes(scheme, (4096, 4096), source_bytes=7) == expected


def test_ggml_block_sizes_are_those_of_the_format_owner() -> None:
    gguf = pytest.importorskip("gguf")
    for name, (weights, size) in GGML_BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]] == (weights, size)
