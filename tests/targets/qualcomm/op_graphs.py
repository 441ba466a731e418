"""One small graph for every op that the legality file lists: what was compiled and executed to list it."""

from collections.abc import Callable, Mapping

import numpy as np

from .pivots import Sketch

Build = Callable[[Sketch], str]


def inside(s: Sketch, name: str, value: np.ndarray) -> str:
    """A tensor computed inside the graph: kernels see another memory layout than that of graph inputs."""
    return s.op("Mul", s.input(name, value.astype(np.float32)), number(s, 0.9))


def image(s: Sketch, channels: int = 8, size: int = 12) -> str:
    return inside(s, "x", s.rng.standard_normal((1, channels, size, size)))


def rows(s: Sketch, name: str = "x", *shape: int) -> str:
    return inside(s, name, s.rng.standard_normal(shape or (13, 40)))


def positive(s: Sketch) -> str:
    return inside(s, "x", s.rng.uniform(0.5, 4, (13, 40)))


def apart(s: Sketch) -> str:
    """Values that are far from zero."""
    return inside(s, "x", s.rng.choice([-1, 1], (13, 40)) * s.rng.uniform(0.5, 1, (13, 40)))


def vector(s: Sketch, size: int, low: float = 0.5, high: float = 1.5) -> str:
    return s.constant(s.rng.uniform(low, high, size).astype(np.float32))


def number(s: Sketch, value: float) -> str:
    return s.constant(np.float32(value))


def unary(op: str, **attributes: object) -> Build:
    return lambda s: s.op(op, rows(s), **attributes)


def of_positive(op: str) -> Build:
    return lambda s: s.op(op, positive(s))


def binary(op: str) -> Build:
    return lambda s: s.op(op, rows(s), rows(s, "y"))


def pooled(op: str, **attributes: object) -> Build:
    return lambda s: s.op(op, image(s), **attributes)


def reduced(op: str) -> Build:
    return lambda s: s.op(op, rows(s), s.shape(-1), keepdims=1)


def gather_nd(s: Sketch) -> str:
    return s.op("GatherND", rows(s), s.constant(np.array([[0, 3], [4, 5]], np.int64)))


