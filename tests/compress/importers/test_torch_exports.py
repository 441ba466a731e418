"""Files as torch.onnx.export writes them today, against onnxruntime on the file as it came."""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.graph import hollowed
from pocketport.compress.ingest import ingest
from pocketport.compress.parity import check_parity
from pocketport.targets.contract import Target
from pocketport.targets.registry import backend_for

TARGETS = ("qualcomm/sm8650", "apple/a17-pro", "mediatek/mt6989", "x86/avx2")
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100,
    "max_position_embeddings": 32,
}  # fmt: skip


class Hidden(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask)[0]  # type: ignore[no-any-return]


def export(architecture: str, path: Path, *, dynamo: bool) -> None:
    torch.manual_seed(0)
    if architecture == "roberta":
        module = Hidden(RobertaModel(RobertaConfig(**SIZES), add_pooling_layer=False).eval())
    else:
        module = Hidden(LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, use_cache=False)).eval())
    inputs = (torch.randint(3, 99, (1, 12)), torch.ones(1, 12, dtype=torch.long))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, str(path), dynamo=dynamo, **({} if dynamo else {"opset_version": 17}))


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("architecture", ["roberta", "llama"])
def test_masked_attention_goes_through(architecture: str, dynamo: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export(architecture, path, dynamo=dynamo)
    bundle = ingest(path)
    check_parity(bundle, path)
    graph = bundle["main"].graph
    assert all(v.dtype is not ir.DataType.BOOL for node in graph.graph for v in node.outputs)
    for target in map(Target.parse, TARGETS):
        assert not [d for d in backend_for(target).check("main", hollowed(graph), target) if d.severity.name == "ERROR"]

    rng, original, ported = np.random.default_rng(0), OrtExecutor(path), OrtExecutor(graph)
    for visible in (12, 7, 1):
        mask = np.arange(12)[None] < visible
        ids = np.where(mask, rng.integers(3, 99, (1, 12)), 1)  # RoBERTa counts positions of what is not padding
        feeds = dict(zip(original.inputs, (ids, mask.astype(np.int64)), strict=True))
        (expected,) = original.run(feeds).values()
        (found,) = ported.run({name: array.astype(np.int32) for name, array in feeds.items()}).values()
        np.testing.assert_allclose(found[:, :visible], expected[:, :visible], rtol=1e-4, atol=1e-5)
