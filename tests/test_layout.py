"""The house rules that no tool checks by itself: the package list, who may import whom, vendors at arm's length."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "pocketport": ROOT / "src" / "pocketport",
    "pocketport.compress": ROOT / "compress",
    "pocketport.calibration": ROOT / "calibration",
    "pocketport.targets": ROOT / "targets",
    "pocketport.profiles": ROOT / "profiles",
}
LEAVES = frozenset({"errors", "diagnostics", "files", "suggest", "workers"})
MAY_IMPORT = {  # package → the packages of the house that it may import, besides itself and the leaves
    "calibration": frozenset[str](),
    "compress": frozenset({"calibration"}),
    "profiles": frozenset({"calibration", "compress", "targets"}),
    "targets": frozenset({"calibration", "compress", "profiles"}),
}
VENDOR_LIBRARIES = {
    "qualcomm": frozenset({"onnxruntime_qnn"}),
    "apple": frozenset({"coreai", "coreai_onnx", "coremltools"}),
    "mediatek": frozenset({"ai_edge_litert"}),
    "x86": frozenset({"openvino"}),
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the house: its dotted name and its file."""
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names that a file imports, inside functions too; ``from a import b`` gives ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def layer(name: str) -> str:
    """``compress`` of ``pocketport.compress.graph``, ``errors`` of ``pocketport.errors``, ``front`` of the rest."""
    head = [*name.split("."), ""][1]
    return head if head in MAY_IMPORT or head in LEAVES else "front"


def test_the_package_list_is_what_is_on_disk() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    on_disk = {name for name, path in modules() if path.name == "__init__.py"}
    assert set(document["tool"]["setuptools"]["packages"]) == on_disk


def test_dependencies_point_inwards() -> None:
    broken = []
    for name, path in modules():
        here = layer(name)
        if here == "front":
            continue
        allowed = LEAVES | MAY_IMPORT.get(here, frozenset()) | ({here} if here in MAY_IMPORT else set())
        for imported in imports(path):
            if imported.startswith("pocketport.") and layer(imported) not in allowed:
                broken.append(f"{name} imports {imported}")
    assert broken == []


def test_only_a_vendors_folder_knows_the_vendor() -> None:
    broken = []
    for name, path in modules():
        for vendor, libraries in VENDOR_LIBRARIES.items():
            home = f"pocketport.targets.{vendor}"
            if name == home or name.startswith(f"{home}."):
                continue
            for imported in imports(path):
                if imported == home or imported.startswith(f"{home}.") or imported.split(".")[0] in libraries:
                    broken.append(f"{name} imports {imported}")
    assert broken == []


def test_everything_imports_without_the_vendors_packages() -> None:
    blocked = sorted(set().union(*VENDOR_LIBRARIES.values()))
    names = [name for name, _ in modules() if not name.endswith("__main__")]
    program = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", ["compress", "calibration", "targets", "profiles"])
def test_the_folders_are_imported_by_their_full_name(folder: str) -> None:
    broken = [str(path) for _, path in modules() if any(name.split(".")[0] == folder for name in imports(path))]
    assert broken == []
