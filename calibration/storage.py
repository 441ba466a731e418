"""Reproducible ``.npz`` files: fixed timestamps, sorted names, no pickle."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketport.errors import InputError
from pocketport.files import atomic_file


def write_npz(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write arrays to `path` atomically; the same arrays give the same bytes."""
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), buffer.getvalue())


def read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    """Read every array of an ``.npz``; InputError naming the file when it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"not a readable .npz file: {error}", where=str(path), fix="check the file, or make it again"
        ) from error
