"""What every tensor of a checkpoint becomes in a checkpoint format, settled before anything is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import onnx_ir as ir

from pocketport.compress.blockwise.options import GptqOptions
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.checkpoint import StoredTensor
from pocketport.compress.formats.contract import Format, SchemeChoice, WeightPlan
from pocketport.compress.formats.sizes import GGML_BLOCKS, scheme_bytes
from pocketport.compress.graph import dimensions
from pocketport.compress.recipe import Recipe, Rule
from pocketport.compress.schemes import Scheme
from pocketport.compress.sources.source import DerivedTensor, QuantizedTensor, Source
from pocketport.compress.structure import weight_operand
from pocketport.errors import UsageError

FLOAT_SCHEMES = frozenset({"f32", "f16", "bf16", "source"})
DEFAULT_ALGORITHM = "mse"  # needs no data
CALIBRATED = frozenset({"gptq", "importance"})
CALIBRATED_COMPONENT = "prefill"  # the one that calibration sequences go through
OF_TARGETS = frozenset({"adaround", "brecq", "sequential_mse"})
REORDERING = frozenset({"gptq"})  # formats that can say which group each column belongs to


@dataclass(frozen=True)
class Use:
    """Where a tensor is used first: component, node and its op, the role of `Format.choose`, the activation it meets."""

    component: str = ""
    node: str = ""
    op: str = ""
    role: str = "other"
    activation: str = ""


def plan_weights(
    source: Source, bundle: ModelBundle, recipe: Recipe, form: Format, variant: str, only: Sequence[str] | None = None
) -> list[WeightPlan]:
    """Plan every tensor of `source`, in the order of its names; or those named in `only`.

    Raises:
        UsageError: the recipe asks for a scheme that the format does not take, without a fall-back; or for schemes
            under which no tensor at all would be quantized; or for conditioning or an integer cache, which change graphs;
            or gives gptq options that it does not have.
    """
    if recipe.conditioning:
        raise UsageError(
            f"{recipe.conditioning[0].rewrite} rewrites graphs, which a format of weights does not have",
            where=f"recipe {recipe.name}, conditioning",
            fix="use the recipe for a --target, or take `conditioning` out of it",
        )
    uses, destination = find_uses(bundle), f"{form.name}/{variant}" if variant else form.name
    rules, cache = recipe.rules_for(destination), recipe.cache_for(destination)
    if cache != "float":
        raise UsageError(
            "a file of weights holds no key-value cache", where=f"recipe {recipe.name}, cache {cache}",
            fix=f"write `cache: float` for {form.name} under its `targets:`, and set the engine's cache where it runs",
        )  # fmt: skip
    names = sorted(source.tensors) if only is None else only
    plans = [_plan(name, source.tensors[name], uses.get(name, Use()), rules, form, variant) for name in names]
    wants = form.default_scheme not in FLOAT_SCHEMES and variant not in FLOAT_SCHEMES
    if only is None and wants and not any(p.quantized for p in plans):
        raise UsageError(
            "nothing would be quantized: every tensor stays float",
            where=f"plan for {form.name}",
            fix="ask for a scheme in the recipe, or for the format's float variant",
        )
    return plans


def find_uses(bundle: ModelBundle) -> dict[str, Use]:
    """The first use of every weight, by the weight's name; a table that is also the head counts as a table."""
    uses: dict[str, Use] = {}
    for component in bundle:
        heads = {node for value in component.graph.graph.outputs[:1] if (node := value.producer()) is not None}
        for node in component.graph.graph:
            operand = weight_operand(node)
            if operand is None or not operand.value.name or operand.value.name in uses:
                continue
            role = {"linear": "linear", "table": "table"}.get(operand.kind, "other")
            if (
                role == "linear"
                and node in heads
                and operand.value.name.endswith(("lm_head.weight", "embed_tokens.weight"))
            ):
                role = "head"
            activation = "" if operand.activation is None else operand.activation.name or ""
            uses[operand.value.name] = Use(component.name, node.name or "", node.op_type, role, activation)
    return uses


def stored_bytes(tensor: ir.TensorProtocol) -> int:
    """Bytes of a tensor where it lies; in float16 if it is none of the file's."""
    if isinstance(tensor, StoredTensor):
        return tensor.stored_nbytes
    if isinstance(tensor, QuantizedTensor | DerivedTensor) and tensor.parts:
        return sum(part.stored_nbytes for part in tensor.parts)
    return prod(dimensions(tensor)) * 2


