"""How long each step of a request takes: on the processor by its peaks and an engine's shares of them, on the NPU as predicted.

On the processor, products take ``2·MACs / (share·peak)`` and generating a token ``bytes read / (share·bandwidth)``: the two
roofs of Williams et al. 2009 (doi 10.1145/1498765.1498785), one a phase. On the NPU the predictors of
`pocketport.profiles.prediction` speak.
"""

from pocketport.compress.schemes import Scheme
from pocketport.errors import UsageError
from pocketport.profiles.measurement import Measurement, Provenance, ProvenanceKind
from pocketport.profiles.prediction.features import GraphFeatures
from pocketport.profiles.prediction.llm import ENCODINGS, LanguageShape, predict_llm
from pocketport.profiles.prediction.predictors import GraphPredictor, ModelFeatures
from pocketport.profiles.timeline.description import FLOAT_SCHEMES, ModelDescription, Part, PartDescription
from pocketport.profiles.timeline.handset import Handset, find_configuration
from pocketport.profiles.timeline.residence import column_bytes
from pocketport.profiles.timeline.setting import Scenario, Setting

STORAGE_SPREAD = 4.0  # files are read at a quarter of the standard's rate at worst
VENDOR_RUNTIMES = {"qualcomm": "geniex_qairt"}


def load(bytes_: float, handset: Handset) -> Measurement:
    """Reading weights from storage once, ms."""
    ms = bytes_ / handset.storage_gbps.value / 1e6
    return _ms("load", ms, ms, ms * STORAGE_SPREAD, f"{bytes_ / 1e9:.2f} GB at the standard's rate")


def paging(bytes_: float, handset: Handset) -> Measurement:
    """Bringing back what was paged out, ms."""
    assert handset.paging_gbps is not None
    ms = bytes_ / handset.paging_gbps.value / 1e6
    return _ms("paging", ms, ms / 2, ms * 2, f"{bytes_ / 1e9:.2f} GB, {handset.paging_gbps.source}")


def encode(part: Part, model: ModelDescription, handset: Handset, scenario: Scenario, setting: Setting) -> Measurement:
    """One part over all views of the image, ms.

    Raises:
        UsageError: nothing is known of the device's NPU at that precision.
    """
    assert scenario.image is not None
    described = model.parts[part]
    if setting.units[part] == "npu":
        once = _npu_encode(part, described, handset, setting.schemes[part])
        return _scaled(once, scenario.views, part)
    how = find_configuration(setting.configuration)
    macs = scenario.views * described.macs(scenario.image.patches)
    return _products(part, macs, how.vision_share.value, handset, how.spread.value, how.name)


def prefill(model: ModelDescription, handset: Handset, scenario: Scenario, setting: Setting) -> Measurement:
    """Reading the whole prompt, ms; raises as `encode`."""
    language = model.parts["language"]
    if setting.units["language"] == "npu":
        return _npu_language(language, handset, scenario, setting)[0]
    how = find_configuration(setting.configuration)
    macs = language.macs(scenario.tokens)
    return _products("prefill", macs, how.language_share.value, handset, how.spread.value, how.name)


def decode(model: ModelDescription, handset: Handset, scenario: Scenario, setting: Setting) -> Measurement:
    """One token of the answer, in the middle of it, ms; raises as `encode`."""
    language = model.parts["language"]
    if setting.units["language"] == "npu":
        return _npu_language(language, handset, scenario, setting)[1]
    how, bandwidth = find_configuration(setting.configuration), handset.chip.dram_gbps
    if bandwidth is None:
        raise UsageError("its DRAM's bandwidth is not known", where=handset.name, fix="add dram_gbps to its profile")
    attended = scenario.tokens + scenario.answer_tokens / 2
    read = language.streamed_bytes(setting.schemes["language"]) + column_bytes(model, setting) * attended
    ms = read / (how.bandwidth_share.value * bandwidth.value) / 1e6
    detail = f"{read / 1e9:.2f} GB at {how.bandwidth_share.value:.2g} of {bandwidth.value} GB/s; {how.name}"
    return _ms("decode", ms, ms / how.spread.value, ms * how.spread.value, detail)


def _products(name: str, macs: float, share: float, handset: Handset, spread: float, how: str) -> Measurement:
    ms = 2 * macs / (share * handset.cpu_gflops.value) / 1e6
    detail = f"{macs / 1e9:.0f} GMAC at {share:.2g} of {handset.cpu_gflops.value:.0f} GFLOP/s; {how}"
    return _ms(name, ms, ms / spread, ms * spread, detail)


def _npu_encode(part: Part, described: PartDescription, handset: Handset, scheme: str) -> Measurement:
    if described.features is None:
        raise UsageError(f"its {part} has no features", where="model", fix="describe the model again")
    features = ModelFeatures(GraphFeatures.from_json(dict(described.features), f"description, {part}"))
    found = GraphPredictor().predict(features, handset.chip, _precision(scheme), "qnn_context_binary")
    if found is None:
        raise UsageError(
            f"nothing was measured on the NPU of {handset.name} or one like it",
            where=f"--on {part}=npu", fix="leave it on the processor",
        )  # fmt: skip
    return found.measurement(part)


def _npu_language(
    language: PartDescription, handset: Handset, scenario: Scenario, setting: Setting
) -> tuple[Measurement, Measurement]:
    """Of the whole prompt, and of one token, ms."""
    scheme, runtime = setting.schemes["language"], VENDOR_RUNTIMES.get(handset.chip.vendor, "")
    key = next((name for name in ENCODINGS if name == scheme or _same(name, scheme)), None)
    speeds = {}
    if key is not None and language.shape is not None:
        context = max(setting.context, scenario.tokens + scenario.answer_tokens)
        shape = LanguageShape(**language.shape)
        speeds = predict_llm(shape, ENCODINGS[key], handset.chip, runtime=runtime, unit="npu", context=context)
    prompt, token = speeds.get("prefill_tokens_per_second"), speeds.get("tokens_per_second")
    if prompt is None or token is None:
        raise UsageError(
            f"no speed of language models in {scheme} is known on the NPU of {handset.name}",
            where="--on language=npu", fix="leave it on the processor",
        )  # fmt: skip
    return _inverse("prefill", prompt, scenario.tokens), _inverse("decode", token, 1)


def _same(name: str, scheme: str) -> bool:
    """Whether a scheme is what an NPU's runtime calls ``w4a16``: the same widths, however scales are shared."""
    try:
        wanted = Scheme.parse(scheme)
    except UsageError:
        return False
    return name == f"w{wanted.weight_bits}a{wanted.activation_bits}"


def _precision(scheme: str) -> str:
    if scheme in FLOAT_SCHEMES:
        return "float"
    parsed = Scheme.parse(scheme)
    return "float" if parsed.activation_bits is None else f"w{parsed.weight_bits}a{parsed.activation_bits}"


def _inverse(name: str, speed: Measurement, tokens: int) -> Measurement:
    low = speed.value if speed.low is None else speed.low
    high = speed.value if speed.high is None else speed.high
    return Measurement(
        name, 1e3 * tokens / speed.value, "ms", speed.provenance, low=1e3 * tokens / high, high=1e3 * tokens / low
    )


def _scaled(once: Measurement, times: int, name: str) -> Measurement:
    low = once.value if once.low is None else once.low
    high = once.value if once.high is None else once.high
    return Measurement(name, times * once.value, "ms", once.provenance, low=times * low, high=times * high)


def _ms(name: str, value: float, low: float, high: float, detail: str) -> Measurement:
    return Measurement(name, value, "ms", Provenance(ProvenanceKind.PREDICTED, detail), low=low, high=high)
