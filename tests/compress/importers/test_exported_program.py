"""Programs of torch.export: translated, compared with themselves, and opened without running what a file says."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pocketport.calibration.metrics import sqnr_db
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.graph import static_shape
from pocketport.compress.importers.exported_program import compare_exported
from pocketport.compress.importers.pt2_archive import open_pt2
from pocketport.compress.ingest import ingest
from pocketport.compress.parity import check_parity
from pocketport.errors import InputError, UsageError, VerificationError

GRAPH, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.register_buffer("offset", torch.arange(5).float())

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        y = nn.functional.gelu(self.conv(x), approximate="tanh").mean((2, 3))
        return {"a": self.linear(y) + self.offset, "b": y * scale}


def exported(*, dynamic: bool = False) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    batch = {"x": {0: torch.export.Dim("batch", max=64)}, "scale": None} if dynamic else None
    return torch.export.export(Small().eval(), (torch.randn(2, 3, 8, 8), torch.ones(8)), dynamic_shapes=batch)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "small.pt2"
    torch.export.save(exported(), path)
    return path


@pytest.fixture(scope="module")
def bundle(saved: Path) -> ModelBundle:
    return ingest(saved)


def test_a_file_computes_what_its_module_does(saved: Path, bundle: ModelBundle) -> None:
    assert (bundle.name, list(bundle.components)) == ("small", ["main"])
    graph = bundle["main"].graph
    assert {v.name: static_shape(v) for v in graph.graph.inputs} == {"x": (2, 3, 8, 8), "scale": (8,)}
    assert all(figure.sqnr_db > 90 for figure in check_parity(bundle, saved).figures)
    x, scale = torch.randn(2, 3, 8, 8), torch.rand(8)
    torch.manual_seed(0)
    with torch.inference_mode():
        expected = Small().eval()(x, scale)
    found = list(OrtExecutor(graph).run({"x": x.numpy(), "scale": scale.numpy()}).values())
    for tensor, array in zip(expected.values(), found, strict=True):
        torch.testing.assert_close(torch.from_numpy(array), tensor, rtol=1e-5, atol=1e-5)


def test_a_program_in_memory_with_open_dimensions(tmp_path: Path) -> None:
    program = exported(dynamic=True)
    bundle = ingest(program, shapes={"x": [3, 3, 8, 8]})
    assert static_shape(bundle["main"].graph.graph.inputs[0]) == (3, 3, 8, 8)
    assert all(sqnr_db(expected, found) > 90 for _, _, expected, found in compare_exported(bundle, program))
    torch.export.save(program, tmp_path / "open.pt2")
    check_parity(bundle, tmp_path / "open.pt2")


def test_parity_sees_other_weights(bundle: ModelBundle, tmp_path: Path) -> None:
    program = exported()
    program.state_dict["linear.weight"].data.mul_(1.5)
    torch.export.save(program, tmp_path / "other.pt2")
    with pytest.raises(VerificationError, match="differs from the original"):
        check_parity(bundle, tmp_path / "other.pt2")


def rewritten(saved: Path, path: Path, change: Callable[[dict[str, Any]], Any], record: str = GRAPH) -> Path:
    """The archive with one of its JSON records changed."""
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            content = source.read(info)
            if info.filename.endswith(record):
                document = json.loads(content)
                change(document)
                content = json.dumps(document).encode()
            target.writestr(info.filename, content)
    return path


def node(**keys: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda document: document["graph_module"]["graph"]["nodes"][0].update(keys)


def renamed(document: dict[str, Any]) -> None:
    for argument in document["graph_module"]["graph"]["inputs"]:
        argument["as_tensor"]["name"] = "x=__import__('os').system('true')"


def sized(text: str) -> Callable[[dict[str, Any]], Any]:
    size = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}
    return lambda document: document["graph_module"]["graph"]["tensor_values"]["x"].update(sizes=[size] * 4)


def spec(document: dict[str, Any]) -> None:
    document["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = (
        '[1, {"type": "os.system", "context": null, "children_spec": []}]'
    )


def pickled(document: dict[str, Any]) -> None:
    document["config"]["linear.weight"]["use_pickle"] = True


def huge(document: dict[str, Any]) -> None:
    document["config"]["linear.weight"]["tensor_meta"]["sizes"] = [{"as_int": 10**6}, {"as_int": 10**6}]


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a call of torch's own modules": (node(target="torch.os.system"), GRAPH),
    "a call of the operating system": (node(target="torch.hub.load"), GRAPH),
    "an operation on files": (node(target="torch.ops.aten.from_file.default"), GRAPH),
    "a custom operation": (node(target="torch.ops.mine.run.default"), GRAPH),
    "a name that is code": (renamed, GRAPH),
    "a shape that is code": (sized("__import__('os').getcwd()"), GRAPH),
    "a shape that takes for ever": (sized("9**9**9**9"), GRAPH),
    "a container that is none": (spec, GRAPH),
    "a pickled weight": (pickled, WEIGHTS),
    "a weight larger than its record": (huge, WEIGHTS),
    "no nodes": (lambda document: document["graph_module"].pop("graph"), GRAPH),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_that_a_file_says_is_run(saved: Path, tmp_path: Path, case: str) -> None:
    change, record = HOSTILE[case]
    with pytest.raises(InputError, match=r"bad\.pt2"):
        open_pt2(rewritten(saved, tmp_path / "bad.pt2", change, record))


def test_guards_and_samples_are_left_behind(saved: Path, tmp_path: Path) -> None:
    """Guards are source code and sample inputs are a pickle: neither is looked at."""
    mark = tmp_path / "mark"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    path = rewritten(saved, tmp_path / "guarded.pt2", lambda document: document.update(guards_code=[code]))

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return eval, (code,)

    evil = tmp_path / "evil.pt2"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(evil, "w") as target:
        for info in source.infolist():
            target.writestr(
                info.filename, pickle.dumps(Evil()) if info.filename.endswith("model.pt") else source.read(info)
            )
    open_pt2(evil).module()(torch.ones(2, 3, 8, 8), torch.ones(8))
    assert not mark.exists()


def test_damaged_files(saved: Path, tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("cut", saved.read_bytes()[:-300]), ("noise", b"\xff" * 400)):
        path = tmp_path / f"{name}.pt2"
        path.write_bytes(content)
        with pytest.raises(InputError, match=name):
            ingest(path)
    with pytest.raises(UsageError, match="no such model"):
        ingest(tmp_path / "absent.pt2")
