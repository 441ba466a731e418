"""The float graph of a BERT encoder against the same computation written in torch."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.bert.config import BertConfig
from pocketport.compress.families.bert.load import bert_state
from pocketport.compress.families.registry import Pair
from pocketport.compress.sources.source import Source

SAMPLE_SEED = 7
SAMPLE_COUNT = 4


def compare(bundle: ModelBundle, source: Source) -> Iterator[Pair]:
    """(component, tensor, torch's numbers, the graph's numbers) over random token sequences of several lengths."""
    config = BertConfig.of(source)
    state = {
        name: torch.from_numpy(tensor.numpy())
        for name, tensor in bert_state(source).items()
        if tensor.dtype.is_floating_point()
    }
    executor, length = OrtExecutor(bundle["main"].graph), int(bundle.config["length"])
    rng = np.random.default_rng(SAMPLE_SEED)
    for count in np.linspace(length, length / 8, SAMPLE_COUNT).astype(int):
        ids, mask = np.zeros(length, np.int32), np.zeros(length, np.float32)
        ids[:count], mask[:count] = rng.integers(1, config.vocab_size, count), 1
        result = executor.run({"input_ids": ids, "attention_mask": mask})
        hidden = bert_forward(state, config, torch.from_numpy(ids[:count].astype(np.int64)))
        yield "main", "last_hidden_state", hidden.numpy(), result["last_hidden_state"][:count]
        yield (
            "main",
            "sentence_embedding",
            F.normalize(hidden.mean(0, keepdim=True)).numpy(),
            result["sentence_embedding"],
        )


@torch.inference_mode()
def bert_forward(state: Mapping[str, Tensor], config: BertConfig, ids: Tensor) -> Tensor:
    """Last hidden state [T, H] of one unpadded sequence [T]."""

    def linear(x: Tensor, path: str) -> Tensor:
        return F.linear(x, state[f"{path}.weight"], state[f"{path}.bias"])

    def norm(x: Tensor, path: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{path}.weight"], state[f"{path}.bias"], config.layer_norm_eps)

    words, places, segments = (state[f"embeddings.{n}_embeddings.weight"] for n in ("word", "position", "token_type"))
    x = norm(words[ids] + places[: len(ids)] + segments[0], "embeddings.LayerNorm")
    for i in range(config.num_hidden_layers):
        path = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{path}.attention.self.{p}").reshape(len(ids), config.num_attention_heads, -1).transpose(0, 1)
            for p in ("query", "key", "value")
        )
        context = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        x = norm(x + linear(context, f"{path}.attention.output.dense"), f"{path}.attention.output.LayerNorm")
        inner = F.gelu(linear(x, f"{path}.intermediate.dense"))
        x = norm(x + linear(inner, f"{path}.output.dense"), f"{path}.output.LayerNorm")
    return x
