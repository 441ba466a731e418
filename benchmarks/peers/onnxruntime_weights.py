"""onnxruntime's own weight quantizers over a local checkpoint, for `llm_weights.py`.

``python onnxruntime_weights.py MODEL TOKENS.npz OUT OPTIONS``: OPTIONS is a JSON object with ``bits``, ``group_size``, ``sym``
and ``algorithm`` (``default``: nearest integers between extremes; ``k_quant``: scales searched as ggml's k-quants do;
``hqq``). None of these reads TOKENS. Each linear weight becomes a MatMul, is quantized as such, and read back by running MatMulNBits
on the identity; what is written is a checkpoint of those weights.
"""

import json
import sys

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import matmul_nbits_quantizer as quantizers
from transformers import AutoModelForCausalLM


def main() -> None:
    """Load, quantize, save."""
    model_folder, _, out, text = sys.argv[1:]
    options = json.loads(text)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            weight = module.weight.detach()
            weight.copy_(torch.from_numpy(read_back(weight.numpy(), options)))
    model.save_pretrained(out)


def read_back(weight: np.ndarray, options: dict) -> np.ndarray:
    """The weight [N, K] that onnxruntime's integers stand for."""
    n, k = weight.shape
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")
    rows, columns = (helper.make_tensor_value_info(v, onnx.TensorProto.FLOAT, [k, s]) for v, s in (("x", k), ("y", n)))
    graph = helper.make_graph([node], "linear", [rows], [columns], [numpy_helper.from_array(weight.T.copy(), "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    quantizer = quantizers.MatMulNBitsQuantizer(
        model,
        bits=options["bits"],
        block_size=options["group_size"],
        is_symmetric=options["sym"],
        algo_config=config(options),
    )
    quantizer.process()
    quantized = quantizer.model.model
    if not any(node.op_type == "MatMulNBits" for node in quantized.graph.node):
        raise RuntimeError(f"a weight of shape {weight.shape} was not quantized")
    session = ort.InferenceSession(quantized.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.ascontiguousarray(session.run(None, {"x": np.eye(k, dtype=np.float32)})[0].T)


def config(options: dict) -> quantizers.WeightOnlyQuantConfig | None:
    """Of the algorithm that is asked for."""
    if options["algorithm"] == "k_quant":
        return quantizers.KQuantWeightOnlyQuantConfig()
    if options["algorithm"] == "hqq":
        return quantizers.HQQWeightOnlyQuantConfig(block_size=options["group_size"], bits=options["bits"])
    return None


if __name__ == "__main__":
    main()
