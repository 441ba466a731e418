"""Samples, tasks and the road of models with several components that don't chain: towers and image-text encoders."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from pocketport.compress.checkpoint import Checkpoint
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.ingest import ingest
from pocketport.compress.synthesis.write import synthesize
from pocketport.data import load_data
from pocketport.errors import InputError, UsageError
from pocketport.pipeline import run_until
from pocketport.report.document import finish_run
from pocketport.request import Request
from pocketport.stages.context import Context
from pocketport.store import Store
from pocketport.tasks import choose_task

pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "clip"
    synthesize("clip-vit-base-patch32", folder, scale=0.1, layers=1)
    return folder


@pytest.fixture(scope="session")
def tower(encoders: Path) -> Path:
    """The same vision tower on its own, with the processor of its images."""
    folder = encoders.parent / "tower"
    folder.mkdir()
    config = json.loads((encoders / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config["vision_config"]))
    (folder / "preprocessor_config.json").write_bytes((encoders / "preprocessor_config.json").read_bytes())
    tensors = Checkpoint(encoders)
    save_file({n: t.numpy() for n, t in tensors.items() if n.startswith("vision_model.")}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def pictures(encoders: Path) -> Path:
    folder = encoders.parent / "pictures"
    folder.mkdir()
    for index in range(8):
        pixels = np.random.default_rng(index).integers(0, 256, (5, 4 + index, 3), np.uint8)
        Image.fromarray(pixels).resize((40 * (4 + index), 200)).save(folder / f"{index}.png")
    return folder


def arrays(path: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    weights = np.zeros((count, 1, 77), np.float32)
    weights[:, 0, 9] = 1
    np.savez(
        path, pixel_values=rng.standard_normal((count, 1, 3, 224, 224)).astype(np.float32),
        input_ids=rng.integers(0, 4000, (count, 77)), pooling_weights=weights,
    )  # fmt: skip
    return path


def test_a_tower_takes_a_folder_of_images(tower: Path, pictures: Path) -> None:
    bundle = ingest(tower)
    data = load_data(bundle, Request(source=str(tower), data=str(pictures)))
    calibration, held = list(data.calibration()), list(data.held_out())
    assert (data.count, len(calibration), len(held)) == (6, 6, 2)
    assert {name for name, _ in calibration} == {"vision"}
    assert all(feeds["pixel_values"].shape == (1, 3, 224, 224) for _, feeds in calibration)
    assert not any(np.array_equal(a["pixel_values"], b["pixel_values"]) for _, a in calibration for _, b in held)
    with pytest.raises(UsageError, match="folder of images"):
        load_data(bundle, Request(source=str(tower)))


def test_every_component_takes_its_own_arrays(encoders: Path, tmp_path: Path) -> None:
    bundle = ingest(encoders)
    request = Request(source=str(encoders), data=str(arrays(tmp_path / "samples.npz", 4)))
    data = load_data(bundle, request)
    calibration = list(data.calibration())
    assert [name for name, _ in calibration] == ["vision", "text"] * data.count
    assert [set(feeds) for _, feeds in calibration[:2]] == [{"pixel_values"}, {"input_ids", "pooling_weights"}]
    task = choose_task(bundle, request)
    answers = task.evaluate({c.name: OrtExecutor(c.graph) for c in bundle}, len(task))
    assert len(answers) == 2 and all(answer.score == pytest.approx(1) for answer in answers)
    np.savez(tmp_path / "half.npz", input_ids=np.zeros((4, 77), np.int32))
    with pytest.raises(InputError, match="pixel_values"):
        load_data(bundle, request.model_copy(update={"data": str(tmp_path / "half.npz")}))


def test_components_that_chain_do_not_share_arrays(tmp_path: Path) -> None:
    synthesize("smollm2-135m", tmp_path / "model", scale=0.1, layers=1)
    bundle = ingest(tmp_path / "model")
    np.savez(tmp_path / "samples.npz", input_ids=np.zeros((4, 512), np.int32))
    with pytest.raises(UsageError, match="different arrays"):
        load_data(bundle, Request(source="model", data=str(tmp_path / "samples.npz")))


@pytest.mark.slow
def test_the_whole_road_of_a_tower(tower: Path, pictures: Path, tmp_path: Path) -> None:
    request = Request(source=str(tower), data=str(pictures), targets=["x86"])
    document = finish_run(run_until(Context(request, Store(), tmp_path / "out"), "profile"))
    (target,) = document.targets
    assert target.status == "ok", target.diagnostics
    (component,) = target.components
    assert component.name == "vision" and component.verify is not None and component.verify.sqnr_db > 10
    assert target.task is not None and target.task.metric == "cosine" and target.task.value > 0.95
    assert target.profile is not None and "latency" in {m.name for m in target.profile.measurements}
