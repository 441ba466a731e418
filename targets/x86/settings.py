"""What can be set in each engine. A field that is left alone is as the engine has it when nobody says anything."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import psutil
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pocketport.errors import InputError
from pocketport.targets.x86.target import threads
from pocketport.workers import processors

ONNX, OPENVINO_IR = "onnx", "openvino-ir"
NAMES: Mapping[str, str] = {ONNX: "onnxruntime", OPENVINO_IR: "openvino"}
MOST_THREADS = 1024


class OnnxRuntimeSettings(BaseModel):
    """onnxruntime's CPU provider.

    Attributes:
        threads: of one op, the caller's among them; None: one a physical core, each bound to its core.
        spinning: whether threads without work look for some for a while before they sleep.
        pinned: whether each further thread is bound to a processor of its own; only with `threads`.
        optimization: how far the graph is rewritten.
        matmul_add_fusion: whether MatMul and Add become Gemm. Not in quantized graphs: a Reshape then stands between an
            integer product and its DequantizeLinear, and the product is computed in float.
        parallel: whether ops that don't wait for each other run at once.
        denormals_as_zero: whether floats too small for a normal exponent count as 0.
        arena: whether memory that an op gives back is kept for the next one.
        memory_pattern: whether a run's activations are placed in one block, as the run before needed them.
        prepacking: whether weights are kept in the order in which the kernels read them, in a second copy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Literal["onnxruntime"] = "onnxruntime"
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)
    spinning: bool = True
    pinned: bool = False
    optimization: Literal["all", "extended", "basic", "disabled"] = "all"
    matmul_add_fusion: bool = True
    parallel: bool = False
    denormals_as_zero: bool = False
    arena: bool = True
    memory_pattern: bool = True
    prepacking: bool = True


class OpenVinoSettings(BaseModel):
    """OpenVINO's CPU plugin.

    Attributes:
        threads: of one run; None: one a physical core.
        pinned: whether each thread is bound to a core.
        mode: ``ACCURACY`` keeps float32 and integer layers exact; ``PERFORMANCE`` takes bfloat16 where the processor has
            it, and quantizes the inputs of compressed layers on the fly.
        precision: of float layers.
        hyper_threading: whether two threads may share a core; None: the plugin decides.
        partitioner: how a loop is divided among threads, ``STATIC`` evenly, ``AUTO`` as they become free.
        denormals_as_zero: whether floats too small for a normal exponent count as 0.
        mmap: whether weights stay in the file that is mapped.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Literal["openvino"] = "openvino"
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)
    pinned: bool = True
    mode: Literal["PERFORMANCE", "ACCURACY"] = "PERFORMANCE"
    precision: Literal["f32", "bf16", "f16"] | None = None
    hyper_threading: bool | None = None
    partitioner: Literal["STATIC", "AUTO"] | None = None
    denormals_as_zero: bool = False
    mmap: bool = True


Settings: TypeAlias = OnnxRuntimeSettings | OpenVinoSettings
_ADAPTER: TypeAdapter[Settings] = TypeAdapter(Annotated[Settings, Field(discriminator="engine")])


def engine_defaults(kind: str) -> Settings:
    """The engine of an artifact kind as it comes."""
    return OnnxRuntimeSettings() if kind == ONNX else OpenVinoSettings()


def own_defaults(kind: str) -> Settings:
    """What runs an artifact when nobody searched: exact, and friendly to whatever else the machine does."""
    return own_onnxruntime() if kind == ONNX else own_openvino()


def own_onnxruntime() -> OnnxRuntimeSettings:
    """Of onnxruntime."""
    return OnnxRuntimeSettings(threads=threads(), matmul_add_fusion=False)


def own_openvino() -> OpenVinoSettings:
    """Of OpenVINO. Pinned threads wait behind whatever else runs on their core: 33 ms instead of 2 on a busy machine.

    In its PERFORMANCE mode the plugin computes in bfloat16 where the processor has it and quantizes activations of
    compressed layers on the fly: on a float ViT that left nothing of the result.
    """
    return OpenVinoSettings(threads=threads(), pinned=False, mode="ACCURACY")


def parse_settings(entries: Mapping[str, Any], where: str) -> Settings:
    """Settings of a document.

    Raises:
        InputError: an unknown engine or field, a value that the field does not have, or more threads than processors.
    """
    try:
        settings = _ADAPTER.validate_python(dict(entries))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{field}: {first['msg']}", where=where, fix="run `pocketport tune` again") from error
    if settings.threads is not None and settings.threads > (there := len(processors())):
        raise InputError(
            f"{settings.threads} threads on {there} processors",
            where=where,
            fix="run `pocketport tune` on this machine",
        )
    return settings


def thread_counts() -> tuple[int, ...]:
    """Numbers of threads worth trying: powers of two, the physical cores, all that `threads` allows."""
    most = threads()
    cores = min(most, psutil.cpu_count(logical=False) or most)
    return tuple(sorted({cores, most, *(1 << n for n in range(most.bit_length()))}))
