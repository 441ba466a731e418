"""Running a float graph in torch, node by node: what onnxruntime can't do is stop in the middle and change a weight."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.executors.torch_spatial import SPATIAL_OPS
from pocketport.compress.torch_device import best_device, matrix_dtype, stored_as_torch
from pocketport.errors import InputError

Tensor: TypeAlias = torch.Tensor
Values: TypeAlias = dict[str, Tensor]
Inputs: TypeAlias = list[Tensor]


OPTIONAL_OPERANDS = frozenset({"Clip", "Resize"})  # ops that are given an empty tensor for one that is missing


class WeightCache:
    """The weights that a few nodes need, float32 on the device; the least of a checkpoint that has to be in memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: Values = {}

    def get(self, value: ir.Value) -> Tensor:
        """An initializer, read on first use."""
        name = value.name or ""
        if name not in self._held:
            stored = self.stored(value)
            self._held[name] = stored.to(self.device, torch.float32 if stored.is_floating_point() else stored.dtype)
        return self._held[name]

    def stored(self, value: ir.Value) -> Tensor:
        """An initializer where it lies, in its own dtype."""
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None
        return stored_as_torch(tensor)

    def replace(self, name: str, weight: Tensor) -> None:
        """Another weight for the same name: what it is after quantization."""
        self._held[name] = weight

    def clear(self) -> None:
        """Give the memory back."""
        self._held.clear()


def run_nodes(nodes: Iterable[ir.Node], values: Values, weights: WeightCache, last_use: Mapping[str, ir.Node]) -> None:
    """Compute `nodes` in order, in place in `values`; a value goes when the node in `last_use` has read it.

    Raises:
        InputError: an op has no implementation here.
    """
    for node in nodes:
        inputs = [_operand(node, v, values, weights) for v in node.inputs]
        op = OPS.get(node.op_type)
        if op is None:
            raise InputError(
                f"the op {node.op_type} can't be calibrated block by block",
                where=f"node {node.name}",
                fix="use an algorithm that needs no data (rtn, mse)",
            )
        results = op(node, inputs)
        for value, result in zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=True):
            values[value.name or ""] = result
        for operand in node.inputs:
            if operand is not None and last_use.get(operand.name or "") is node:
                values.pop(operand.name or "", None)


class TorchExecutor:
    """A float graph whose weights are read node by node and dropped again; for graphs that do not fit into memory.

    Args:
        graph: the model, opset 23 and static shapes.
    """

    def __init__(self, graph: ir.Model) -> None:
        self._nodes = list(graph.graph)
        self._outputs = [v.name or "" for v in graph.graph.outputs]
        self._last_use = last_uses(self._nodes, set(self._outputs))
        self._device = best_device()

    @torch.inference_mode()
    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run once; all outputs."""
        values = {name: torch.from_numpy(np.asarray(array)).to(self._device) for name, array in feeds.items()}
        weights = WeightCache(self._device)
        for node in self._nodes:
            run_nodes([node], values, weights, self._last_use)
            weights.clear()
        return {name: values[name].cpu().numpy() for name in self._outputs}


def last_uses(nodes: Iterable[ir.Node], kept: set[str]) -> dict[str, ir.Node]:
    """The node after which each value is not needed any more; those in `kept` stay."""
    return {v.name or "": node for node in nodes for v in node.inputs if v is not None and v.name not in kept}


def _operand(node: ir.Node, value: ir.Value | None, values: Values, weights: WeightCache) -> Tensor:
    if value is None and node.op_type in OPTIONAL_OPERANDS:
        return torch.empty(0)
    if value is None:
        raise InputError("optional operands are not supported", where="torch executor", fix="give the operand a value")
    found = values.get(value.name or "")
    if found is not None:
        return found
    if node.op_type == "Gather" and value is node.inputs[0]:  # a table: only the rows that are asked for are cast
        return weights.stored(value)
    return weights.get(value)


def _gemm(node: ir.Node, inputs: Inputs) -> Tensor:
    x, weight = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    if not _int(node, "transB", 0):
        weight = weight.T
    return linear(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[rows, K] · [N, K]ᵀ + bias in `matrix_dtype`, float32 out."""
    dtype = matrix_dtype()
    if dtype == torch.float32:
        return functional.linear(x, weight, bias)
    product = functional.linear(x.to(dtype), weight.to(dtype)).float()
    return product if bias is None else product + bias


def _gather(node: ir.Node, inputs: Inputs) -> Tensor:
    table, indices = inputs
    axis = _int(node, "axis", 0)
    picked = table.index_select(axis, indices.reshape(-1).long().to(table.device)).to(indices.device)
    picked = picked.float() if picked.is_floating_point() else picked
    return picked.reshape(*table.shape[:axis], *indices.shape, *table.shape[axis + 1 :])


