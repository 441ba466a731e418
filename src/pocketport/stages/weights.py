"""The road of weights: plan, quantize block by block, write the checkpoint format; never the whole model in memory."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from pocketport.compress.blockwise.engine import quantize_weights
from pocketport.compress.blockwise.estimate import activation_budget
from pocketport.compress.blockwise.options import GptqOptions
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.distillation.scales import distill_scales
from pocketport.compress.evidence import check_evidence
from pocketport.compress.families.registry import Lengths, family_of, host_of
from pocketport.compress.formats.contract import Format, WeightPlan
from pocketport.compress.formats.sizes import GGML_BLOCKS
from pocketport.compress.ingest import path_of
from pocketport.compress.planning.weights import CALIBRATED, CALIBRATED_COMPONENT, plan_weights
from pocketport.compress.quantized_weights import QuantizedWeights
from pocketport.compress.recipe import load_recipe
from pocketport.compress.schemes import Scheme
from pocketport.compress.sources.open import open_source
from pocketport.compress.sources.scan import check_weights
from pocketport.compress.sources.source import Source
from pocketport.compress.torch_device import best_device
from pocketport.data import prompt_samples
from pocketport.errors import UsageError
from pocketport.files import atomic_directory, sha256_file, write_json
from pocketport.formats import format_named
from pocketport.request import Request
from pocketport.stages.context import Context
from pocketport.stages.image_sequences import ImageSequences
from pocketport.stages.sequences import Sequences, sequences_for
from pocketport.store import StageResult, code_digest

FREE_SHARE = 0.7
PLAN_FILE, RECORD_FILE = "plan.json", "pocketport.json"
CODE = ("compress", "calibration")
PACKAGES = ("torch", "numpy", "safetensors")


@dataclass(frozen=True)
class WeightJob:
    """One format of one model, planned.

    Attributes:
        source: the checkpoint.
        bundle: its graphs at the calibration's length.
        form: the format.
        variant: of the format, "" where it has none.
        plans: every tensor's.
        sequences: calibration sequences, None where no algorithm needs data.
    """

    source: Source
    bundle: ModelBundle
    form: Format
    variant: str
    plans: list[WeightPlan]
    sequences: Sequences | ImageSequences | None

    @property
    def label(self) -> str:
        """``gguf:q4_k_m``."""
        return f"{self.form.name}:{self.variant}" if self.variant else self.form.name


def plan_formats(request: Request) -> list[WeightJob]:
    """Plan every format that the request names; no weight is read.

    Raises:
        UsageError: an unknown format, variant or recipe, a scheme that a format does not take, or a recipe known to be
            bad there.
        InputError: the model is damaged, or a format has no place for it.
    """
    source = open_source(path_of(request.source))
    name = request.source if request.source == "reference" else source.path.resolve().name
    bundle = family_of(source).load(source, name, Lengths(prompt=sequence_length(source, request)))
    recipe = load_recipe(request.recipe)
    jobs = []
    for text in request.formats:
        form, variant = format_named(text)
        form.check(source, bundle, variant)
        check_evidence(request.recipe, text)
        plans = plan_weights(source, bundle, recipe, form, variant)
        sequences = None
        if any(p.algorithm in CALIBRATED for p in plans):
            sequences = _sequences(request, source, bundle)
        jobs.append(WeightJob(source, bundle, form, variant, plans, sequences))
    return jobs


def _sequences(request: Request, source: Source, bundle: ModelBundle) -> Sequences | ImageSequences:
    """Images and text where the request has them (the reference model has its own), else text."""
    images = prompt_samples(bundle, request)
    if images is None:
        length = sequence_length(source, request)
        return sequences_for(bundle, request.data, request.calibration_samples, length, request.seed)
    return ImageSequences(
        images.samples, images.count, int(bundle.config["prompt"]), request.visual_weight, images.origin, images.fingerprint,
    )  # fmt: skip


def sequence_length(source: Source, request: Request) -> int:
    """Tokens of a calibration sequence: at most half of the model's context, so that an answer has room too."""
    text: Any = source.config.get("text_config") or {}
    context = source.config.get("max_position_embeddings") or text.get("max_position_embeddings")
    return min(request.sequence_length, context // 2) if isinstance(context, int) else request.sequence_length


def memory_limit(request: Request) -> int:
    """Bytes that quantizing may take: what the user said, else 70 % of what is free now."""
    return request.memory_limit or int(FREE_SHARE * psutil.virtual_memory().available)


def port_format(context: Context, job: WeightJob) -> Path:
    """Quantize and write one format into ``<out>/<format>-<variant>/``.

    Raises:
        InputError: a weight holds NaN or infinity, or calibration met a number that is not finite.
    """
    _check(context, job.source)
    result = quantize_format(context, job)
    return _write(context, job, result)


def _check(context: Context, source: Source) -> None:
    context.progress.start("check", "look for NaN in the weights", None)
    seconds = check_weights(source, lambda done: context.progress.advance("check", done))
    context.progress.finish("check", f"{seconds:.1f} s")


def quantize_format(context: Context, job: WeightJob) -> StageResult:
    """The weights of a job as `QuantizedWeights`: quantized, or from the store."""
    key = f"quantize {job.label}"
    context.progress.start(key, f"{job.label}: quantize", sum(p.quantized for p in job.plans))
    plans = [p for p in job.plans if p.quantized]
    inputs: dict[str, Any] = {
        "source": job.source.sha256(),
        "plans": [asdict(p) for p in plans],
        "sequences": None if job.sequences is None else job.sequences.fingerprint,
    }

    def produce(directory: Path) -> None:
        feeds = None
        if job.sequences is not None:
            feeds = {"prefill": job.sequences.feeds(job.bundle, host_of(job.bundle))}
        timing = quantize_weights(
            job.source,
            job.bundle,
            plans,
            directory,
            feeds=feeds,
            memory_limit=memory_limit(context.request),
            progress=lambda done, total: context.progress.advance(key, done),
        )
        write_json(timing_file(context.out, job), timing.to_json())

    result = context.store.run("weights", inputs, produce, code=CODE, packages=PACKAGES, resumable=True)
    return _distilled(context, job, context.record(key, result))


def _distilled(context: Context, job: WeightJob, rounded: StageResult) -> StageResult:
    """The same integers under distilled scales, where the recipe asks for that."""
    options = {p.tensor: GptqOptions.of(p.options) for p in job.plans if p.algorithm == "gptq"}
    passes = max((o.distillation for o in options.values()), default=0)
    if not passes or job.sequences is None:
        return rounded
    sequences = job.sequences
    key = f"distill {job.label}"
    context.progress.start(key, f"{job.label}: distil scales", None)
    moving = [p for p in job.plans if p.algorithm == "gptq" and options[p.tensor].distillation]

    def produce(directory: Path) -> None:
        divergences = distill_scales(
            job.bundle[CALIBRATED_COMPONENT].graph,
            QuantizedWeights(rounded.path),
            {p.tensor: p.scheme in GGML_BLOCKS or Scheme.parse(p.scheme).float_bits == 16 for p in moving},
            sequences.feeds(job.bundle, host_of(job.bundle)),
            directory,
            passes=passes,
            budget=activation_budget(moving, memory_limit(context.request)),
            device=best_device(),
            advance=lambda done, total: context.progress.advance(key, done),
        )
        write_json(context.out / f"distillation-{job.label.replace(':', '-')}.json", {"divergence": divergences})

    inputs = {"weights": rounded.digest, "sequences": sequences.fingerprint, "passes": passes}
    result = context.store.run("distilled", inputs, produce, code=CODE, packages=PACKAGES)
    return context.record(key, result)


def _write(context: Context, job: WeightJob, quantized: StageResult) -> Path:
    """Write the format's files, unless they are there already and made of the same."""
    directory = context.out / job.label.replace(":", "-")
    identity = {
        "format": job.label,
        "weights": quantized.digest,
        "source": job.source.sha256(),
        "code": code_digest((*CODE, _folder_of(job.form))),
        "plan": hashlib.sha256(json.dumps([asdict(p) for p in job.plans], sort_keys=True).encode()).hexdigest(),
    }
    if _finished(directory, identity):
        return directory
    key = f"write {job.label}"
    context.progress.start(key, f"{job.label}: write", None)
    with atomic_directory(directory) as temporary:
        weights = QuantizedWeights(quantized.path)
        files = job.form.write(
            job.source,
            job.bundle,
            weights,
            temporary,
            job.variant,
            lambda done, total: context.progress.advance(key, done),
        )
        _check_written(files, job)
        sizes = [f.stat().st_size for f in files]
        hashes = {
            f.relative_to(temporary).as_posix(): {"bytes": size, "sha256": sha256_file(f)}
            for f, size in zip(files, sizes, strict=True)
        }
        write_json(temporary / PLAN_FILE, [asdict(p) for p in job.plans])
        write_json(temporary / RECORD_FILE, {"schema": "pocketport.format/1", **identity, "files": hashes})
    context.progress.finish(key, f"{sum(sizes) / 1e9:.2f} GB")
    return directory


def _folder_of(form: Format) -> str:
    """Where its module lies, as `code_digest` names folders: ``targets/x86``."""
    return "/".join(type(form).__module__.split(".")[1:-1])


def _check_written(files: Sequence[Path], job: WeightJob) -> None:
    if not files:
        raise UsageError("the format wrote no file", where=job.label, fix="report this model")


def _finished(directory: Path, identity: Mapping[str, str]) -> bool:
    path = directory / RECORD_FILE
    if not path.is_file():
        return False
    record = json.loads(path.read_text("utf-8"))
    return all(record.get(k) == v for k, v in identity.items()) and all(
        (directory / name).is_file() and (directory / name).stat().st_size == entry["bytes"]
        for name, entry in record["files"].items()
    )


def timing_file(out: Path, job: WeightJob) -> Path:
    """Where the seconds by phase and layer go, for as far as they were not from the cache."""
    return out / f"timing-{job.label.replace(':', '-')}.json"


def written_files(directory: Path) -> dict[str, dict[str, Any]]:
    """What `port_format` wrote: file → bytes and sha256."""
    files: dict[str, dict[str, Any]] = json.loads((directory / RECORD_FILE).read_text("utf-8"))["files"]
    return files
