"""Linear attention by the gated delta rule (Yang et al. 2024, arXiv 2412.06464), as Qwen3.5 has it, in static ops.

A state S [key width, value width] per head takes the place of a cache: with every token t it decays by γ_t, and then
what it answers to the key k_t moves by a share β_t towards the value v_t,

    S_t = γ_t·S_{t−1} + β_t·k_t ⊗ (v_t − γ_t·S_{t−1}ᵀk_t),    o_t = S_tᵀq_t.

Prefill takes a chunk of tokens at once (Yang et al. 2024, arXiv 2406.06484, section 3): within a chunk the updates
solve a triangular system, whose inverse is built up from blocks of one to blocks of the chunk's length, so that all is
matrix products and element-wise ops. What is zero stays zero: padding rows at the left, whose embeddings are zero,
leave the state as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketport.compress.builder import GraphBuilder
from pocketport.compress.families.decoder.config import LINEAR, DecoderConfig, DeltaConfig
from pocketport.compress.families.layers import Layers, derived

CHUNK = 64  # tokens, as transformers has it
NORM_EPS = 1e-6  # beside the squared length of queries and keys; no file gives it


@dataclass(frozen=True)
class DeltaLayer:
    """One layer of linear attention.

    Attributes:
        layers: graph and checkpoint.
        config: its heads.
        path: of its module (``model.layers.0.linear_attn``).
        index: of its states among the graph's inputs and outputs.
        width: H.
        eps: of the norm behind it.
    """

    layers: Layers
    config: DeltaConfig
    path: str
    index: int
    width: int
    eps: float

    def prefill(self, h: ir.Value, rows: int) -> ir.Value:
        """[rows, H] → [rows, H]; the states behind the last row become outputs."""
        g, c, path = self.layers.g, self.config, self.path
        chunk = chunk_length(rows, c.kernel)
        total = -(-rows // chunk) * chunk
        padded = h
        if total > rows:
            zeros = g.weight(f"zeros_{total - rows}x{self.width}", np.zeros((total - rows, self.width), np.float32))
            padded = g.node("Concat", [zeros, h], f"{path}.padded", axis=0)
        mixed = self.layers.linear(padded, f"{path}.in_proj_qkv", c.mixed_width, self.width, bias=False)
        columns = g.reshape(
            g.transpose(mixed, (1, 0), f"{path}.columns"), (1, c.mixed_width, 1, total), f"{path}.mixed"
        )
        self._keep_columns(columns, total)
        q, k, v = self._convolved(columns, total, pads=[0, c.kernel - 1, 0, 0])
        share, decay = self._gates(padded, total)
        context, state = self._scanned(_Chunks(g, path, c.value_heads, total // chunk, chunk), q, k, v, share, decay)
        name = f"present_state_{self.index}"
        g.output(g.reshape(state, (1, c.value_heads, c.key_width, c.value_width), f"{path}.{name}", output=name))
        if total > rows:
            bounds = [g.integers([n]) for n in (total - rows, total, 1)]
            context = g.node("Slice", [context, *bounds], f"{path}.own_rows")
        return self._finished(context, h, rows)

    def decode(self, h: ir.Value) -> ir.Value:
        """[1, H] → [1, H]; the states go in and come out."""
        g, c, path = self.layers.g, self.config, self.path
        past_columns = g.input(f"past_conv_{self.index}", (1, c.mixed_width, c.kernel - 1))
        past_state = g.input(f"past_state_{self.index}", (1, c.value_heads, c.key_width, c.value_width))
        mixed = self.layers.linear(h, f"{path}.in_proj_qkv", c.mixed_width, self.width, bias=False)
        past = g.reshape(past_columns, (1, c.mixed_width, 1, c.kernel - 1), f"{path}.past_conv")
        column = g.reshape(mixed, (1, c.mixed_width, 1, 1), f"{path}.mixed")
        columns = g.node("Concat", [past, column], f"{path}.columns", axis=3)
        self._keep_columns(columns, c.kernel)
        q, k, v = self._convolved(columns, 1, pads=[0, 0, 0, 0])
        share, decay = self._gates(h, 1)
        kept = g.reshape(g.node("Exp", [decay], f"{path}.kept"), (c.value_heads, 1, 1), f"{path}.kept.heads")
        state = g.reshape(past_state, (c.value_heads, c.key_width, c.value_width), f"{path}.past_state")
        state = g.node("Mul", [state, kept], f"{path}.decayed_state")
        known = g.node("MatMul", [k, state], f"{path}.known")
        news = g.node("Mul", [g.node("Sub", [v, known], f"{path}.difference"), share], f"{path}.news")
        update = g.node("MatMul", [g.transpose(k, (0, 2, 1), f"{path}.k.transposed"), news], f"{path}.update")
        state = g.node("Add", [state, update], f"{path}.state")
        name = f"present_state_{self.index}"
        g.output(g.reshape(state, (1, c.value_heads, c.key_width, c.value_width), f"{path}.{name}", output=name))
        return self._finished(g.node("MatMul", [q, state], f"{path}.context"), h, 1)

    def _keep_columns(self, columns: ir.Value, total: int) -> None:
        """The last columns become an output: what the convolution of the next token sees besides its own."""
        g, c, name = self.layers.g, self.config, f"present_conv_{self.index}"
        bounds = [g.integers([n]) for n in (total - c.kernel + 1, total, 3)]
        kept = g.node("Slice", [columns, *bounds], f"{self.path}.last_columns")
        g.output(g.reshape(kept, (1, c.mixed_width, c.kernel - 1), f"{self.path}.{name}", output=name))

    def _convolved(self, columns: ir.Value, rows: int, pads: Sequence[int]) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Queries, keys (of unit length, queries divided by √width too) and values, [value heads, rows, width]."""
        g, c, path = self.layers.g, self.config, f"{self.path}.conv1d"
        stored = self.layers.tensor(f"{path}.weight", c.mixed_width, 1, c.kernel)
        flat = derived(lambda w: w[:, :, None], stored, shape=(c.mixed_width, 1, 1, c.kernel))
        weight = g.weight(f"{path}.weight_2d", flat)  # compilers take convolutions in two dimensions
        x = g.node("Conv", [columns, weight], path, kernel_shape=[1, c.kernel], group=c.mixed_width, pads=list(pads))
        x = g.node("Mul", [x, g.node("Sigmoid", [x], f"{path}.sigmoid")], f"{path}.silu")
        x = g.transpose(g.reshape(x, (c.mixed_width, rows), f"{path}.flat"), (1, 0), f"{path}.rows")
        sizes = g.integers([c.key_heads * c.key_width] * 2 + [c.value_heads * c.value_width])
        parts = g.split_node("Split", [x, sizes], f"{path}.parts", [f"{self.path}.{n}" for n in "qkv"], axis=1)
        q, k = (
            self._unit(self.layers.heads(x, f"{self.path}.{n}", (rows, c.key_heads, c.key_width), (1, 0, 2)), n, rows)
            for x, n in zip(parts, "qk", strict=False)
        )
        return q, k, self.layers.heads(parts[2], f"{self.path}.v", (rows, c.value_heads, c.value_width), (1, 0, 2))

    def _unit(self, x: ir.Value, kind: str, rows: int) -> ir.Value:
        """x/‖x‖ as an RMS norm whose weight makes up for the mean, and once for each value head that a head serves."""
        g, c, path = self.layers.g, self.config, f"{self.path}.{kind}"
        power = -1.0 if kind == "q" else -0.5
        weight = g.weight(f"unit_{kind}_{c.key_width}", np.full(c.key_width, c.key_width**power, np.float32))
        x = g.node("RMSNormalization", [x, weight], f"{path}.unit", axis=-1, epsilon=NORM_EPS / c.key_width)
        group = c.value_heads // c.key_heads
        if group == 1:
            return x
        flat = g.reshape(x, (c.key_heads, 1, rows * c.key_width), f"{path}.flat")
        served = g.node("Concat", [flat] * group, f"{path}.served", axis=1)
        return g.reshape(served, (c.value_heads, rows, c.key_width), f"{path}.of_values")

    def _gates(self, h: ir.Value, rows: int) -> tuple[ir.Value, ir.Value]:
        """β [value heads, rows, 1] and ln γ [value heads, rows]."""
        g, heads, path = self.layers.g, self.config.value_heads, self.path
        share = g.node(
            "Sigmoid", [self.layers.linear(h, f"{path}.in_proj_b", heads, self.width, bias=False)], f"{path}.share"
        )
        share = g.reshape(g.transpose(share, (1, 0), f"{path}.share.heads"), (heads, rows, 1), f"{path}.share.rows")
        weight = self.layers.weight(f"{path}.in_proj_a.weight", heads, self.width)
        step = g.node("Gemm", [h, weight, self.layers.weight(f"{path}.dt_bias", heads)], f"{path}.in_proj_a", transB=1)
        logarithm = self.layers.tensor(f"{path}.A_log", heads)
        rate = g.weight(f"{path}.A_log.rate", derived(lambda a: -np.exp(a), logarithm, shape=(heads,)))
        decay = g.node("Mul", [softplus(g, step, f"{path}.step"), rate], f"{path}.decay")
        return share, g.transpose(decay, (1, 0), f"{path}.decay.heads")

    def _scanned(
        self, chunks: "_Chunks", q: ir.Value, k: ir.Value, v: ir.Value, share: ir.Value, decay: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Context [value heads, rows, value width] and the last state [value heads, key width, value width]."""
        g, c, path = self.layers.g, self.config, self.path
        chunked = (chunks.heads * chunks.count, chunks.length)
        total = chunks.count * chunks.length
        # ln of the decay since the chunk began; between any two of its tokens it is a difference of these
        passed = g.reshape(decay, chunked, f"{path}.decay.chunks")
        sums = g.weight(f"upper_{chunks.length}", chunks.lower.T.copy())
        passed = g.node("MatMul", [passed, sums], f"{path}.passed")
        between = chunks.between(passed)
        since_start = g.reshape(
            g.node("Exp", [passed], f"{path}.since_start"), (*chunked, 1), f"{path}.since_start.rows"
        )
        bounds = [g.integers([n]) for n in (chunks.length - 1, chunks.length, 1)]
        whole = g.node("Slice", [passed, *bounds], f"{path}.whole")
        to_end = g.node("Exp", [g.node("Sub", [whole, passed], f"{path}.remaining")], f"{path}.to_end")
        to_end = g.reshape(to_end, (*chunked, 1), f"{path}.to_end.rows")
        kept = g.reshape(g.node("Exp", [whole], f"{path}.kept"), (chunks.heads, chunks.count, 1), f"{path}.kept.heads")

        shared = [g.node("Mul", [x, share], f"{path}.{n}.shared") for x, n in ((k, "k"), (v, "v"))]
        named = (
            ("q", q, c.key_width),
            ("k", k, c.key_width),
            ("bk", shared[0], c.key_width),
            ("bv", shared[1], c.value_width),
        )
        q, k, bk, bv = (g.reshape(x, (*chunked, width), f"{path}.{n}.chunks") for n, x, width in named)
        keys = g.transpose(k, (0, 2, 1), f"{path}.k.transposed")
        system = g.node("Mul", [g.node("MatMul", [bk, keys], f"{path}.overlap"), between], f"{path}.system")
        inverse = chunks.inverse(system)
        seen = g.node("Mul", [g.node("MatMul", [q, keys], f"{path}.scores"), between], f"{path}.seen")
        news = chunks.split(g.node("MatMul", [inverse, bv], f"{path}.news"), chunks.length, c.value_width)
        old = g.node("MatMul", [inverse, g.node("Mul", [bk, since_start], f"{path}.bk.decayed")], f"{path}.old")
        olds = chunks.split(old, chunks.length, c.key_width)
        asked = chunks.split(g.node("Mul", [q, since_start], f"{path}.q.decayed"), chunks.length, c.key_width)
        left = g.transpose(g.node("Mul", [k, to_end], f"{path}.k.decayed"), (0, 2, 1), f"{path}.k.left")
        lefts = chunks.split(left, c.key_width, chunks.length)
        seens, kepts = chunks.split(seen, chunks.length, chunks.length), chunks.split(kept, 1, 1)

        state, contexts = None, []
        for i in range(chunks.count):
            at, new = f"{path}.chunk_{i}", news[i]
            if state is not None:
                new = g.node("Sub", [new, g.node("MatMul", [olds[i], state], f"{at}.known")], f"{at}.news")
            context = g.node("MatMul", [seens[i], new], f"{at}.context")
            update = g.node("MatMul", [lefts[i], new], f"{at}.update")
            if state is not None:
                context = g.node("Add", [context, g.node("MatMul", [asked[i], state], f"{at}.before")], f"{at}.whole")
                update = g.node("Add", [g.node("Mul", [state, kepts[i]], f"{at}.decayed"), update], f"{at}.state")
            state = update
            contexts.append(context)
        assert state is not None
        context = contexts[0] if len(contexts) == 1 else g.node("Concat", contexts, f"{path}.context", axis=1)
        return g.reshape(context, (chunks.heads, total, c.value_width), f"{path}.context.heads"), state

    def _finished(self, context: ir.Value, h: ir.Value, rows: int) -> ir.Value:
        """The norm of every head, times SiLU of a gate, through the output projection."""
        g, c, path = self.layers.g, self.config, self.path
        wide = c.value_heads * c.value_width
        x = g.transpose(context, (1, 0, 2), f"{path}.context.rows")
        x = g.node(
            "RMSNormalization",
            [x, self.layers.weight(f"{path}.norm.weight", c.value_width)],
            f"{path}.norm",
            axis=-1,
            epsilon=self.eps,
        )
        x = g.reshape(x, (rows, wide), f"{path}.norm.merged")
        z = self.layers.linear(h, f"{path}.in_proj_z", wide, self.width, bias=False)
        gate = g.node("Mul", [z, g.node("Sigmoid", [z], f"{path}.in_proj_z.sigmoid")], f"{path}.in_proj_z.silu")
        x = g.node("Mul", [x, gate], f"{path}.gated")
        return self.layers.linear(x, f"{path}.out_proj", self.width, wide, bias=False)


@dataclass(frozen=True)
class _Chunks:
    """A sequence of every head, cut into equal chunks: [heads · count, length, ...]."""

    g: GraphBuilder
    path: str
    heads: int
    count: int
    length: int

    @property
    def lower(self) -> NDArray[np.float32]:
        """1 on and below the diagonal [length, length]."""
        return np.tri(self.length, dtype=np.float32)

    def between(self, passed: ir.Value) -> ir.Value:
        """The decay from each token of a chunk (column) to each later one (row), 0 to earlier ones."""
        g, path, rows = self.g, self.path, self.heads * self.count
        later = g.reshape(passed, (rows, self.length, 1), f"{path}.later")
        earlier = g.reshape(passed, (rows, 1, self.length), f"{path}.earlier")
        lower = g.weight(f"lower_{self.length}", self.lower)
        # masked before the exponential too: towards earlier tokens it would overflow
        span = g.node("Mul", [g.node("Sub", [later, earlier], f"{path}.span"), lower], f"{path}.span.causal")
        return g.node("Mul", [g.node("Exp", [span], f"{path}.span.exp"), lower], f"{path}.between")

    def inverse(self, system: ir.Value) -> ir.Value:
        """(I + strictly lower part of `system`)⁻¹, by doubling blocks.

        With X the inverses of diagonal blocks of one size and C the part of the system below them in blocks of twice
        that size, the inverses of the latter are X − X·C·X.
        """
        g, path, size = self.g, self.path, 1
        inverse: ir.Value | None = None
        while size < self.length:
            below = g.weight(f"below_{size}_of_{self.length}", _below(size, self.length))
            part = g.node("Mul", [system, below], f"{path}.below_{size}")
            if inverse is None:
                unit = g.weight(f"unit_{self.length}", np.eye(self.length, dtype=np.float32))
                inverse = g.node("Sub", [unit, part], f"{path}.inverse_2")
            else:
                product = g.node(
                    "MatMul",
                    [g.node("MatMul", [inverse, part], f"{path}.left_{size}"), inverse],
                    f"{path}.product_{size}",
                )
                inverse = g.node("Sub", [inverse, product], f"{path}.inverse_{2 * size}")
            size *= 2
        assert inverse is not None
        return inverse

    def split(self, x: ir.Value, rows: int, columns: int) -> Sequence[ir.Value]:
        """Each chunk on its own, [heads, rows, columns]."""
        name = x.name or ""
        flat = self.g.reshape(x, (self.heads, self.count * rows, columns), f"{name}.all")
        if self.count == 1:
            return [flat]
        names = [f"{name}.{i}" for i in range(self.count)]
        return self.g.split_node("Split", [flat, self.g.integers([rows] * self.count)], f"{name}.split", names, axis=1)


def shared_chunks(config: DecoderConfig, prefix: str, prompt: int) -> list[list[str]]:
    """For a bundle's `shared`: what must have one encoding in every chunk of a prefill's linear attention.

    Prompts shorter than the graph leave its first chunks empty: their own ranges would say nothing about a longer one.
    So all chunks share, decays share their bound of 1, and what only decays shares with what it was.

    Args:
        config: the decoder.
        prefix: path of its module in the checkpoint.
        prompt: tokens of the prefill.
    """
    if config.delta is None:
        return []
    length = chunk_length(prompt, config.delta.kernel)
    chunks, sizes = range(-(-prompt // length)), [1 << i for i in range(length.bit_length() - 1)]

    def each(*names: str) -> list[str]:
        return [f"chunk_{i}.{name}" for i in chunks for name in names]

    alike = (
        ["span.exp", "since_start", "to_end", "kept"], ["q.unit", "q.decayed"],
        ["k.unit", "k.shared", "k.decayed", "bk.decayed", "old"], ["news", *each("known", "news")],
        ["system", *(f"{name}_{size}" for name in ("below", "left", "product") for size in sizes)],
        [f"inverse_{2 * size}" for size in sizes],
        ["context", *each("context", "before", "whole")], each("update", "decayed", "state"),
    )  # fmt: skip
    layers = (i for i, kind in enumerate(config.layer_types) if kind == LINEAR)
    return [[f"prefill/{prefix}.layers.{i}.linear_attn.{name}" for name in names] for i in layers for names in alike]


def chunk_length(rows: int, kernel: int) -> int:
    """How many tokens a chunk has: a power of two, at least two and no less than a convolution looks back."""
    return min(CHUNK, 1 << max(rows - 1, kernel - 2, 1).bit_length())


def softplus(g: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
    """ln(1 + eˣ) in ops that every compiler takes at full precision, to some units in the last place of float32.

    max(x, 0) + ln(1 + e), e = e^−|x|; the logarithm is 2·artanh t, t = e/(e + 2) ≤ ⅓, by its series to t¹¹.
    """

    def number(value: float) -> ir.Value:
        return g.weight(f"number_{value:.9g}", np.array(value, np.float32))

    positive = g.node("Relu", [x], f"{path}.relu")
    minus = g.node("Sub", [x, g.node("Mul", [positive, number(2)], f"{path}.twice")], f"{path}.minus_abs")
    e = g.node("Exp", [minus], f"{path}.exp")
    t = g.node("Div", [e, g.node("Add", [e, number(2)], f"{path}.plus_two")], f"{path}.t")
    square = g.node("Mul", [t, t], f"{path}.t2")
    series = number(2 / 11)
    for degree in (9, 7, 5, 3, 1):
        product = g.node("Mul", [square, series], f"{path}.times_{degree}")
        series = g.node("Add", [product, number(2 / degree)], f"{path}.plus_{degree}")
    return g.node("Add", [positive, g.node("Mul", [t, series], f"{path}.log1p")], f"{path}.softplus")


def _below(size: int, length: int) -> NDArray[np.float32]:
    """1 where a block of `size` rows meets the block of columns before it within blocks of twice that size."""
    blocks = np.arange(length) // size
    row, column = blocks[:, None], blocks[None]
    return np.asarray((row == column + 1) & (row % 2 == 1), np.float32)
