"""A run's figures for the requests that a budget names: other images, prompts and answers than those of its own task."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.families.registry import chat_of
from pocketport.errors import InputError
from pocketport.profiles.budget import Budget, Request
from pocketport.profiles.device import slug
from pocketport.profiles.gate import RequestFigures
from pocketport.profiles.measurement import Measurement, Provenance, ProvenanceKind
from pocketport.profiles.story import story
from pocketport.profiles.timeline.describe import plan_by_shapes
from pocketport.profiles.timeline.handset import Handset, handsets
from pocketport.run_document import RunDocument, TargetRecord, folder_of
from pocketport.targets.configuration import DEFAULT_NAME, Configuration, load_configuration
from pocketport.targets.contract import Target

LATENCY = "_latency"
LANGUAGE = ("embed", "prefill", "decode")


def request_figures(
    document: RunDocument, budget: Budget, figures: Mapping[str, Mapping[str, Measurement]], directory: Path
) -> list[RequestFigures]:
    """Figures of every request that has limits for one of the run's targets, or for a phone with that chip.

    What the run's components take is known: measured where the target is this host (with the settings of the run's
    ``x86.json``, if it was tuned), predicted elsewhere. Their shapes are static: a request takes as many calls as its
    image has views and its answer tokens, and whatever exceeds the shapes cannot be run at all.

    Args:
        document: the run.
        budget: with requests and devices.
        figures: of the run, by target as the document names it.
        directory: the run's.

    Raises:
        InputError: the bundle or the configuration in the run's folder is damaged.
    """
    found = []
    for record in document.targets:
        for device, handset in _devices(record, budget):
            for name, request in budget.scenarios.items():
                if budget.request_limits(device, name):
                    known, missing = _figures(record, figures[record.id], request, directory, handset)
                    found.append(RequestFigures(device, name, known, missing))
    return found


def _devices(record: TargetRecord, budget: Budget) -> Iterator[tuple[str, Handset | None]]:
    """The phones with the target's chip that the budget names; else the target itself, for patterns."""
    target = str(Target.parse(record.id)).partition("@")[0]
    phones = {slug(h.name): h for h in handsets() if h.target == target}
    named = [name for name in phones if name in budget.devices]
    yield from ((name, phones[name]) for name in named)
    if not named:
        yield target, None


def _figures(
    record: TargetRecord, known: Mapping[str, Measurement], request: Request, directory: Path, handset: Handset | None
) -> tuple[dict[str, Measurement], str]:
    """The figures, and why some are missing."""
    pivot = directory / folder_of(record.id) / "pivot" / "bundle"
    figures = dict(known)
    for name in ("latency", "image_encode", "time_to_first_token", "tokens_per_second", "request_latency"):
        figures.pop(name, None)  # of the run's own request
    figures |= _sizes(record, known, handset)
    if not (pivot / "bundle.json").is_file():
        return figures, f"{pivot} is missing"
    bundle = ModelBundle.load(pivot)
    views, missing = _views(bundle, request)
    if missing:
        return figures, missing
    latencies = _latencies(record, known, directory)
    components = list(bundle.components)
    told = story(latencies, components=components, slices=views, answer_tokens=request.answer_tokens)
    return figures | {m.name: m for m in told}, ""


def _views(bundle: ModelBundle, request: Request) -> tuple[int, str]:
    """Pictures that the request's image becomes, and what of it the static graphs do not take."""
    if not set(LANGUAGE) <= set(bundle.components):
        return 1, "" if request.image is None else "the model does not answer about images"
    views, tokens = 0, request.prompt_tokens
    if request.image is not None:
        if chat_of(bundle) is None:
            return 0, "the model does not answer about images"
        try:
            plan = plan_by_shapes(bundle, request.image)
        except InputError as error:
            return 0, error.why
        views, tokens = plan.views, tokens + plan.tokens
    prompt, cache = int(bundle.config["prompt"]), int(bundle.config["cache"])
    if tokens > prompt:
        return views, f"the request has {tokens} tokens, the graphs take {prompt}"
    if request.answer_tokens > cache - prompt + 1:
        return views, f"the answer has {request.answer_tokens} tokens, the cache takes {cache - prompt + 1}"
    return views, ""


def _latencies(record: TargetRecord, known: Mapping[str, Measurement], directory: Path) -> dict[str, Measurement]:
    """Of one call of each component."""
    latencies = {name.removesuffix(LATENCY): m for name, m in known.items() if name.endswith(LATENCY)}
    path = directory / DEFAULT_NAME
    if Target.parse(record.id).vendor == "x86" and path.is_file():
        latencies |= _tuned(load_configuration(path), record)
    return latencies


def _tuned(configuration: Configuration, record: TargetRecord) -> dict[str, Measurement]:
    """What `pocketport tune` measured of these very artifacts, which is what `pocketport run` then takes."""
    made = {a.sha256 for component in record.components for a in component.artifacts}
    found = {}
    for name, component in configuration.components.items():
        if component.sha256 in made:
            chosen = component.contenders[0]
            detail = (
                f"{configuration.processor}, tuned: {component.settings['engine']}, median of {component.turns} turns"
            )
            found[name] = Measurement(
                name + LATENCY, chosen.ms, "ms", Provenance(ProvenanceKind.MEASURED, detail),
                max(chosen.ms - chosen.mad_ms, 0.0), chosen.ms + chosen.mad_ms,
            )  # fmt: skip
    return found


def _sizes(record: TargetRecord, known: Mapping[str, Measurement], handset: Handset | None) -> dict[str, Measurement]:
    """What does not depend on the request but is no figure of a run: app size, memory while tokens are generated, loading."""
    found = {}
    size = known.get("artifact_size")
    if size is not None:
        found["app_size"] = Measurement("app_size", size.value, "bytes", size.provenance)
    steps = [point.bytes for point in record.profile.memory if point.step == "decode"] if record.profile else []
    if steps:
        detail = "planned: encoded weights + key-value cache + activation lifetimes"
        found["steady_memory"] = Measurement(
            "steady_memory", steps[-1], "bytes", Provenance(ProvenanceKind.PREDICTED, detail)
        )
    if size is not None and handset is not None:
        detail = f"all artifacts once at {handset.storage_gbps.value} GB/s ({handset.storage_gbps.source})"
        milliseconds = size.value / (handset.storage_gbps.value * 1e6)
        found["load_time"] = Measurement("load_time", milliseconds, "ms", Provenance(ProvenanceKind.PREDICTED, detail))
    return found
