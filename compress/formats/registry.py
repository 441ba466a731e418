"""Every checkpoint format by name."""

from collections.abc import Mapping
from importlib import import_module

from pocketport.compress.formats.contract import Format
from pocketport.errors import UsageError
from pocketport.suggest import nearest

# Name → module and class: a format is imported when it is asked for, with whatever packages it needs.
FORMATS: Mapping[str, tuple[str, str]] = {
    "compressed-tensors": ("compressed_tensors", "CompressedTensorsFormat"),
    "gptq": ("gptq", "GptqFormat"),
}


def format_named(text: str) -> tuple[Format, str]:
    """The format and variant of ``name[:variant]``; without a variant the format's first.

    Raises:
        UsageError: there is no such format or variant.
    """
    name, _, variant = text.partition(":")
    if name not in FORMATS:
        raise UsageError(f"there is no format {name!r}", where="--format", fix=nearest(name, FORMATS))
    module, kind = FORMATS[name]
    form: Format = getattr(import_module(f"pocketport.compress.formats.{module}"), kind)()
    if variant and variant not in form.variants:
        fix = nearest(variant, form.variants) if form.variants else f"write {name} alone"
        raise UsageError(f"{name} has no variant {variant!r}", where="--format", fix=fix)
    return form, variant or (form.variants[0] if form.variants else "")