def _plan(
    name: str, tensor: ir.TensorProtocol, use: Use, rules: Sequence[Rule], form: Format, variant: str
) -> WeightPlan:
    shape, before = dimensions(tensor), stored_bytes(tensor)
    matching = [r for r in rules if r.matches(use.component, use.op, use.node or name)]
    if next((r.low_rank for r in reversed(matching) if r.low_rank is not None), 0):
        raise UsageError(
            f"{form.name} has no place for a low-rank correction", where=f"recipe, tensor {name}",
            fix="write `low_rank` under the `targets:` that take it",
        )  # fmt: skip
    own = _own_form(tensor, form)
    choice = _chosen(name, shape, use, matching, form, variant, own)
    if use.role == "linear":
        choice = _with_zero_points(name, choice, matching)
    algorithm, options = _algorithm(choice, use, matching, own)
    return WeightPlan(
        tensor=name, shape=shape, component=use.component, scheme=choice.scheme, algorithm=algorithm,
        symmetric=choice.symmetric, options=options, activation=use.activation, why=choice.why, bytes_before=before,
        bytes_after=scheme_bytes(choice.scheme, shape, symmetric=choice.symmetric, source_bytes=before),
    )  # fmt: skip


def _own_form(tensor: ir.TensorProtocol, form: Format) -> QuantizedTensor | None:
    """The tensor, if its publisher's integers could be taken over into the format."""
    if not isinstance(tensor, QuantizedTensor) or (form.name not in REORDERING and tensor.reordered):
        return None
    return tensor


def _chosen(
    name: str,
    shape: tuple[int, ...],
    use: Use,
    rules: Sequence[Rule],
    form: Format,
    variant: str,
    own: QuantizedTensor | None,
) -> SchemeChoice:
    """The last rule's scheme, its fall-backs in order; where no rule names one the publisher's, or the format's own."""
    rule = next((r for r in reversed(rules) if r.scheme is not None), None)
    if use.role != "linear":
        return form.choose(name, shape, use.component, use.role, variant, None)
    if rule is None:
        published = _published(name, shape, use, form, variant, own)
        return published or form.choose(name, shape, use.component, use.role, variant, None)
    refusal: UsageError | None = None
    for wanted in (str(rule.scheme), *rule.fallback):
        try:
            choice = form.choose(name, shape, use.component, use.role, variant, wanted)
        except UsageError as error:
            refusal = refusal or error
        else:
            return replace(choice, symmetric=own.symmetric) if own and choice.scheme == own.scheme else choice
    assert refusal is not None
    raise refusal


def _with_zero_points(name: str, choice: SchemeChoice, rules: Sequence[Rule]) -> SchemeChoice:
    """The choice with the zero points that the last rule which speaks of them asks for."""
    symmetric = next((r.symmetric for r in reversed(rules) if r.symmetric is not None), None)
    if symmetric is None or choice.scheme in FLOAT_SCHEMES:
        return choice
    if choice.scheme in GGML_BLOCKS:
        raise UsageError(
            f"{choice.scheme} has zero points of its own",
            where=f"recipe, tensor {name}",
            fix="take `symmetric` out of the rule",
        )
    return replace(choice, symmetric=symmetric)


def _published(
    name: str, shape: tuple[int, ...], use: Use, form: Format, variant: str, own: QuantizedTensor | None
) -> SchemeChoice | None:
    """The scheme that a weight was published in, None where it was not or where the format does not take it."""
    if own is None or not own.scheme:
        return None
    try:
        choice = form.choose(name, shape, use.component, use.role, variant, own.scheme)
    except UsageError:
        return None
    return SchemeChoice(own.scheme, "as it was published", own.symmetric) if choice.scheme == own.scheme else None


def _algorithm(
    choice: SchemeChoice, use: Use, rules: Sequence[Rule], own: QuantizedTensor | None
) -> tuple[str, Mapping[str, float]]:
    if choice.scheme in FLOAT_SCHEMES or choice.scheme == "float":
        return "cast", {}
    rule = next((r for r in reversed(rules) if r.algorithm is not None), None)
    wanted = rule.algorithm if rule is not None and (_calibrated(use) or rule.algorithm not in CALIBRATED) else None
    if choice.scheme in GGML_BLOCKS:
        if wanted != "gptq":
            return "importance" if wanted == "importance" else "ggml", {}
    elif own is not None and own.fits(Scheme.parse(choice.scheme), choice.symmetric):
        return "stored", {}
    if rule is None or wanted is None or wanted == "importance":
        return DEFAULT_ALGORITHM, {}
    if wanted == "kmeans":
        raise UsageError(
            "the algorithm 'kmeans' makes palettes, which no checkpoint format has", where=f"recipe, {choice.scheme}",
            fix=f"use {DEFAULT_ALGORITHM} or gptq",
        )  # fmt: skip
    if wanted in OF_TARGETS:
        raise UsageError(
            f"the algorithm {wanted!r} is for the graphs of targets", where=f"recipe, {choice.scheme}",
            fix="use gptq with propagation and sweeps, which goes layer by layer too",
        )  # fmt: skip
    if wanted == "gptq":
        GptqOptions.of(rule.algorithm_options)
    return str(wanted), dict(rule.algorithm_options)


def _calibrated(use: Use) -> bool:
    """Whether calibration sequences reach the weight, in every row."""
    return bool(use.activation) and use.component == CALIBRATED_COMPONENT and use.role == "linear"
