"""The store: every stage's output under the hash of what it was made from.

``<root>/<stage>/<key>/`` is the output, ``<key>.json`` beside it its digest and the seconds it took. An output
appears by one rename, so a stage is either finished or never happened: a killed run resumes from the last
finished stage. Two processes that want the same output take turns (a lock file per key).
"""

import hashlib
import importlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from pocketport import __version__
from pocketport.files import atomic_directory, cache_root, sha256_path, write_json


@dataclass(frozen=True)
class StageResult:
    """A finished stage: its name, content address, output directory, the output's digest, seconds when it ran."""

    stage: str
    key: str
    path: Path
    digest: str
    seconds: float
    cached: bool


class Store:
    """Content-addressed outputs under `root`."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_root()

    def run(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        produce: Callable[[Path], None],
        *,
        code: tuple[str, ...],
        packages: tuple[str, ...] = (),
        resumable: bool = False,
    ) -> StageResult:
        """The output of `stage` for `inputs`, made now unless it exists.

        Args:
            stage: the stage's name, a folder of the store.
            inputs: JSON-able; everything that the output depends on (digests of earlier stages, settings).
            produce: writes the output into the empty directory that it is given.
            code: folders of Pocketport's own sources (``compress``, ``targets/apple``, …) that the output depends on.
            packages: distributions whose versions the output depends on.
            resumable: a killed `produce` is called again with what it had written, to go on from there.
        """
        versions = {name: package_version(name) for name in packages}
        identity = {
            "stage": stage,
            "inputs": inputs,
            "packages": versions,
            "pocketport": __version__,
            "code": code_digest(code),
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
        path = self.root / stage / key
        record = path.with_suffix(".json")
        (self.root / stage).mkdir(parents=True, exist_ok=True)
        if record.exists() and path.exists():
            return self._result(stage, key, path, record, cached=True)
        with FileLock(path.with_suffix(".lock")):
            if record.exists() and path.exists():
                return self._result(stage, key, path, record, cached=True)
            self._sweep(path)
            start = time.perf_counter()
            if resumable:
                partial = path.with_suffix(".partial")
                partial.mkdir(exist_ok=True)
                produce(partial)
                partial.replace(path)
            else:
                with atomic_directory(path) as temporary:
                    produce(temporary)
            seconds = time.perf_counter() - start
            write_json(record, {"digest": sha256_path(path), "seconds": round(seconds, 3), "identity": identity})
            return self._result(stage, key, path, record, cached=False)

    def _result(self, stage: str, key: str, path: Path, record: Path, *, cached: bool) -> StageResult:
        document = json.loads(record.read_text(encoding="utf-8"))
        return StageResult(stage, key, path, document["digest"], document["seconds"], cached)

    def _sweep(self, path: Path) -> None:
        """Remove what a killed run left of this output; the lock is held, so nobody is writing it."""
        for leftover in path.parent.glob(f".{path.name}.*"):
            shutil.rmtree(leftover, ignore_errors=True)


@cache
def package_version(name: str) -> str:
    """Version of an installed distribution, ``absent`` when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


@cache
def code_digest(folders: tuple[str, ...]) -> str:
    """Hash of some of Pocketport's own source folders: a stage made by other code is another stage."""
    digest = hashlib.sha256()
    for name in folders:
        package, _, rest = name.partition("/")
        module = importlib.import_module("pocketport" if package == "pocketport" else f"pocketport.{package}")
        folder = Path(str(module.__file__)).parent / rest
        files = (file for pattern in ("*.py", "*.toml", "*.yaml", "*.c") for file in folder.rglob(pattern))
        for file in sorted(files):
            digest.update(file.relative_to(folder).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
