"""The whole road as one function."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pocketport.errors import UsageError
from pocketport.files import atomic_file
from pocketport.pipeline import run_until
from pocketport.report.document import finish_run
from pocketport.request import Request
from pocketport.run_document import RunDocument
from pocketport.stages.context import Context, Progress, SilentProgress
from pocketport.store import Store
from pocketport.suggest import nearest

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def port(
    source: "str | Path | ExportedProgram",
    targets: Sequence[str],
    out: str | Path,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> RunDocument:
    """Port a model: what ``pocketport port`` does, with the same bytes.

    Args:
        source: ``reference``, a checkpoint (folder or GGUF file), ONNX (file or folder), a ``.pt2`` file, or a
            `torch.export.ExportedProgram`, which is first saved as ``program.pt2`` in `out`.
        targets: ``vendor/soc[@sdk]`` identities.
        out: the run's directory; it receives the artifacts, ``run.json`` and ``report.html``.
        cache: the store's folder; None for ``$POCKETPORT_CACHE`` or the user's cache.
        progress: is told what is under way.
        options: the other fields of `pocketport.Request`: ``data``, ``shapes``, ``recipe``, ``task``, ``budget``, ….

    Returns:
        What ``run.json`` says. A target that a toolchain refused is in it, with its diagnostics.

    Raises:
        UsageError: an option, target, recipe or data that does not exist.
        InputError: the model, the data or the budget is damaged.
        VerificationError: the components do not compute what the original does, or a step did nothing.
    """
    for name in options:
        if name not in Request.model_fields:
            raise UsageError(f"there is no option {name!r}", where="port", fix=nearest(name, Request.model_fields))
    directory = Path(out)
    if not isinstance(source, str | Path):
        source = _saved(source, directory / "program.pt2")
    try:
        request = Request(source=str(source), targets=list(dict.fromkeys(targets)), **options)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(first["msg"], where=f"port, {first['loc'][0]}", fix="correct the option") from error
    directory.mkdir(parents=True, exist_ok=True)
    context = Context(request, Store(cache), directory, progress or SilentProgress())
    return finish_run(run_until(context, "profile"))


def _saved(program: "ExportedProgram", path: Path) -> Path:
    import torch

    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        torch.export.save(program, stream)
    return path
