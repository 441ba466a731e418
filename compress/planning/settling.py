"""Which scheme is in force at every node: legality's defaults, then the recipe's rules, checked against legality."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pocketport.compress.planning.legality import Legality
from pocketport.compress.recipe import Rule
from pocketport.compress.schemes import Granularity, Scheme
from pocketport.errors import InputError, UsageError

HEAD = "lm_head"
LANGUAGE_ROLES = ("prefill", "decode")


@dataclass(frozen=True)
class Settled:
    """Outcome of the rules for one node."""

    scheme: Scheme
    why: str
    algorithm: str | None = None
    algorithm_options: dict[str, float] | None = None
    observer: str | None = None
    observer_options: dict[str, float] | None = None
    low_rank: int = 0


class Settler:
    """Settles the nodes of one component on one target."""

    def __init__(self, component: str, rules: Sequence[Rule], target: str, legality: Legality) -> None:
        self._component = component
        self._rules = rules
        self._target = target
        self._legality = legality

    def settle(self, op: str, node: str) -> Settled:
        """The scheme of a node; `op` and `node` are empty for the component as a whole."""
        roles = (
            ("head", self._component)
            if node.endswith(HEAD) and self._component in LANGUAGE_ROLES
            else (self._component,)
        )
        defaults = self._legality.defaults
        role = next((r for r in (*roles, "main") if r in defaults), None)
        if role is None:
            raise InputError(
                f"it has no default scheme for {self._component!r}",
                where=f"legality of {self._target}",
                fix=f"add one to its defaults; there are {', '.join(defaults)}",
            )
        settled = Settled(Scheme.parse(defaults[role]), f"default of {self._target} for {role}")
        if reason := self._illegal(settled.scheme):
            raise InputError(
                f"its default for {role} contradicts it: {reason}",
                where=f"legality of {self._target}",
                fix="correct the legality file",
            )
        for index, rule in enumerate(self._rules):
            if not rule.matches(self._component, op, node):
                continue
            if rule.scheme is not None:
                scheme, how = self._legal_scheme(rule, node or self._component)
                settled = replace(settled, scheme=scheme, why=f"recipe rule {index + 1}{how}")
            if rule.algorithm is not None:
                settled = replace(settled, algorithm=rule.algorithm, algorithm_options=rule.algorithm_options)
            if rule.low_rank and not self._legality.low_rank:
                raise UsageError(
                    "it takes no low-rank correction, which is added in float", where=f"{self._target}, {node or self._component}",
                    fix="write `low_rank` under the `targets:` that take it",
                )  # fmt: skip
            if rule.low_rank is not None:
                settled = replace(settled, low_rank=rule.low_rank)
            if rule.observer is not None:
                settled = replace(settled, observer=rule.observer, observer_options=rule.observer_options)
        return settled

    def _legal_scheme(self, rule: Rule, where: str) -> tuple[Scheme, str]:
        reasons: list[str] = []
        for text in (rule.scheme, *rule.fallback):
            scheme = Scheme.parse(text or "float")
            reason = self._illegal(scheme)
            if not reason:
                return scheme, f", fallback: {reasons[0]}" if reasons else ""
            reasons.append(reason)
        raise UsageError(
            "; ".join(reasons), where=f"{self._target}, {self._component}, {where}, scheme {rule.scheme}",
            fix=f"use a scheme that it takes ({self.legal()}), or name one under `fallback`",
        )  # fmt: skip

    def _illegal(self, scheme: Scheme) -> str:
        """Why the target does not take `scheme`; empty if it does."""
        legality = self._legality
        if scheme.activation_bits is not None and str(scheme.activation_bits) not in legality.activations:
            return f"it takes no {scheme.activation_bits}-bit activations"
        if scheme.activation_bits is None and scheme.float_bits not in legality.float_bits:
            return f"it takes no fp{scheme.float_bits} activations"
        if scheme.weight_bits is None:
            return ""
        if scheme.granularity is Granularity.PALETTE:
            return self._illegal_palette(scheme)
        rule = legality.weights.get(str(scheme.weight_bits))
        if rule is None:
            return f"it takes no {scheme.weight_bits}-bit weights"
        if scheme.granularity.value not in rule.granularities:
            return f"it takes {scheme.weight_bits}-bit weights only with {'/'.join(rule.granularities)} granularity"
        if scheme.block and scheme.block not in rule.blocks:
            return f"it takes {scheme.weight_bits}-bit blocks only of {', '.join(map(str, rule.blocks))}"
        return ""

    def _illegal_palette(self, scheme: Scheme) -> str:
        palettes = self._legality.palettes
        if palettes is None:
            return "it takes no palettes"
        if scheme.weight_bits not in palettes.bits:
            return f"it takes no palettes of {scheme.weight_bits} bits"
        return "it takes one palette a weight only" if scheme.group and not palettes.grouped else ""

    def legal(self) -> str:
        """What the target takes, in words."""
        weights = [
            f"w{bits}{g}" + (f" of {'/'.join(map(str, rule.blocks))}" if g == "b" else "")
            for bits, rule in self._legality.weights.items() for g in rule.granularities
        ]  # fmt: skip
        palettes = self._legality.palettes
        if palettes is not None:
            weights += [f"w{bits}p{'[<channels>]' if palettes.grouped else ''}" for bits in palettes.bits]
        activations = [f"a{bits}" for bits in self._legality.activations] + [
            f"fp{b}" for b in self._legality.float_bits
        ]
        return f"weights {', '.join(weights) or 'float'}; activations {', '.join(activations)}"