def _layer_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    x, gamma = inputs[:2]
    beta = inputs[2] if len(inputs) > 2 else None
    return functional.layer_norm(x, (x.shape[-1],), gamma, beta, _float(node, "epsilon", 1e-5))


def _rms_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    return functional.rms_norm(inputs[0], (inputs[0].shape[-1],), inputs[1], _float(node, "epsilon", 1e-5))


def _slice(node: ir.Node, inputs: Inputs) -> Tensor:
    x, starts, ends = inputs[:3]
    axes = inputs[3].tolist() if len(inputs) > 3 else list(range(starts.numel()))
    steps = inputs[4].tolist() if len(inputs) > 4 else [1] * starts.numel()
    places = [slice(None)] * x.dim()
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True):
        places[axis] = slice(start, end, step)
    return x[tuple(places)]


def _split(node: ir.Node, inputs: Inputs) -> tuple[Tensor, ...]:
    sizes, axis = inputs[1].tolist(), _int(node, "axis", 0)
    return torch.functional.split(inputs[0], sizes, axis)


def _reshape(node: ir.Node, inputs: Inputs) -> Tensor:
    x, shape = inputs[0], inputs[1].tolist()
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape)])


def _clip(node: ir.Node, inputs: Inputs) -> Tensor:
    low, high = [*(bound if bound.numel() else None for bound in inputs[1:]), None, None][:2]
    return inputs[0] if low is None and high is None else torch.clamp(inputs[0], low, high)


def _hard_sigmoid(node: ir.Node, inputs: Inputs) -> Tensor:
    return (inputs[0] * _float(node, "alpha", 0.2) + _float(node, "beta", 0.5)).clamp(0.0, 1.0)


def _squeeze(node: ir.Node, inputs: Inputs) -> Tensor:
    return inputs[0].squeeze(tuple(inputs[1].tolist())) if len(inputs) > 1 else inputs[0].squeeze()


def _unsqueeze(node: ir.Node, inputs: Inputs) -> Tensor:
    x, axes = inputs[0], inputs[1].tolist()
    for axis in sorted(a % (x.dim() + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


def _reduce_l2(node: ir.Node, inputs: Inputs) -> Tensor:
    axes = inputs[1].tolist() if len(inputs) > 1 else list(range(inputs[0].dim()))
    return inputs[0].square().sum(axes, keepdim=bool(_int(node, "keepdims", 1))).sqrt()


def _reduce_mean(node: ir.Node, inputs: Inputs) -> Tensor:
    axes = inputs[1].tolist() if len(inputs) > 1 else list(range(inputs[0].dim()))
    return inputs[0].mean(axes, keepdim=bool(_int(node, "keepdims", 1)))


def _int(node: ir.Node, name: str, default: int) -> int:
    value = node.attributes.get_int(name, default)
    return default if value is None else value


def _float(node: ir.Node, name: str, default: float) -> float:
    value = node.attributes.get_float(name, default)
    return default if value is None else value


def _gelu(node: ir.Node, inputs: Inputs) -> Tensor:
    return functional.gelu(inputs[0], approximate=node.attributes.get_string("approximate", "none") or "none")


OPS: Mapping[str, Callable[[ir.Node, Inputs], Any]] = {
    **SPATIAL_OPS,
    "Add": lambda node, inputs: inputs[0] + inputs[1],
    "Clip": _clip,
    "Concat": lambda node, inputs: torch.cat(inputs, _int(node, "axis", 0)),
    "Div": lambda node, inputs: inputs[0] / inputs[1],
    "Exp": lambda node, inputs: inputs[0].exp(),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda node, inputs: functional.hardswish(inputs[0]),
    "Identity": lambda node, inputs: inputs[0],
    "LayerNormalization": _layer_norm,
    "MatMul": lambda node, inputs: inputs[0] @ inputs[1],
    "Mul": lambda node, inputs: inputs[0] * inputs[1],
    "RMSNormalization": _rms_norm,
    "ReduceL2": _reduce_l2,
    "ReduceMean": _reduce_mean,
    "Relu": lambda node, inputs: inputs[0].relu(),
    "Reshape": _reshape,
    "Sigmoid": lambda node, inputs: inputs[0].sigmoid(),
    "Slice": _slice,
    "Softmax": lambda node, inputs: inputs[0].softmax(_int(node, "axis", -1)),
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": lambda node, inputs: inputs[0] - inputs[1],
    "Tanh": lambda node, inputs: inputs[0].tanh(),
    "Transpose": lambda node, inputs: inputs[0].permute(list(node.attributes.get_ints("perm") or ())),
    "Unsqueeze": _unsqueeze,
}  # fmt: skip
