"""One look at every weight before anything is built on it: a NaN found after hours of work is a lost night."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import onnx_ir as ir

from pocketport.compress.checkpoint import StoredTensor, check_finite
from pocketport.compress.sources.gguf_tensors import StoredBlocks, check_scales
from pocketport.compress.sources.source import DerivedTensor, QuantizedTensor, Source
from pocketport.files import cache_root, write_text

THREADS = 2
REMEMBERED_BYTES = 256 << 20


def check_weights(source: Source, progress: Callable[[int], None] | None = None) -> float:
    """Look for NaN and infinity in every stored tensor; large checkpoints that passed once are remembered.

    Args:
        source: the checkpoint.
        progress: called with the number of tensors done.

    Returns:
        Seconds it took.

    Raises:
        InputError: names the first tensor that has one.
    """
    start = time.perf_counter()
    tensors = [part for tensor in source.tensors.values() for part in _parts(tensor)]
    note = cache_root() / "finite" / source.sha256()
    if note.is_file():
        return time.perf_counter() - start
    with ThreadPoolExecutor(THREADS) as pool:
        for done, _ in enumerate(pool.map(_check, tensors), start=1):
            if progress:
                progress(done)
    if sum(t.stored_nbytes for t in tensors) > REMEMBERED_BYTES:
        write_text(note, f"{len(tensors)} tensors\n")
    return time.perf_counter() - start


def _check(tensor: StoredTensor) -> None:
    if isinstance(tensor, StoredBlocks):
        check_scales(tensor)
    else:
        check_finite(tensor)


def _parts(tensor: ir.TensorProtocol) -> tuple[StoredTensor, ...]:
    if isinstance(tensor, QuantizedTensor | DerivedTensor):
        return tensor.parts
    return (tensor,) if isinstance(tensor, StoredTensor) else ()
