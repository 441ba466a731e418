"""The graphs of Whisper (Radford et al. 2022, arXiv 2212.04356): encoder, embedding, prefill, decode.

The encoder also gives what every decoder layer's cross-attention makes of it: those keys and values stay the same for
the whole answer. Keys lie there as attention multiplies them, [d,T], since they are read again for each token. Weights
keep the checkpoint's names and go into the graphs as they lie on disk, kernels of the two convolutions with one more dimension.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from pocketport.compress.builder import GraphBuilder, Weight
from pocketport.compress.families.layers import Layers, derived
from pocketport.compress.families.vision.encoder import activated
from pocketport.compress.families.whisper.config import WhisperConfig

NORM_EPS = 1e-5
ENCODER, DECODER, HEAD = "model.encoder", "model.decoder", "proj_out"
STATES = "encoder_hidden_states"
Pair = tuple[ir.Value, ir.Value]


@dataclass(frozen=True)
class WhisperParts(Layers):
    """`Layers` of a Whisper.

    Attributes:
        config: of the model.
        prompt: tokens that prefill takes (S), left-padded.
        cache: columns of the cache of the decoder's own keys and values (C).
    """

    config: WhisperConfig
    prompt: int
    cache: int

    def norm(self, x: ir.Value, path: str, output: str | None = None) -> ir.Value:
        """LayerNormalization over all channels."""
        return self.layer_norm(x, path, self.config.d_model, NORM_EPS, output)

    def projected(self, x: ir.Value, attn: str, part: str) -> ir.Value:
        """Queries (q), keys (k; they have no bias), values (v) or the output (out) of an attention, [rows, D]."""
        width = self.config.d_model
        return self.linear(x, f"{attn}.{part}_proj", width, width, bias=part != "k")

    def split(self, x: ir.Value, path: str, rows: int, heads: int, *, transposed: bool = False) -> ir.Value:
        """[rows, D] → [heads, rows, d], or [heads, d, rows]."""
        shape = (rows, heads, self.config.d_model // heads)
        return self.heads(x, path, shape, (1, 2, 0) if transposed else (1, 0, 2))

    def queries(self, h: ir.Value, attn: str, rows: int, heads: int) -> ir.Value:
        """Scaled queries [heads, rows, d]."""
        q = self.scaled(self.projected(h, attn, "q"), f"{attn}.q_proj", self.config.d_model // heads)
        return self.split(q, f"{attn}.q", rows, heads)

    def attended(
        self, x: ir.Value, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value | None, attn: str, rows: int
    ) -> ir.Value:
        """x + what attention adds to it, [rows, D]; keys come as [heads, d, columns]."""
        context = self.merged(self.attention(q, k, v, bias, attn), attn, rows, self.config.d_model)
        return self.g.node("Add", [x, self.projected(context, attn, "out")], f"{attn}.residual")

    def mlp(self, x: ir.Value, path: str, inner: int) -> ir.Value:
        """x + fc2(activation(fc1(norm(x))))."""
        width = self.config.d_model
        h = self.linear(self.norm(x, f"{path}.final_layer_norm"), f"{path}.fc1", inner, width)
        h = activated(self, h, self.config.activation_function, path)
        return self.g.node("Add", [x, self.linear(h, f"{path}.fc2", width, inner)], f"{path}.residual")


def build_graphs(state: Mapping[str, Weight], config: WhisperConfig, prompt: int, cache: int) -> dict[str, ir.Model]:
    """The finished graphs by component; InputError when a tensor is missing or has another shape."""
    graphs = {}
    for name, build in BUILDERS.items():
        parts = WhisperParts(GraphBuilder(name), state, config, prompt, cache)
        build(parts)
        graphs[name] = parts.g.finish()
    return graphs


def build_encoder(parts: WhisperParts) -> None:
    """`input_features` [1,mels,2T] to `encoder_hidden_states` [T,D] and all `cross_key_i`, `cross_value_i`."""
    g, config, rows, heads = (
        parts.g,
        parts.config,
        parts.config.max_source_positions,
        parts.config.encoder_attention_heads,
    )
    x = g.input("input_features", (1, config.num_mel_bins, config.frames))
    x = g.reshape(x, (1, config.num_mel_bins, 1, config.frames), f"{ENCODER}.features")
    x = _convolved(parts, x, "conv1", config.num_mel_bins, 1)
    x = _convolved(parts, x, "conv2", config.d_model, 2)
    x = g.transpose(g.reshape(x, (config.d_model, rows), f"{ENCODER}.conv2.flat"), (1, 0), f"{ENCODER}.conv2.rows")
    positions = parts.weight(f"{ENCODER}.embed_positions.weight", rows, config.d_model)
    x = g.node("Add", [x, positions], f"{ENCODER}.embed_positions")
    for i in range(config.encoder_layers):
        path = f"{ENCODER}.layers.{i}"
        attn = f"{path}.self_attn"
        h = parts.norm(x, f"{path}.self_attn_layer_norm")
        q = parts.queries(h, attn, rows, heads)
        k = parts.split(parts.projected(h, attn, "k"), f"{attn}.k", rows, heads, transposed=True)
        v = parts.split(parts.projected(h, attn, "v"), f"{attn}.v", rows, heads)
        x = parts.mlp(parts.attended(x, q, k, v, None, attn, rows), path, config.encoder_ffn_dim)
    x = parts.norm(x, f"{ENCODER}.layer_norm", output=STATES)
    g.output(x)
    shapes = cross_shapes(config)
    for i in range(config.decoder_layers):
        attn = f"{DECODER}.layers.{i}.encoder_attn"
        for kind in ("key", "value"):
            own = parts.projected(x, attn, kind[0])
            own = parts.split(own, f"{attn}.{kind[0]}", rows, config.decoder_attention_heads, transposed=kind == "key")
            name = f"cross_{kind}_{i}"
            g.output(g.reshape(own, shapes[name], f"{attn}.{name}", output=name))


def build_embed(parts: WhisperParts) -> None:
    """`input_ids` and `position_ids` i32 [S] to `embeds` [S,D]."""
    g, config = parts.g, parts.config
    tables = (
        ("embed_tokens", "input_ids", config.vocab_size),
        ("embed_positions", "position_ids", config.max_target_positions),
    )
    looked_up = []
    for table, name, size in tables:
        ids = g.input(name, (parts.prompt,), ir.DataType.INT32)
        path = f"{DECODER}.{table}"
        looked_up.append(g.node("Gather", [parts.weight(f"{path}.weight", size, config.d_model), ids], path, axis=0))
    g.output(g.node("Add", looked_up, f"{DECODER}.embeds", output="embeds"))


def build_prefill(parts: WhisperParts) -> None:
    """The whole prompt at once; keys and values of every position go out, logits only for the last one."""
    g, rows = parts.g, parts.prompt
    x = g.input("inputs_embeds", (rows, parts.config.d_model))
    x = _decoded(parts, x, g.input("attention_bias", (1, rows, rows)), rows, {})
    last = [g.integers([n]) for n in (rows - 1, rows, 0)]
    _head(parts, g.node("Slice", [x, *last], f"{DECODER}.last_row"))


def build_decode(parts: WhisperParts) -> None:
    """One token against a cache of C columns; the new column goes out, the host writes it into the cache.

    Its inputs have names of their own beside those of prefill: one file of arrays calibrates all components.
    """
    g, config, columns = parts.g, parts.config, parts.cache
    x = g.input("token_embeds", (1, config.d_model))
    bias = g.input("cache_bias", (1, 1, columns + 1))
    shape = (1, config.decoder_attention_heads, columns, config.head)
    past = {
        i: (g.input(f"past_key_{i}", shape), g.input(f"past_value_{i}", shape)) for i in range(config.decoder_layers)
    }
    _head(parts, _decoded(parts, x, bias, 1, past))


BUILDERS: Mapping[str, Callable[[WhisperParts], None]] = {
    "encoder": build_encoder, "embed": build_embed, "prefill": build_prefill, "decode": build_decode,
}  # fmt: skip


def cross_shapes(config: WhisperConfig) -> dict[str, tuple[int, int, int, int]]:
    """What cross-attention reads: `cross_key_i` [1,heads,d,T], `cross_value_i` [1,heads,T,d]."""
    heads, head, rows = config.decoder_attention_heads, config.head, config.max_source_positions
    shapes = {"key": (1, heads, head, rows), "value": (1, heads, rows, head)}
    return {f"cross_{kind}_{i}": shape for i in range(config.decoder_layers) for kind, shape in shapes.items()}


def _convolved(parts: WhisperParts, x: ir.Value, name: str, channels: int, stride: int) -> ir.Value:
    """A convolution over time of three frames, and the activation: [1,channels,1,n] → [1,D,1,n/stride].

    It is one of two dimensions, the first of them of length 1: that is what every target takes.
    """
    path, width = f"{ENCODER}.{name}", parts.config.d_model
    kernel = derived(
        lambda w: w[:, :, None], parts.tensor(f"{path}.weight", width, channels, 3), shape=(width, channels, 1, 3)
    )
    inputs = [x, parts.g.weight(f"{path}.weight", kernel), parts.weight(f"{path}.bias", width)]
    x = parts.g.node("Conv", inputs, path, kernel_shape=[1, 3], strides=[1, stride], pads=[0, 1, 0, 1])
    return activated(parts, x, parts.config.activation_function, path)


def _decoded(parts: WhisperParts, x: ir.Value, bias: ir.Value, rows: int, past: Mapping[int, Pair]) -> ir.Value:
    """All blocks of the decoder, [rows, D] → [rows, D]."""
    g, config, heads = parts.g, parts.config, parts.config.decoder_attention_heads
    cross = {name: g.input(name, shape) for name, shape in cross_shapes(config).items()}
    for i in range(config.decoder_layers):
        path = f"{DECODER}.layers.{i}"
        x = _self_attended(parts, x, bias, rows, i, past.get(i))
        attn = f"{path}.encoder_attn"
        q = parts.queries(parts.norm(x, f"{path}.encoder_attn_layer_norm"), attn, rows, heads)
        k, v = (
            g.reshape(cross[name], cross_shapes(config)[name][1:], f"{attn}.{name}")
            for name in (f"cross_key_{i}", f"cross_value_{i}")
        )
        x = parts.mlp(parts.attended(x, q, k, v, None, attn, rows), path, config.decoder_ffn_dim)
    return x


def _self_attended(
    parts: WhisperParts, x: ir.Value, bias: ir.Value, rows: int, index: int, past: Pair | None
) -> ir.Value:
    """x + the decoder's attention to its own tokens; the new keys and values become outputs."""
    g, config, heads = parts.g, parts.config, parts.config.decoder_attention_heads
    path = f"{DECODER}.layers.{index}"
    attn = f"{path}.self_attn"
    h = parts.norm(x, f"{path}.self_attn_layer_norm")
    q = parts.queries(h, attn, rows, heads)
    seen = []
    for number, kind in enumerate(("key", "value")):
        new = parts.split(parts.projected(h, attn, kind[0]), f"{attn}.{kind[0]}", rows, heads)
        name = f"present_{kind}_{index}"
        g.output(g.reshape(new, (1, heads, rows, config.head), f"{attn}.{name}", output=name))
        if past:
            old = g.reshape(past[number], (heads, parts.cache, config.head), f"{attn}.past_{kind}")
            new = g.node("Concat", [old, new], f"{attn}.{kind}s", axis=1)
        seen.append(new)
    k, v = seen
    return parts.attended(x, q, g.transpose(k, (0, 2, 1), f"{attn}.k.transposed"), v, bias, attn, rows)


def _head(parts: WhisperParts, x: ir.Value) -> None:
    """Norm and vocabulary projection; `logits` comes first among the outputs."""
    config, name = parts.config, f"{HEAD}.weight"
    if name not in parts.state and config.tie_word_embeddings:
        name = f"{DECODER}.embed_tokens.weight"
    weight = parts.weight(name, config.vocab_size, config.d_model)
    h = parts.norm(x, f"{DECODER}.layer_norm")
    parts.g.output(parts.g.node("Gemm", [h, weight], HEAD, transB=1, output="logits"), first=True)
