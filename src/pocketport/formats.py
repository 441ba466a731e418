"""Every checkpoint format by name, those of a vendor's runtime in the vendor's folder."""

from collections.abc import Mapping
from pkgutil import resolve_name

from pocketport.compress.formats.contract import Format
from pocketport.errors import UsageError
from pocketport.suggest import nearest

# A format's module is imported when it is asked for, with whatever packages it needs.
FORMATS: Mapping[str, str] = {
    "compressed-tensors": "pocketport.compress.formats.compressed_tensors:CompressedTensorsFormat",
    "gguf": "pocketport.compress.formats.gguf:GgufFormat",
    "gptq": "pocketport.compress.formats.gptq:GptqFormat",
    "onnxruntime-genai": "pocketport.compress.formats.onnxruntime_genai:OnnxruntimeGenaiFormat",
    "openvino": "pocketport.targets.x86.openvino_format:OpenVinoFormat",
}


def format_named(text: str) -> tuple[Format, str]:
    """The format and variant of ``name[:variant]``; without a variant the format's first.

    Raises:
        UsageError: there is no such format or variant.
    """
    name, _, variant = text.partition(":")
    if name not in FORMATS:
        raise UsageError(f"there is no format {name!r}", where="--format", fix=nearest(name, FORMATS))
    form: Format = resolve_name(FORMATS[name])()
    if variant and variant not in form.variants:
        fix = nearest(variant, form.variants) if form.variants else f"write {name} alone"
        raise UsageError(f"{name} has no variant {variant!r}", where="--format", fix=fix)
    return form, variant or (form.variants[0] if form.variants else "")
