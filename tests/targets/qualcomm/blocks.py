"""The shapes of a small multimodal model: one ViT block with its patches, one decoder block with a KV cache, a table."""

import numpy as np

from .pivots import Array, Sketch

PATCHES, WIDTH, HEADS, PATCH = 72, 128, 4, 14
HIDDEN, QUERY_HEADS, KV_HEADS, HEAD, CACHE, VOCABULARY = 256, 4, 2, 64, 40, 300


def normal(s: Sketch, *shape: int) -> Array:
    return s.rng.standard_normal(shape).astype(np.float32)


def linear(s: Sketch, x: str, rows: int, columns: int, *, bits: int = 8, bias: bool = True) -> str:
    extra = (s.constant(0.1 * normal(s, rows)),) if bias else ()
    return s.op("Gemm", x, s.weight(rows, columns, bits=bits), *extra, transB=1)


def vision(s: Sketch) -> tuple[str, ...]:
    """Patch convolution, position lookup, one pre-norm block with masked attention."""

    def norm(x: str) -> str:
        gamma, beta = s.constant(1 + 0.1 * normal(s, WIDTH)), s.constant(0.1 * normal(s, WIDTH))
        return s.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=1e-6)

    def heads(x: str, perm: list[int]) -> str:
        return s.op("Transpose", s.op("Reshape", x, s.shape(PATCHES, HEADS, WIDTH // HEADS)), perm=perm)

    pixels = s.rng.uniform(-1, 1, (1, 3, PATCH, PATCH * PATCHES)).astype(np.float32)
    kernel = s.weight(WIDTH, 3, PATCH, PATCH, scale=0.04)
    x = s.op(
        "Conv", s.input("pixel_values", pixels), kernel, s.constant(0.1 * normal(s, WIDTH)), strides=[PATCH, PATCH]
    )
    x = s.op("Transpose", s.op("Reshape", x, s.shape(WIDTH, PATCHES)), perm=[1, 0])
    ids = s.input("position_ids", s.rng.permutation(PATCHES).astype(np.int32))
    x = s.op("Add", x, s.op("Gather", s.weight(PATCHES, WIDTH), ids))
    bias = np.where(np.arange(PATCHES) < 60, 0, -100).astype(np.float32).reshape(1, 1, PATCHES)
    h = norm(x)
    query, key, value = (heads(linear(s, h, WIDTH, WIDTH), perm) for perm in ([1, 0, 2], [1, 2, 0], [1, 0, 2]))
    scores = s.op("Mul", s.op("MatMul", query, key), s.constant(np.float32((WIDTH // HEADS) ** -0.5)))
    weights = s.op("Softmax", s.op("Add", scores, s.input("attention_bias", bias)), axis=-1)
    mixed = s.op("Transpose", s.op("MatMul", weights, value), perm=[1, 0, 2])
    x = s.op("Add", x, linear(s, s.op("Reshape", mixed, s.shape(PATCHES, WIDTH)), WIDTH, WIDTH))
    h = s.op("Gelu", linear(s, norm(x), 2 * WIDTH, WIDTH), approximate="tanh")
    return (norm(s.op("Add", x, linear(s, h, WIDTH, 2 * WIDTH))),)


def decoder(s: Sketch, *, bits: int = 4, tokens: int = 1) -> tuple[str, ...]:
    """RMSNorm, rotary positions, grouped attention over a cache, SwiGLU, a head; logits, new key, new value."""

    def norm(x: str) -> str:
        return s.op("RMSNormalization", x, s.constant(1 + 0.1 * normal(s, HIDDEN)), axis=-1, epsilon=1e-6)

    def heads(x: str, count: int) -> str:
        return s.op("Transpose", s.op("Reshape", x, s.shape(tokens, count, HEAD)), perm=[1, 0, 2])

    def rotated(x: str) -> str:
        low = s.op("Slice", x, s.shape(0), s.shape(HEAD // 2), s.shape(2))
        high = s.op("Slice", x, s.shape(HEAD // 2), s.shape(HEAD), s.shape(2))
        return s.op("Add", s.op("Mul", x, cos), s.op("Mul", s.op("Concat", high, low, axis=2), sin))

    def cached(name: str, new: str) -> str:
        past = s.input(name, normal(s, 1, KV_HEADS, CACHE, HEAD))
        return s.op("Reshape", s.op("Concat", past, new, axis=2), s.shape(KV_HEADS, CACHE + tokens, HEAD))

    angles = np.linspace(0, 3, tokens * HEAD).reshape(tokens, HEAD).astype(np.float32)
    x = s.input("inputs_embeds", normal(s, tokens, HIDDEN))
    cos, sin = s.input("rope_cos", np.cos(angles)), s.input("rope_sin", np.sin(angles - 1))
    seen = CACHE + tokens
    bias = np.where(np.arange(tokens * seen) % 7, 0, -100).reshape(1, tokens, seen).astype(np.float32)
    group = QUERY_HEADS // KV_HEADS * tokens
    h = norm(x)
    query = rotated(heads(linear(s, h, QUERY_HEADS * HEAD, HIDDEN, bits=bits, bias=False), QUERY_HEADS))
    new = [heads(linear(s, h, KV_HEADS * HEAD, HIDDEN, bits=bits, bias=False), KV_HEADS) for _ in range(2)]
    key = s.op("Reshape", rotated(new[0]), s.shape(1, KV_HEADS, tokens, HEAD))
    value = s.op("Reshape", new[1], s.shape(1, KV_HEADS, tokens, HEAD))
    keys = s.op("Transpose", cached("past_key_0", key), perm=[0, 2, 1])
    scores = s.op("MatMul", s.op("Reshape", query, s.shape(KV_HEADS, group, HEAD)), keys)
    scores = s.op(
        "Reshape", s.op("Mul", scores, s.constant(np.float32(HEAD**-0.5))), s.shape(QUERY_HEADS, tokens, seen)
    )
    weights = s.op("Softmax", s.op("Add", scores, s.input("attention_bias", bias)), axis=-1)
    weights = s.op("Reshape", weights, s.shape(KV_HEADS, group, seen))
    mixed = s.op("MatMul", weights, cached("past_value_0", value))
    mixed = s.op("Transpose", s.op("Reshape", mixed, s.shape(QUERY_HEADS, tokens, HEAD)), perm=[1, 0, 2])
    mixed = s.op("Reshape", mixed, s.shape(tokens, QUERY_HEADS * HEAD))
    x = s.op("Add", x, linear(s, mixed, HIDDEN, QUERY_HEADS * HEAD, bits=bits, bias=False))
    h = norm(x)
    gate, up = (linear(s, h, 2 * HIDDEN, HIDDEN, bits=bits, bias=False) for _ in range(2))
    h = s.op("Mul", s.op("Mul", gate, s.op("Sigmoid", gate)), up)
    x = s.op("Add", x, linear(s, h, HIDDEN, 2 * HIDDEN, bits=bits, bias=False))
    return linear(s, norm(x), VOCABULARY, HIDDEN, bias=False), key, value


def table(s: Sketch) -> tuple[str, ...]:
    """An embedding of eight tokens."""
    ids = s.input("input_ids", s.rng.integers(0, VOCABULARY, 8).astype(np.int32))
    return (s.op("Gather", s.weight(VOCABULARY, HIDDEN), ids),)


def picture(s: Sketch) -> tuple[str, ...]:
    """A convolution and what follows it, given with channels last."""
    image = s.op("Conv", s.input("x", normal(s, 1, 3, 12, 10)), s.weight(8, 3, 3, 3, scale=0.2), pads=[1, 1, 1, 1])
    twice = s.op("Sigmoid", s.op("Add", image, image))
    return tuple(s.op("Transpose", x, perm=[0, 2, 3, 1]) for x in (s.op("Relu", image), twice))
