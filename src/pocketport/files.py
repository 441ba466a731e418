"""Files that are never half-written, and their hashes."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

REMEMBERED_BYTES = 256 << 20  # hashing this takes a second


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success it takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically as UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document atomically: sorted keys, two spaces, a final newline (same input, same bytes)."""
    write_text(path, json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, streamed."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_root() -> Path:
    """``$POCKETPORT_CACHE``, or the platform's cache directory."""
    override = os.environ.get("POCKETPORT_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("pocketport"))


def remembered_sha256(path: Path) -> str:
    """Hex SHA-256 of a file; of a large one that did not change since (size, time, inode), from the cache."""
    status = path.stat()
    if status.st_size < REMEMBERED_BYTES:
        return sha256_file(path)
    identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"
    note = cache_root() / "digests" / hashlib.sha256(identity.encode()).hexdigest()
    if note.is_file():
        return note.read_text(encoding="ascii")
    digest = sha256_file(path)
    write_text(note, digest)
    return digest


def sha256_path(path: Path) -> str:
    """Hex SHA-256 of a file, or of a directory's relative names and contents in sorted order."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(file.relative_to(path).as_posix().encode() + b"\0" + sha256_file(file).encode() + b"\n")
    return digest.hexdigest()


def sha256_files(paths: Iterable[Path]) -> str:
    """Hex SHA-256 of files' names and contents, in the order of their names; their folders do not count."""
    digest = hashlib.sha256()
    for file in sorted(paths, key=lambda p: p.name):
        digest.update(file.name.encode() + b"\0" + remembered_sha256(file).encode() + b"\n")
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
