"""One request from image to answer: what the components' latencies add up to for the person who waits."""

from collections.abc import Collection, Mapping, Sequence

from pocketport.profiles.measurement import Measurement, Provenance, ProvenanceKind

# From the strongest to the weakest; a sum is worth no more than its weakest part.
STRENGTH: Sequence[ProvenanceKind] = (
    ProvenanceKind.MEASURED, ProvenanceKind.PUBLISHED, ProvenanceKind.EMULATED, ProvenanceKind.PREDICTED,
)  # fmt: skip


def story(
    latencies: Mapping[str, Measurement], *, components: Collection[str], slices: int, answer_tokens: int
) -> list[Measurement]:
    """Figures of one request.

    Args:
        latencies: component name → latency of one call in ms. `vision` and `connector` run once a slice; `embed`
            and `prefill` once for the prompt; `embed` and `decode` once a token after the first.
        components: all that the model has.
        slices: pictures that the image is cut into, the overview included; at least 1.
        answer_tokens: tokens of the answer; at least 1.

    Returns:
        ``image_encode``, ``time_to_first_token``, ``tokens_per_second`` and ``request_latency``, as far as their
        parts are known; for a model without a language model ``latency``, one call of each component. Intervals add
        up end to end, as if all errors went the same way. What can't be said is left out, and a budget on it then
        fails.
    """
    if "prefill" not in components:
        once = _complete([(1, latencies.get(name)) for name in components])
        return [_total("latency", once)] if once else []
    encode = [(slices, latencies.get(name)) for name in ("vision", "connector")]
    prompt = [(1, latencies.get("embed")), (1, latencies.get("prefill"))]
    token = [(1, latencies.get("embed")), (1, latencies.get("decode"))]
    rest = [(answer_tokens - 1, part) for _, part in token]
    sums = [
        ("image_encode", encode),
        ("time_to_first_token", encode + prompt),
        ("request_latency", encode + prompt + rest),
    ]
    figures = [_total(name, known) for name, parts in sums if (known := _complete(parts))]
    if each := _complete(token):
        figures.append(_rate(_total("token_latency", each)))
    return figures


def _complete(parts: Sequence[tuple[int, Measurement | None]]) -> list[tuple[int, Measurement]]:
    """The parts, or nothing if one is missing."""
    known = [(count, part) for count, part in parts if part is not None]
    return known if len(known) == len(parts) else []


def _total(name: str, parts: Sequence[tuple[int, Measurement]]) -> Measurement:
    value = sum(count * part.value for count, part in parts)
    low = sum(count * (part.value if part.low is None else part.low) for count, part in parts)
    high = sum(count * (part.value if part.high is None else part.high) for count, part in parts)
    weakest = max((part.provenance for _, part in parts), key=lambda p: STRENGTH.index(p.kind))
    detail = weakest.detail if len(parts) == 1 else f"sum of {len(parts)} components; weakest part: {weakest.detail}"
    return Measurement(name, value, "ms", Provenance(weakest.kind, detail), low=low, high=high)


def _rate(token: Measurement) -> Measurement:
    assert token.low is not None and token.high is not None
    return Measurement(
        "tokens_per_second",
        1e3 / token.value,
        "tok/s",
        token.provenance,
        low=1e3 / token.high,
        high=1e3 / token.low,
    )
