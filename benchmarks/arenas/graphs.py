"""Small float graphs of many shapes of data flow, at any size of image or number of rows: what arenas are checked with."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper


class Net:
    """An ONNX graph under construction; every method adds nodes and gives the new tensor's name."""

    def __init__(self, name: str, *shape: int) -> None:
        self.name, self.shapes = name, {"x": tuple(shape)}
        self._nodes: list[object] = []
        self._weights: list[object] = []
        self._random = np.random.default_rng(0)

    def op(self, kind: str, inputs: list[str], shape: tuple[int, ...], **attributes: object) -> str:
        """One node with one output."""
        name = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.shapes[name] = shape
        return name

    def weight(self, *shape: int) -> str:
        """Random weights."""
        return self.constant(self._random.standard_normal(shape).astype(np.float32) * 0.1)

    def constant(self, array: np.ndarray) -> str:
        """An initializer."""
        name = f"w_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, x: str, channels: int, k: int = 3, s: int = 1, *, groups: int = 1, act: str = "Relu") -> str:
        """Convolution, padded to keep the size at stride 1, and an activation."""
        n, c, h, w = self.shapes[x]
        shape = (n, channels, -(-h // s), -(-w // s))
        pads = [(k - 1) // 2] * 2 + [(k - 1) // 2] * 2
        w_ = self.weight(channels, c // groups, k, k)
        y = self.op(
            "Conv", [x, w_, self.weight(channels)], shape, kernel_shape=[k, k], strides=[s, s], pads=pads, group=groups
        )
        return self.op(act, [y], shape) if act else y

    def add(self, a: str, b: str) -> str:
        """Elementwise sum."""
        return self.op("Add", [a, b], self.shapes[a])

    def cat(self, *names: str) -> str:
        """Along channels."""
        n, _, h, w = self.shapes[names[0]]
        return self.op("Concat", list(names), (n, sum(self.shapes[x][1] for x in names), h, w), axis=1)

    def pool(self, x: str, k: int = 2) -> str:
        """Maximum over windows that do not overlap."""
        n, c, h, w = self.shapes[x]
        return self.op("MaxPool", [x], (n, c, h // k, w // k), kernel_shape=[k, k], strides=[k, k])

    def up(self, x: str) -> str:
        """Nearest neighbours, twice as large."""
        n, c, h, w = self.shapes[x]
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        return self.op(
            "Resize",
            [x, "", scales],
            (n, c, 2 * h, 2 * w),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def linear(self, x: str, width: int) -> str:
        """Rows times a matrix."""
        rows, columns = self.shapes[x]
        return self.op("Gemm", [x, self.weight(columns, width), self.weight(width)], (rows, width))

    def norm(self, x: str) -> str:
        """Over the last axis."""
        width = self.shapes[x][-1]
        return self.op("LayerNormalization", [x, self.weight(width), self.weight(width)], self.shapes[x], axis=-1)

    def reshape(self, x: str, *shape: int) -> str:
        """Another view."""
        return self.op("Reshape", [x, self.constant(np.array(shape, np.int64))], shape)

    def transpose(self, x: str, *axes: int) -> str:
        """Axes in another order."""
        return self.op("Transpose", [x], tuple(self.shapes[x][a] for a in axes), perm=list(axes))

    def attention(self, x: str, heads: int) -> str:
        """Multi-head attention over rows, with its projections."""
        rows, width = self.shapes[x]
        d = width // heads
        q, k, v = (self.transpose(self.reshape(self.linear(x, width), rows, heads, d), 1, 0, 2) for _ in range(3))
        scores = self.op("MatMul", [q, self.transpose(k, 0, 2, 1)], (heads, rows, rows))
        mixed = self.op("MatMul", [self.op("Softmax", [scores], (heads, rows, rows), axis=-1), v], (heads, rows, d))
        return self.linear(self.reshape(self.transpose(mixed, 1, 0, 2), rows, width), width)

    def block(self, x: str, heads: int, act: str = "Sigmoid") -> str:
        """A transformer's layer."""
        rows, width = self.shapes[x]
        x = self.add(x, self.attention(self.norm(x), heads))
        return self.add(x, self.linear(self.op(act, [self.linear(self.norm(x), 4 * width)], (rows, 4 * width)), width))

    def model(self, *outputs: str) -> ir.Model:
        """The finished graph."""
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, self.shapes[n]) for n in ("x", *outputs)]
        graph = helper.make_graph(self._nodes, self.name, ends[:1], ends[1:], self._weights)
        return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def chain(channels: int, depth: int, more: int = 0) -> ir.Model:
    n = Net(f"chain_{channels}x{depth}", 1, 8, 32 + more, 32 + more)
    x = "x"
    for _ in range(depth):
        x = n.conv(x, channels)
    return n.model(n.conv(x, 4, act=""))


def residual(channels: int, blocks: int, more: int = 0) -> ir.Model:
    n = Net(f"residual_{channels}x{blocks}", 1, 3, 32 + more, 32 + more)
    x = n.conv("x", channels)
    for _ in range(blocks):
        x = n.op("Relu", [n.add(x, n.conv(n.conv(x, channels), channels, act=""))], n.shapes[x])
    return n.model(n.conv(x, 4, act=""))


def inverted(channels: int, blocks: int, more: int = 0) -> ir.Model:
    n = Net(f"inverted_{channels}x{blocks}", 1, 3, 32 + more, 32 + more)
    x = n.conv("x", channels)
    for _ in range(blocks):
        wide = n.conv(x, 6 * channels, 1)
        x = n.add(x, n.conv(n.conv(wide, 6 * channels, groups=6 * channels), channels, 1, act=""))
    return n.model(n.conv(x, 4, act=""))


def dense(growth: int, layers: int, more: int = 0) -> ir.Model:
    n = Net(f"dense_{growth}x{layers}", 1, 8, 32 + more, 32 + more)
    x = "x"
    for _ in range(layers):
        x = n.cat(x, n.conv(x, growth))
    return n.model(n.conv(x, 4, 1, act=""))


def inception(width: int, more: int = 0) -> ir.Model:
    n = Net(f"inception_{width}", 1, 16, 32 + more, 32 + more)
    x = "x"
    for _ in range(3):
        x = n.cat(n.conv(x, width, 1), n.conv(n.conv(x, width, 1), width), n.conv(n.conv(x, width, 1), width, 5))
    return n.model(n.conv(x, 4, 1, act=""))


def unet(channels: int, levels: int, more: int = 0) -> ir.Model:
    n = Net(f"unet_{channels}x{levels}", 1, 3, 64 + more, 64 + more)
    x, kept = "x", []
    for level in range(levels):
        x = n.conv(x, channels << level)
        kept.append(x)
        x = n.pool(x)
    x = n.conv(x, channels << levels)
    for level in reversed(range(levels)):
        x = n.conv(n.cat(n.up(x), kept[level]), channels << level)
    return n.model(n.conv(x, 2, 1, act=""))


def pyramid(channels: int, more: int = 0) -> ir.Model:
    n = Net(f"pyramid_{channels}", 1, 3, 64 + more, 64 + more)
    levels = [n.conv("x", channels, s=2)]
    for _ in range(3):
        levels.append(n.conv(levels[-1], 2 * n.shapes[levels[-1]][1], s=2))
    top = n.conv(levels[-1], channels, 1, act="")
    outputs = [n.conv(top, 4, act="")]
    for level in reversed(levels[:-1]):
        top = n.add(n.up(top), n.conv(level, channels, 1, act=""))
        outputs.append(n.conv(top, 4, act=""))
    return n.model(*outputs)


def transformer(width: int, layers: int, rows: int, heads: int, more: int = 0) -> ir.Model:
    rows += more
    n = Net(f"transformer_{width}x{layers}x{rows}", rows, width)
    x = "x"
    for _ in range(layers):
        x = n.block(x, heads)
    return n.model(n.linear(n.norm(x), 8))


def perceptron(width: int, layers: int, more: int = 0) -> ir.Model:
    n = Net(f"perceptron_{width}x{layers}", 16 + more, 64)
    x = "x"
    for _ in range(layers):
        x = n.op("Relu", [n.linear(x, width)], (16 + more, width))
    return n.model(n.linear(x, 8))


"""Name → the graph with so many pixels a side, or rows, more than it is called."""
GRAPHS: Mapping[str, Callable[[int], ir.Model]] = {
    "chain 16×4": lambda more: chain(16, 4, more=more), "chain 32×8": lambda more: chain(32, 8, more=more),
    "residual 16×2": lambda more: residual(16, 2, more=more), "residual 24×4": lambda more: residual(24, 4, more=more), "residual 48×3": lambda more: residual(48, 3, more=more),
    "inverted 8×2": lambda more: inverted(8, 2, more=more), "inverted 16×4": lambda more: inverted(16, 4, more=more),
    "dense 8×4": lambda more: dense(8, 4, more=more), "dense 12×6": lambda more: dense(12, 6, more=more), "dense 16×8": lambda more: dense(16, 8, more=more),
    "inception 8": lambda more: inception(8, more=more), "inception 16": lambda more: inception(16, more=more), "inception 24": lambda more: inception(24, more=more),
    "unet 8×2": lambda more: unet(8, 2, more=more), "unet 8×3": lambda more: unet(8, 3, more=more), "unet 16×3": lambda more: unet(16, 3, more=more),
    "pyramid 16": lambda more: pyramid(16, more=more), "pyramid 32": lambda more: pyramid(32, more=more),
    "transformer 64×2, 64 rows": lambda more: transformer(64, 2, 64, 4, more=more), "transformer 128×2, 32 rows": lambda more: transformer(128, 2, 32, 4, more=more),
    "transformer 64×3, 256 rows": lambda more: transformer(64, 3, 256, 4, more=more), "transformer 96×1, 128 rows": lambda more: transformer(96, 1, 128, 6, more=more),
    "perceptron 128×3": lambda more: perceptron(128, 3, more=more), "perceptron 512×5": lambda more: perceptron(512, 5, more=more),
}  # fmt: skip
