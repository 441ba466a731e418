"""Features of a torch model from one run on the meta device: no weight is allocated, nothing is computed or exported.

Ops get the names under which ONNX has them once `ingest` has simplified an export, so that both ways give the same features
(``tests/profiles/prediction/test_features.py`` holds them against each other).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pocketport.profiles.prediction.extraction import FIRST, KIND_OF, LAST, mean_kind, whole
from pocketport.profiles.prediction.features import GraphFeatures, Kind, OpFeatures

# These vanish: views, and what rides on its producer.
FREE = frozenset({
    "view", "_unsafe_view", "reshape", "_reshape_alias", "view_as", "flatten", "unsqueeze", "squeeze", "expand",
    "as_strided", "unbind", "unsafe_chunk", "t", "clone", "contiguous", "copy", "alias", "detach", "_to_copy",
    "lift_fresh", "lift_fresh_copy", "dropout", "relu", "hardtanh", "clamp", "clamp_min", "leaky_relu", "prelu",
    "_prelu_kernel", "empty_like", "ones_like", "zeros_like", "scalar_tensor", "sym_size", "is_same_size",
})  # fmt: skip
VIEWS = frozenset({"view", "_unsafe_view", "flatten", "reshape"})
RESHAPED = VIEWS | {"_reshape_alias", "view_as", "unsqueeze", "squeeze"}
NAMES: Mapping[str, str] = {
    "_softmax": "Softmax", "_safe_softmax": "Softmax", "addcmul": "Add", "native_layer_norm": "LayerNormalization", "native_group_norm": "GroupNormalization", "gelu": "Gelu",
    "silu": "Swish", "native_batch_norm": "BatchNormalization", "hardswish": "HardSwish", "hardsigmoid": "HardSigmoid", "sigmoid": "Sigmoid", "tanh": "Tanh", "elu": "Elu",
    "mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "argmax": "ArgMax", "linalg_vector_norm": "ReduceL2", "max_pool2d_with_indices": "MaxPool",
    "_adaptive_avg_pool2d": "AveragePool", "_adaptive_avg_pool3d": "AveragePool", "avg_pool2d": "AveragePool", "cat": "Concat",
    "split": "Split", "split_with_sizes": "Split", "slice": "Slice", "select": "Slice", "constant_pad_nd": "Pad", "pixel_shuffle": "DepthToSpace",
    "permute": "Transpose", "transpose": "Transpose", "embedding": "Gather", "index_select": "Gather", "index": "GatherND", "upsample_nearest2d": "Resize",
    "upsample_bilinear2d": "Resize", "upsample_bicubic2d": "Resize", "add": "Add", "sub": "Sub", "rsub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow",
    "exp": "Exp", "sqrt": "Sqrt", "rsqrt": "Reciprocal", "neg": "Neg", "cos": "Cos", "sin": "Sin", "maximum": "Max", "minimum": "Min", "where": "Where",
    "flip": "Slice", "max_pool3d_with_indices": "MaxPool", "softplus": "Softplus", "repeat": "Tile", "stack": "Concat",
    "grid_sampler_2d": "GridSample", "eq": "Equal", "ne": "Not", "gt": "Greater", "ge": "GreaterOrEqual",
}  # fmt: skip


class _Recorder(TorchDispatchMode):
    """Records what depends on the model's inputs."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.live: dict[int, Tensor] = {id(x): x for x in inputs}  # holding them keeps ids unique
        self.products: set[int] = set()  # outputs of convolutions and linear layers, which take a normalization in
        self.viewed: set[int] = set()  # outputs of what ONNX has as a Reshape
        self.transposed: dict[int, int] = {}  # tensors that are a Transpose's output, by the op's position
        self.ops: list[OpFeatures] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run, and record."""
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in _flat(args) if isinstance(x, Tensor)]
        inputs = [x for x in tensors if id(x) in self.live]
        if inputs:
            results = [x for x in _flat((out,)) if isinstance(x, Tensor)]
            self.live.update((id(x), x) for x in results)
            name = func._schema.name.removeprefix("aten::").rstrip("_")
            self._record("native_batch_norm" if "batch_norm" in name else name, args, tensors, inputs, results)
        return out

    def _record(self, name: str, args: Any, tensors: list[Tensor], inputs: list[Tensor], results: list[Tensor]) -> None:
        shapes, output = tuple(tuple(x.shape) for x in inputs), tuple(results[0].shape) if results else ()
        constants = [x for x in tensors if id(x) not in self.live]
        weights = sum(x.numel() for x in constants if x.is_floating_point())
        if name in ("convolution", "addmm", "mm") or (name in VIEWS and id(inputs[0]) in self.products):
            self.products.add(id(results[0]))
        if name in RESHAPED:
            self.viewed.update(id(x) for x in results)
        if name == "permute" and (
            tuple(args[1]) == FIRST or (tuple(args[1]) == LAST and id(inputs[0]) not in self.viewed)
        ):
            return  # a layout that chips don't have
        if name in FREE or not results or (name == "native_batch_norm" and id(inputs[0]) in self.products):
            return
        if name == "convolution":
            weight, groups = args[1], args[8]
            window, size = math.prod(weight.shape[2:]), math.prod(shapes[0] if args[6] else output)
            macs = size * math.prod(weight.shape[1:])
            op = "ConvTranspose" if args[6] else "Conv"
            wide = Kind.POINTWISE if window == 1 else Kind.CONV
            kind = wide if groups == 1 else Kind.DEPTHWISE if groups == shapes[0][1] else Kind.GROUPED
            self.ops.append(OpFeatures(op, kind, macs, weights, shapes, output, window, groups))
        elif name in ("addmm", "mm", "bmm", "baddbmm"):
            left = args[1 if name in ("addmm", "baddbmm") else 0]
            macs = math.prod(output) * left.shape[-1]
            kind = Kind.MATMUL if len(inputs) > 1 else Kind.LINEAR
            self.ops.append(OpFeatures("MatMul", kind, macs, weights, shapes, output))
        elif name == "add" and constants and id(inputs[0]) in self.products:
            return  # a bias
        elif name in ("mul", "div") and (len(tensors) == 1 or any(x.numel() == 1 for x in constants)):
            return  # a scaling goes into its neighbour
        else:
            self._other(name, args, weights, shapes, output, inputs, results)

    def _other(
        self, name: str, args: Any, weights: int, shapes: tuple[tuple[int, ...], ...], output: tuple[int, ...],
        inputs: list[Tensor], results: list[Tensor],
    ) -> None:  # fmt: skip
        op = NAMES.get(name, name)
        if op == "Slice" and shapes[0] == output:
            return
        if op == "Gather":
            weights = math.prod(output)
        if op == "Transpose":
            previous = self.transposed.get(id(inputs[0]))
            if previous is not None:
                self.ops[previous] = OpFeatures(op, Kind.MOVE, 0, 0, self.ops[previous].inputs, output)
                self.transposed[id(results[0])] = previous
                return
            self.transposed[id(results[0])] = len(self.ops)
        window, kind = 1, KIND_OF.get(op, Kind.OTHER)
        if op in ("MaxPool", "AveragePool") and not name.startswith("_"):
            window = math.prod(args[1])
        if name == "avg_pool2d":
            kind = mean_kind(args[1], args[2] or args[1], output[2:])
        self.ops.append(OpFeatures(op, kind, 0, weights, shapes, output, window))


def _flat(values: Any) -> list[Any]:
    return [leaf for v in values for leaf in (_flat(v) if isinstance(v, list | tuple) else [v])]


def traced(model: nn.Module, inputs: Sequence[Tensor]) -> GraphFeatures:
    """Features of one run of `model`, which lies on the meta device."""
    given = [x.to("meta") for x in inputs]
    with torch.no_grad(), _Recorder(given) as recorder:
        out = model(*given)
    outputs = [x for x in _flat((out,)) if isinstance(x, Tensor)]
    return whole(recorder.ops, [tuple(x.shape) for x in given], [tuple(x.shape) for x in outputs])
