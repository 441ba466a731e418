"""ModelBundle: the full model as named Components, each a Graph, and the files that chain them.

A bundle on disk is a directory: ``bundle.json``, ``<component>.onnx`` with ``<component>.data`` beside it,
and ``files/`` (tokenizer, processor and model configuration).
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, ValidationError

from pocketport.compress.graph import load_graph, save_graph
from pocketport.errors import InputError, UsageError
from pocketport.files import atomic_directory, write_json

Graph: TypeAlias = ir.Model


@dataclass
class Component:
    """One graph of the model, under its name in ``docs/architecture.md`` (``vision`` … ``decode``), or ``main``."""

    name: str
    graph: Graph


class BundleDocument(BaseModel):
    """``bundle.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_name: str = "pocketport.bundle/1"
    name: str
    family: str
    sha256: str
    components: list[str]
    files: list[str]
    config: dict[str, Any]
    shared: list[list[str]]


@dataclass
class ModelBundle:
    """The full model.

    Attributes:
        name: what the user called it.
        family: key of the family that knows how the components chain (``minicpmv``, ``bert``, ``onnx``).
        sha256: hash of the source it was ingested from.
        components: by name, in the order in which data flows.
        files: tokenizer and processor files by file name.
        config: the family's own settings (static lengths, special tokens, ...), JSON-able.
        shared: groups of ``component/tensor`` names that carry the same data between components (a KV cache,
            vision features) and must therefore share one encoding.
    """

    name: str
    family: str
    sha256: str
    components: dict[str, Component]
    files: dict[str, Path] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    shared: list[list[str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Component]:
        return iter(self.components.values())

    def __getitem__(self, name: str) -> Component:
        try:
            return self.components[name]
        except KeyError:
            raise UsageError(
                f"no component {name!r}; it has {', '.join(self.components)}",
                where=f"bundle {self.name}",
                fix="name one of those",
            ) from None

    def with_graphs(self, graphs: Mapping[str, Graph]) -> "ModelBundle":
        """A new bundle with these graphs in the place of the components' own."""
        components = {c.name: Component(c.name, graphs.get(c.name, c.graph)) for c in self}
        return ModelBundle(self.name, self.family, self.sha256, components, self.files, self.config, self.shared)

    def save(self, directory: Path) -> None:
        """Write the bundle to `directory`, whole or not at all."""
        with atomic_directory(directory) as temporary:
            for component in self:
                save_graph(component.graph, temporary / f"{component.name}.onnx")
            (temporary / "files").mkdir()
            for name, path in self.files.items():
                shutil.copyfile(path, temporary / "files" / name)
            document = BundleDocument(
                name=self.name, family=self.family, sha256=self.sha256, components=list(self.components),
                files=sorted(self.files), config=self.config, shared=self.shared,
            )  # fmt: skip
            write_json(temporary / "bundle.json", document.model_dump())

    @classmethod
    def load(cls, directory: Path) -> "ModelBundle":
        """Open a bundle; weights stay memory-mapped in the ``.data`` files.

        Raises:
            InputError: `directory` is not a bundle, or a file of it is damaged.
        """
        path = directory / "bundle.json"
        try:
            document = BundleDocument.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise InputError(f"not a bundle: {error}", where=str(path), fix="ingest the model again") from error
        for name in (*document.components, *document.files):
            if Path(name).name != name or name in ("", ".", ".."):
                raise InputError(f"{name!r} leaves the bundle's folder", where=str(path), fix="ingest the model again")
        components = {n: Component(n, load_graph(directory / f"{n}.onnx")) for n in document.components}
        files = {n: directory / "files" / n for n in document.files}
        return cls(document.name, document.family, document.sha256, components, files, document.config, document.shared)
