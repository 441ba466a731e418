"""MIL operations in torch: float32 tensors whose values the caller rounds to float16 (iOS 18 opset, what we emit)."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

Arguments: TypeAlias = Mapping[str, Any]  # tensors, lists of tensors, or constants: numpy arrays and Python scalars
Operation: TypeAlias = Callable[[Arguments], torch.Tensor]

OPERATIONS: dict[str, Operation] = {}


def operation(*names: str) -> Callable[[Operation], Operation]:
    """Register the decorated function under these MIL operation types."""

    def register(function: Operation) -> Operation:
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return register


def _integers(value: Any) -> list[int]:
    return [int(v) for v in np.asarray(value).reshape(-1)]


_UNARY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "abs": torch.abs, "cos": torch.cos, "erf": torch.erf, "exp": torch.exp, "identity": lambda x: x, "relu": torch.relu,
    "sigmoid": torch.sigmoid, "silu": F.silu, "sin": torch.sin, "sqrt": torch.sqrt, "tanh": torch.tanh,
}  # fmt: skip
_BINARY: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "real_div": torch.div, "pow": torch.pow, "maximum": torch.maximum,
    "minimum": torch.minimum, "equal": torch.eq, "greater": torch.gt, "less": torch.lt,
}  # fmt: skip

for _name, _unary in _UNARY.items():
    OPERATIONS[_name] = lambda a, f=_unary: f(a["x"])  # type: ignore[misc]
for _name, _binary in _BINARY.items():
    OPERATIONS[_name] = lambda a, f=_binary: f(torch.as_tensor(a["x"]), torch.as_tensor(a["y"]))  # type: ignore[misc]


@operation("log")
def _log(a: Arguments) -> torch.Tensor:
    return torch.log(a["x"] + float(a.get("epsilon", 0.0)))


@operation("gelu")
def _gelu(a: Arguments) -> torch.Tensor:
    return F.gelu(a["x"], approximate="tanh" if a["mode"] == "TANH_APPROXIMATION" else "none")


@operation("clip")
def _clip(a: Arguments) -> torch.Tensor:
    return torch.clamp(a["x"], float(a["alpha"]), float(a["beta"]))


@operation("select")
def _select(a: Arguments) -> torch.Tensor:
    return torch.where(torch.as_tensor(a["cond"]), torch.as_tensor(a["a"]), torch.as_tensor(a["b"]))


@operation("cast")
def _cast(a: Arguments) -> torch.Tensor:
    x: torch.Tensor = torch.as_tensor(a["x"])
    return x.to({"fp16": torch.float32, "fp32": torch.float32, "int32": torch.int64, "bool": torch.bool}[a["dtype"]])


# --- integers ----------------------------------------------------------------------------------------------------


@operation("constexpr_blockwise_shift_scale")
def _expand_blocks(a: Arguments) -> torch.Tensor:
    data, scale = np.asarray(a["data"]).astype(np.float32), np.asarray(a["scale"]).astype(np.float32)
    offset = np.asarray(a["offset"]).astype(np.float32) if "offset" in a else np.zeros(scale.shape, np.float32)
    for axis, size in enumerate(data.shape):
        repeats = size // scale.shape[axis]
        scale, offset = np.repeat(scale, repeats, axis), np.repeat(offset, repeats, axis)
    return torch.from_numpy((data - offset) * scale)


@operation("constexpr_lut_to_dense")
def _look_up(a: Arguments) -> torch.Tensor:
    indices, tables = np.asarray(a["indices"]).astype(np.int64), np.asarray(a["lut"]).astype(np.float32)
    block = np.zeros(indices.shape, np.int64)
    for axis, size in enumerate(indices.shape):
        place = np.arange(size) // (size // tables.shape[axis])
        block = block * tables.shape[axis] + place.reshape([-1 if d == axis else 1 for d in range(indices.ndim)])
    return torch.from_numpy(tables.reshape(-1, tables.shape[-2])[block, indices])


@operation("quantize")
def _quantize(a: Arguments) -> torch.Tensor:
    low, high = (-128, 127) if a["output_dtype"] == "int8" else (0, 255)
    scaled = torch.round(a["input"] / float(a["scale"])) + float(a.get("zero_point", 0))
    return torch.clamp(scaled, low, high).to(torch.int64)


@operation("dequantize")
def _dequantize(a: Arguments) -> torch.Tensor:
    levels: torch.Tensor = a["input"].to(torch.float32) - float(a.get("zero_point", 0))
    return levels * float(a["scale"])


# --- linear algebra ----------------------------------------------------------------------------------------------


@operation("matmul")
def _matmul(a: Arguments) -> torch.Tensor:
    x, y = a["x"], a["y"]
    x = x.transpose(-1, -2) if a.get("transpose_x") else x
    return torch.matmul(x, y.transpose(-1, -2) if a.get("transpose_y") else y)


@operation("linear")
def _linear(a: Arguments) -> torch.Tensor:
    return F.linear(a["x"], a["weight"], a.get("bias"))


def _padded(a: Arguments, value: float) -> torch.Tensor:
    top, bottom, left, right = _integers(a["pad"])
    return F.pad(a["x"], (left, right, top, bottom), value=value)


@operation("conv")
def _conv(a: Arguments) -> torch.Tensor:
    strides, dilations = _integers(a["strides"]), _integers(a["dilations"])
    return F.conv2d(_padded(a, 0.0), a["weight"], a.get("bias"), strides, 0, dilations, int(a["groups"]))


@operation("conv_transpose")
def _conv_transpose(a: Arguments) -> torch.Tensor:
    strides, dilations = _integers(a["strides"]), _integers(a["dilations"])
    full = F.conv_transpose2d(a["x"], a["weight"], a.get("bias"), strides, 0, 0, int(a["groups"]), dilations)
    top, _, left, _ = _integers(a["pad"])
    height, width = _integers(a["output_shape"])[-2:]
    return full[..., top : top + height, left : left + width]


@operation("max_pool")
def _max_pool(a: Arguments) -> torch.Tensor:
    return F.max_pool2d(_padded(a, -torch.inf), _integers(a["kernel_sizes"]), _integers(a["strides"]))


@operation("avg_pool")
def _average_pool(a: Arguments) -> torch.Tensor:
    kernel, strides = _integers(a["kernel_sizes"]), _integers(a["strides"])
    means = F.avg_pool2d(_padded(a, 0.0), kernel, strides)
    if not a["exclude_padding_from_average"]:
        return means
    ones = _padded({"x": torch.ones_like(a["x"]), "pad": a["pad"]}, 0.0)
    return means / F.avg_pool2d(ones, kernel, strides)


# --- reductions --------------------------------------------------------------------------------------------------

_REDUCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "reduce_mean": torch.mean, "reduce_sum": torch.sum, "reduce_max": torch.amax, "reduce_min": torch.amin,
}  # fmt: skip
for _name, _reduction in _REDUCTIONS.items():
    OPERATIONS[_name] = lambda a, f=_reduction: f(a["x"], _integers(a["axes"]), bool(a["keep_dims"]))  # type: ignore[misc]


@operation("reduce_argmax")
def _argmax(a: Arguments) -> torch.Tensor:
    return torch.argmax(a["x"], int(a["axis"]), bool(a["keep_dims"]))


@operation("softmax")
def _softmax(a: Arguments) -> torch.Tensor:
    return torch.softmax(a["x"], int(a["axis"]))


@operation("layer_norm")
def _layer_norm(a: Arguments) -> torch.Tensor:
    shape = [a["x"].shape[axis] for axis in _integers(a["axes"])]
    return F.layer_norm(a["x"], shape, a.get("gamma"), a.get("beta"), float(a["epsilon"]))


# --- data movement -----------------------------------------------------------------------------------------------


@operation("reshape")
def _reshape(a: Arguments) -> torch.Tensor:
    return torch.reshape(a["x"], _integers(a["shape"]))


@operation("transpose")
def _transpose(a: Arguments) -> torch.Tensor:
    return torch.permute(a["x"], _integers(a["perm"]))


@operation("concat")
def _concat(a: Arguments) -> torch.Tensor:
    return torch.cat([torch.as_tensor(v) for v in a["values"]], int(a["axis"]))


@operation("slice_by_index")
def _slice(a: Arguments) -> torch.Tensor:
    strides = _integers(a["stride"]) if "stride" in a else [1] * len(_integers(a["begin"]))
    ranges = zip(_integers(a["begin"]), _integers(a["end"]), strides, strict=True)
    result: torch.Tensor = a["x"][tuple(slice(*r) for r in ranges)]
    return result


@operation("gather")
def _gather(a: Arguments) -> torch.Tensor:
    x, indices, axis = a["x"], torch.as_tensor(np.asarray(a["indices"])).to(torch.int64), int(a["axis"])
    taken = torch.index_select(x, axis, indices.reshape(-1))
    return taken.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@operation("pad")
def _pad(a: Arguments) -> torch.Tensor:
    pairs = np.asarray(a["pad"]).reshape(-1, 2)[::-1].reshape(-1)  # torch counts from the last dimension
    return F.pad(a["x"], _integers(pairs), value=float(a["constant_val"]))


@operation("tile")
def _tile(a: Arguments) -> torch.Tensor:
    return torch.tile(a["x"], _integers(a["reps"]))


@operation("upsample_nearest_neighbor")
def _upsample(a: Arguments) -> torch.Tensor:
    rows = torch.repeat_interleave(a["x"], int(a["scale_factor_height"]), dim=2)
    return torch.repeat_interleave(rows, int(a["scale_factor_width"]), dim=3)
