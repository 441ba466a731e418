"""Opens hostile files one after another in a process whose memory is limited, and says what each came to, as JSON lines.

``python hostile_worker.py FOLDER LIMIT``: `FOLDER` holds a folder for each case, which its path to open is written in
(``path``). The process may take LIMIT bytes more than it has once everything is imported.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from pocketport.compress.families.registry import family_of
from pocketport.compress.ingest import ingest
from pocketport.compress.sources.open import open_source
from pocketport.compress.sources.scan import check_weights
from pocketport.compress.sources.source import QuantizedTensor
from pocketport.errors import PocketportError


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) << 10


def opened(path: Path) -> None:
    """What a port does with a model before the first long step, and a look into every quantized weight."""
    if path.suffix == ".onnx":
        ingest(path)
        return
    source = open_source(path)
    check_weights(source)
    family_of(source)
    ingest(path)
    for tensor in source.tensors.values():
        if isinstance(tensor, QuantizedTensor):
            tensor.quantized()


def came_to(path: Path) -> dict[str, Any]:
    """The error's kind and words, seconds, and how far the peak of memory rose."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = status("VmRSS"), time.perf_counter()
    try:
        opened(path)
        kind, message = "", "it was opened"
    except PocketportError as error:
        kind, message = type(error).__name__, str(error)
    except BaseException as error:
        kind, message = f"untyped {type(error).__name__}", str(error)
    return {"kind": kind, "message": message, "seconds": time.perf_counter() - start, "bytes": status("VmHWM") - before}


def main() -> None:
    """One line of JSON for each folder, in the order of their names."""
    root, limit = Path(sys.argv[1]), int(sys.argv[2])
    for case in sorted(root.iterdir()):  # the first is honest: what it takes is imports
        found = came_to(Path((case / "path").read_text()))
        if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
            most = status("VmSize") + limit
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        print(json.dumps({"case": case.name, **found}), flush=True)


if __name__ == "__main__":
    main()
