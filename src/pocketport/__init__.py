"""Pocketport: take a multimodal model to a phone chip, and know what it will cost there.

The names in `__all__` are the Python API; each is imported when it is first used, so that the command line starts
fast and a worker process loads only what it runs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketport.api import port
    from pocketport.compress.bundle import ModelBundle
    from pocketport.compress.ingest import ingest
    from pocketport.request import Request
    from pocketport.run_document import RunDocument
    from pocketport.targets.contract import Target

__version__ = "0.1.0"
__all__ = ["ModelBundle", "Request", "RunDocument", "Target", "ingest", "port"]

_HOMES = {
    "ModelBundle": "pocketport.compress.bundle",
    "Request": "pocketport.request",
    "RunDocument": "pocketport.run_document",
    "Target": "pocketport.targets.contract",
    "ingest": "pocketport.compress.ingest",
    "port": "pocketport.api",
}


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
