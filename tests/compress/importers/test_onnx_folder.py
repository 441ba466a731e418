"""Folders of ONNX files in the layouts of optimum and transformers.js."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.graph import static_shape
from pocketport.compress.ingest import ingest
from pocketport.compress.parity import check_parity
from pocketport.errors import InputError, UsageError

ENCODER = (
    "graph (int64[batch,tokens] input_ids) => (float last_hidden_state) { last_hidden_state = Gather(w, input_ids) }"
)
DECODER = """graph (int64[batch,tokens] input_ids, float[batch,source,8] encoder_hidden_states) => (float logits) {
    x = Gather(w, input_ids) m = ReduceMean<axes = [1], keepdims = 1>(encoder_hidden_states) logits = Add(x, m) }"""
WITH_PAST = """graph (int64[batch,1] input_ids, float[batch,2,past,4] "past_key_values.0.key", float[batch,2,past,4] "past_key_values.0.value")
    => (float logits) { x = Gather(w, input_ids) k = Add("past_key_values.0.key", "past_key_values.0.value")
    s = ReduceMean<keepdims = 0>(k) logits = Mul(x, s) }"""
MERGED = """graph (float[1,8] x, bool use_cache_branch) => (float y) { y = If(use_cache_branch)
    <then_branch = g1 () => (float z) { z = Relu(x) }, else_branch = g2 () => (float z) { z = Neg(x) }> }"""
SHAPES = {
    "*.input_ids": [1, 6], "decoder.encoder_hidden_states": [1, 6, 8], "decoder_with_past.past_key_values.*": [1, 2, 5, 4],
    "decoder_with_past.input_ids": [1, 1],
}  # fmt: skip


def save(path: Path, body: str, *, data: str | None = None) -> Path:
    """One file; its table `w` in external data if `data` names a file."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {body}')
    if "(w," in body:
        table = np.random.default_rng(len(body)).normal(size=(2000, 8)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(table, "w"))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, save_as_external_data=data is not None, location=data, size_threshold=64)
    return path


def exported(folder: Path) -> Path:
    """An encoder and a decoder, as optimum exports them."""
    save(folder / "encoder_model.onnx", ENCODER, data="encoder_model.onnx_data")
    save(folder / "decoder_model.onnx", DECODER, data="decoder_model.onnx_data")
    save(folder / "decoder_with_past_model.onnx", WITH_PAST)
    save(folder / "decoder_model_merged.onnx", MERGED)
    (folder / "config.json").write_text('{"model_type": "t5"}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_component_for_each_file(tmp_path: Path) -> None:
    folder = exported(tmp_path / "model")
    bundle = ingest(folder, shapes=SHAPES)
    shapes = {c.name: {v.name: static_shape(v) for v in c.graph.graph.inputs} for c in bundle}
    past = {f"past_key_values.0.{kind}": (1, 2, 5, 4) for kind in ("key", "value")}
    assert shapes == {
        "encoder": {"input_ids": (1, 6)},
        "decoder": {"input_ids": (1, 6), "encoder_hidden_states": (1, 6, 8)},
        "decoder_with_past": {"input_ids": (1, 1), **past},
    }
    assert (bundle.name, sorted(bundle.files)) == ("model", ["config.json", "tokenizer.json"])
    table = np.random.default_rng(len(ENCODER)).normal(size=(2000, 8)).astype(np.float32)
    ids = np.array([[3, 1, 4, 1, 5, 9]], np.int32)
    result = OrtExecutor(bundle["encoder"].graph).run({"input_ids": ids})
    np.testing.assert_array_equal(result["last_hidden_state"], table[ids])
    figures = check_parity(bundle, folder).figures
    assert {f.component for f in figures} == {"encoder", "decoder", "decoder_with_past"}
    assert all(f.sqnr_db > 90 for f in figures)
    bundle.save(tmp_path / "bundle")
    check_parity(ingest(tmp_path / "bundle"), folder)


def test_any_file_counts_for_the_hash(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    before = ingest(folder, shapes=SHAPES).sha256
    path = folder / "encoder_model.onnx_data"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    assert ingest(folder, shapes=SHAPES).sha256 != before


def test_the_layout_of_the_browsers_library(tmp_path: Path) -> None:
    for stem in ("vision_encoder", "vision_encoder_fp16", "vision_encoder_q4"):
        save(tmp_path / "onnx" / f"{stem}.onnx", "graph (float[1,8] x) => (float y) { y = Relu(x) }")
    save(tmp_path / "onnx" / "embed_tokens.onnx", ENCODER)
    (tmp_path / "config.json").write_text("{}")
    bundle = ingest(tmp_path, shapes={"embed.input_ids": [1, 4]})
    assert sorted(bundle.components) == ["embed", "vision"]
    assert bundle.config["files"] == {"embed": "onnx/embed_tokens.onnx", "vision": "onnx/vision_encoder.onnx"}
    check_parity(bundle, tmp_path)


def test_open_shapes_and_unknown_names(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    with pytest.raises(UsageError, match=r"--shape decoder\.input_ids=1,1"):
        ingest(folder)
    with pytest.raises(UsageError, match=r"no input 'encoder\.input_id'.*encoder\.input_ids"):
        ingest(folder, shapes={"encoder.input_id": [1, 6]})


def test_a_merged_decoder_alone_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "decoder_model_merged.onnx", MERGED)
    with pytest.raises(InputError, match=r"use_cache_branch.*--no-post-process"):
        ingest(tmp_path, shapes={"decoder_merged.use_cache_branch": [1]})


def test_paths_cannot_leave_the_folder(tmp_path: Path) -> None:
    folder = exported(tmp_path / "model")
    save(tmp_path / "outside.onnx", ENCODER)
    (folder / "encoder_model.onnx").unlink()
    (folder / "encoder_model.onnx").symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(InputError, match="leads out of"):
        ingest(folder, shapes=SHAPES)
    (folder / "encoder_model.onnx").unlink()
    save(folder / "encoder_model.onnx", ENCODER, data="encoder_model.onnx_data")
    (folder / "encoder_model.onnx_data").rename(tmp_path / "weights")
    (folder / "encoder_model.onnx_data").symlink_to(tmp_path / "weights")
    with pytest.raises(InputError, match="leaves the model's folder"):
        ingest(folder, shapes=SHAPES)
