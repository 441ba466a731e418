"""Backends by vendor name: the built-in folders, and packages that declare the entry point ``pocketport.backends``."""

import importlib
from importlib.metadata import EntryPoint, entry_points

from pocketport.errors import ToolchainError, UsageError
from pocketport.suggest import nearest
from pocketport.targets.contract import Backend, Target

ENTRY_POINT_GROUP = "pocketport.backends"
VENDORS = ("apple", "mediatek", "qualcomm", "x86")
EXAMPLE = "example"  # a fictional chip: reachable by name, not listed among the vendors


def backend_for(target: Target) -> Backend:
    """The backend of a target's vendor. Importing it never needs the vendor's own packages.

    Raises:
        UsageError: nobody provides that vendor; the nearest name is in the fix.
        ToolchainError: a third-party package provides it but can't be loaded.
    """
    if target.vendor in (*VENDORS, EXAMPLE):
        return _built_in(target.vendor)
    others = _third_party()
    if target.vendor in others:
        return _load(others[target.vendor])
    names = sorted((*VENDORS, *others))
    raise UsageError(
        f"no backend for vendor {target.vendor!r}", where=f"target {target}", fix=nearest(target.vendor, names)
    )


def all_backends() -> tuple[Backend, ...]:
    """The backends of every real vendor, built in first, each group by name."""
    others = _third_party()
    return (*(_built_in(name) for name in VENDORS), *(_load(others[name]) for name in sorted(others)))


def _built_in(vendor: str) -> Backend:
    backend: Backend = importlib.import_module(f"pocketport.targets.{vendor}").backend
    return backend


def _third_party() -> dict[str, EntryPoint]:
    """Entry points by vendor; built-in names can't be taken over."""
    found = entry_points(group=ENTRY_POINT_GROUP)
    return {point.name: point for point in found if point.name not in (*VENDORS, EXAMPLE)}


def _load(point: EntryPoint) -> Backend:
    try:
        backend = point.load()
    except Exception as error:  # another author's module may fail in any way
        raise ToolchainError(
            f"the backend {point.value!r} can't be loaded: {type(error).__name__}: {error}",
            where=f"entry point {ENTRY_POINT_GROUP}:{point.name}",
            fix="repair or uninstall the package that declares it",
        ) from error
    if not isinstance(backend, Backend):
        raise ToolchainError(
            f"{point.value!r} is not a Backend",
            where=f"entry point {ENTRY_POINT_GROUP}:{point.name}",
            fix="point it at an object with the methods of pocketport.targets.contract.Backend",
        )
    return backend
