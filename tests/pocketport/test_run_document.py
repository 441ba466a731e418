import json
from pathlib import Path

import jsonschema
import pytest

import pocketport
from pocketport.run_document import RunDocument, json_schema

SCHEMA_FILE = Path(pocketport.__file__).parent / "run.schema.json"

MINIMAL = {
    "schema": "pocketport.run/1",
    "model": {"name": "m", "family": "onnx", "sha256": "0" * 64, "parameters": 1, "components": [{"name": "main", "parameters": 1, "macs": 2, "bytes": 4}]},
    "recipe": "default",
    "targets": [
        {
            "id": "x86/generic",
            "status": "ok",
            "components": [
                {
                    "name": "main", "scheme": "w8a8", "pivot_bytes": 1,
                    "artifacts": [{"path": "x86-generic/main/model.onnx", "kind": "onnx", "bytes": 1, "sha256": "0" * 64, "primary": True}],
                    "offload": {"npu_ops": 1, "total_ops": 2, "source": "test"},
                    "verify": {"engine": "onnxruntime", "kind": "onnx", "provenance": "measured", "sqnr_db": 40.0, "pivot_db": 60.0, "n": 1},
                }
            ],
            "task": {"metric": "cosine", "value": 1.0, "float_value": 1.0, "n": 1, "provenance": "measured", "engine": "onnxruntime"},
            "profile": {
                "device": "this machine",
                "measurements": [{"name": "latency", "value": 1.0, "unit": "ms", "provenance": "measured", "detail": "here", "low": 0.5, "high": 2.0}],
            },
        }
    ],
    "verdict": {"status": "none", "checks": []},
    "environment": {"python": "3.11"},
}  # fmt: skip


def test_the_shipped_schema_is_the_models() -> None:
    assert json.loads(SCHEMA_FILE.read_text()) == json_schema()


def test_a_document_validates_against_the_shipped_schema() -> None:
    document = RunDocument.model_validate(MINIMAL).model_dump(by_alias=True)
    jsonschema.validate(document, json.loads(SCHEMA_FILE.read_text()))
    assert document["schema"] == "pocketport.run/1"


@pytest.mark.parametrize("change", [{"schema": "pocketport.run/2"}, {"extra": 1}, {"verdict": {"status": "maybe"}}])
def test_what_is_not_in_the_schema_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**MINIMAL, **change}, json_schema())