def resize(s: Sketch) -> str:
    scales = s.constant(np.array([1, 1, 2, 2], np.float32))
    return s.op(
        "Resize",
        image(s),
        "",
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def looked_up(s: Sketch) -> str:
    """A row of what is greatest in another tensor: indices that the graph itself computes."""
    ids = s.input("ids", s.rng.permutation(13).astype(np.int32).reshape(1, 13))
    return s.op("Gather", rows(s), s.op("ArgMax", ids, axis=1, keepdims=0), axis=0)


OPS: Mapping[str, Build] = {
    "Abs": unary("Abs"),
    "Add": binary("Add"),
    "ArgMax": looked_up,
    "AveragePool": pooled("AveragePool", kernel_shape=[3, 2], strides=[3, 2]),
    "Cast": lambda s: s.op("Add", s.op("Cast", s.op("Greater", apart(s), number(s, 0.0)), to=1), rows(s, "y")),
    "Ceil": unary("Ceil"),
    "Clip": lambda s: s.op("Clip", rows(s), number(s, 0.0), number(s, 1.0)),
    "Concat": lambda s: s.op("Concat", rows(s), rows(s, "y"), axis=-1),
    "Conv": lambda s: s.op(
        "Conv", image(s), s.weight(16, 8, 3, 3, scale=0.1), vector(s, 16), pads=[1, 1, 1, 1], strides=[2, 1]
    ),
    "ConvTranspose": lambda s: s.op("ConvTranspose", image(s), s.weight(8, 6, 2, 2, scale=0.2), strides=[2, 2]),
    "Cos": unary("Cos"),
    "DepthToSpace": pooled("DepthToSpace", blocksize=2),
    "Div": lambda s: s.op("Div", rows(s, "y"), positive(s)),
    "Elu": unary("Elu"),
    "Exp": unary("Exp"),
    "Expand": lambda s: s.op("Expand", rows(s, "x", 1, 40), s.shape(13, 40)),
    "Flatten": pooled("Flatten", axis=1),
    "Floor": unary("Floor"),
    "Gather": lambda s: s.op("Gather", s.weight(40, 16), s.input("ids", s.rng.integers(0, 40, 7).astype(np.int32))),
    "Gelu": lambda s: s.op("Gelu", s.op("Gelu", rows(s), approximate="tanh")),
    "Gemm": lambda s: s.op("Gemm", rows(s), s.weight(24, 40), vector(s, 24), transB=1),
    "GlobalAveragePool": pooled("GlobalAveragePool"),
    "GlobalMaxPool": pooled("GlobalMaxPool"),
    "HardSigmoid": unary("HardSigmoid", alpha=0.2, beta=0.5),
    "HardSwish": unary("HardSwish"),
    "InstanceNormalization": lambda s: s.op("InstanceNormalization", image(s), vector(s, 8), vector(s, 8)),
    "LayerNormalization": lambda s: s.op(
        "LayerNormalization", rows(s), vector(s, 40), vector(s, 40, -0.1, 0.1), epsilon=1e-6
    ),
    "LeakyRelu": unary("LeakyRelu", alpha=0.1),
    "LogSoftmax": unary("LogSoftmax", axis=-1),
    "LpNormalization": unary("LpNormalization", axis=-1, p=2),
    "MatMul": lambda s: s.op("MatMul", rows(s), s.weight(40, 24)),
    "Max": binary("Max"),
    "MaxPool": pooled("MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
    "Min": binary("Min"),
    "Mul": binary("Mul"),
    "Neg": unary("Neg"),
    "Pad": lambda s: s.op("Pad", image(s), s.shape(0, 0, 1, 1, 0, 0, 1, 1)),
    "Pow": lambda s: s.op("Pow", positive(s), number(s, 2.0)),
    "RMSNormalization": lambda s: s.op("RMSNormalization", rows(s), vector(s, 40), epsilon=1e-6),
    "ReduceL2": reduced("ReduceL2"),
    "ReduceMax": reduced("ReduceMax"),
    "ReduceMean": reduced("ReduceMean"),
    "ReduceMin": reduced("ReduceMin"),
    "ReduceSum": reduced("ReduceSum"),
    "Relu": unary("Relu"),
    "Reshape": lambda s: s.op("Reshape", rows(s), s.shape(13, 5, 8)),
    "Resize": resize,
    "Round": unary("Round"),
    "Sigmoid": unary("Sigmoid"),
    "Sign": unary("Sign"),
    "Sin": unary("Sin"),
    "Slice": lambda s: s.op("Slice", rows(s), s.shape(2), s.shape(9), s.shape(0)),
    "Softmax": unary("Softmax", axis=-1),
    "SpaceToDepth": pooled("SpaceToDepth", blocksize=2),
    "Split": lambda s: s.op("Add", *_halves(s)),
    "Sqrt": of_positive("Sqrt"),
    "Squeeze": lambda s: s.op("Squeeze", rows(s, "x", 1, 13, 40), s.shape(0)),
    "Sub": binary("Sub"),
    "Tanh": unary("Tanh"),
    "Tile": lambda s: s.op("Tile", rows(s), s.shape(2, 1)),
    "Transpose": unary("Transpose", perm=[1, 0]),
    "Unsqueeze": lambda s: s.op("Unsqueeze", rows(s), s.shape(0)),
    "GatherND": gather_nd,
    "Identity": lambda s: s.op("Add", s.op("Identity", rows(s)), rows(s, "y")),
    "Reciprocal": of_positive("Reciprocal"),
    "Selu": unary("Selu"),
}


def _halves(s: Sketch) -> tuple[str, str]:
    name = s.op("Split", rows(s), outputs=2, axis=-1, num_outputs=2)
    return name, name.replace("_out0", "_out1")
