"""A decoder in OpenVINO's own ops, as openvino-genai's LLMPipeline takes it.

Inputs ``input_ids``, ``attention_mask``, ``position_ids`` [batch, tokens] (i64) and ``beam_idx`` [batch] (i32), output
``logits``; the KV cache is state: ReadValue → Gather(beam_idx) → Concat → Assign. Norms, rotary positions and attention
are spelled as models that transformers exports are, which is what the plugins' fusions look for.
"""

from typing import Any

import numpy as np

from pocketport.compress.families.decoder.config import SLIDING, DecoderConfig
from pocketport.compress.formats.language_model import LanguageModel, last_hidden, projections
from pocketport.targets.x86.openvino_weights import OpenVinoWeights

MASKED = -65504.0  # float16's lowest
PARTS = ("key", "value")


def decoder_model(w: OpenVinoWeights, model: LanguageModel) -> Any:
    """The ``openvino.Model`` from token ids to logits.

    Raises:
        InputError: the checkpoint lacks a tensor.
    """
    import openvino

    ids = parameter(w, "input_ids", np.int64, [-1, -1])
    rows = w.op.gather(w.matrix(model.table), ids, w.constant(0), name="embed_tokens")
    decoder = OpenVinoDecoder(w, model, ids)
    x = last_hidden(decoder, model, decoder.scaled(rows, model.config.embedding_scale))
    logits = w.op.matmul(x, w.matrix(model.head), False, True, name="lm_head")
    result = w.op.result(logits)
    result.output(0).get_tensor().set_names({"logits"})
    return openvino.Model([result], decoder.sinks, [ids, *decoder.parameters], "decoder")


def parameter(w: OpenVinoWeights, name: str, dtype: type, shape: list[int]) -> Any:
    """An input of the model; −1 is an open dimension."""
    node = w.op.parameter(shape, dtype, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


class OpenVinoDecoder:
    """`DecoderOps` that make OpenVINO nodes.

    Args:
        w: the weights.
        model: the decoder.
        tokens: node of shape [batch, tokens, …].

    Attributes:
        parameters: the inputs beside `tokens`.
        sinks: the nodes that write the cache.
    """

    def __init__(self, w: OpenVinoWeights, model: LanguageModel, tokens: Any) -> None:
        self.w, self.op, self.model = w, w.op, model
        self.config: DecoderConfig = model.config
        self._mask, self._positions, self._beams = (
            parameter(w, name, dtype, shape)
            for name, dtype, shape in (
                ("attention_mask", np.int64, [-1, -1]), ("position_ids", np.int64, [-1, -1]), ("beam_idx", np.int32, [-1])
            )
        )  # fmt: skip
        self.parameters = [self._mask, self._positions, self._beams]
        self.sinks: list[Any] = []
        shape = self.op.shape_of(tokens, output_type="i64")
        self._batch = self.op.gather(shape, w.constant([0]), w.constant(0))
        self._length = self.op.gather(shape, w.constant([1]), w.constant(0))
        self._biases: dict[str, Any] = {}
        self._ropes: dict[str, tuple[Any, Any]] = {}

    def rms_norm(self, x: Any, name: str) -> Any:
        """RMSNorm over the last axis."""
        op, constant = self.op, self.w.constant
        square = op.power(x, constant(2.0, np.float32))
        mean = op.reduce_mean(square, constant([-1]), keep_dims=True)
        root = op.sqrt(op.add(mean, constant(self.config.norm_eps, np.float32)))
        normed = op.multiply(x, op.divide(constant(1.0, np.float32), root))
        gamma = self.w.vector(name, plus=1.0 if self.config.unit_offset_norm else 0.0)
        return op.multiply(normed, gamma, name=name.removesuffix(".weight"))

    def add_and_norm(self, x: Any, added: Any, name: str) -> tuple[Any, Any]:
        """x + added, and its RMSNorm."""
        total = self.op.add(x, added)
        return total, self.rms_norm(total, name)

    def scaled(self, x: Any, value: float) -> Any:
        """x·value; x itself where the value is 1."""
        return x if value == 1 else self.op.multiply(x, self.w.constant(value, np.float32))

    def attention(self, x: Any, layer: int) -> Any:
        """Projections, norms of queries and keys, rotary positions, cache, scaled dot products."""
        config, op, path = self.config, self.op, f"{self.model.layer(layer)}.self_attn"
        kind, heads, width = config.layer_types[layer], config.num_attention_heads, config.head_dim
        q, k, v = (
            self._heads(self._linear(x, p, bias=config.qkv_bias), count)
            for p, count in zip(
                projections(path), (heads, config.num_key_value_heads, config.num_key_value_heads), strict=True
            )
        )
        if config.qk_norm:
            q, k = self.rms_norm(q, f"{path}.q_norm.weight"), self.rms_norm(k, f"{path}.k_norm.weight")
        q, k, v = (op.transpose(y, self.w.constant([0, 2, 1, 3])) for y in (q, k, v))
        if config.rotary[layer]:
            q, k = self._rotated(q, kind), self._rotated(k, kind)
        k, v = (self._repeated(self._cached(y, layer, part)) for y, part in zip((k, v), PARTS, strict=True))
        scale = self.w.constant(config.attention_scalar**-0.5, np.float32)
        context = op.scaled_dot_product_attention(q, k, v, self._bias(kind), scale, causal=False, name=f"{path}.sdpa")
        context = op.transpose(context, self.w.constant([0, 2, 1, 3]))
        context = op.reshape(context, self.w.constant([0, 0, heads * width]), special_zero=True)
        return self._linear(context, f"{path}.o_proj", bias=config.output_bias)

    def gated_mlp(self, x: Any, path: str) -> Any:
        """down(activation(gate(x))·up(x))."""
        bias = self.config.mlp_bias
        gate, up = (self._linear(x, f"{path}.{name}_proj", bias=bias) for name in ("gate", "up"))
        activated = self.op.swish(gate) if self.config.activation == "silu" else self.op.gelu(gate, "TANH")
        return self._linear(self.op.multiply(activated, up), f"{path}.down_proj", bias=bias)

    def _linear(self, x: Any, path: str, *, bias: bool) -> Any:
        product = self.op.matmul(x, self.w.matrix(f"{path}.weight"), False, True, name=path)
        return self.op.add(product, self.w.vector(f"{path}.bias")) if bias else product

    def _heads(self, x: Any, count: int) -> Any:
        """[batch, tokens, count·d] → [batch, tokens, count, d]."""
        return self.op.reshape(x, self.w.constant([0, 0, count, self.config.head_dim]), special_zero=True)

    def _cached(self, x: Any, layer: int, part: str) -> Any:
        """Keys or values [batch, kv, total, d]: what the state holds for each beam, with x behind it."""
        import openvino

        op, constant = self.op, self.w.constant
        kv, width = self.config.num_key_value_heads, self.config.head_dim
        empty_shape = op.concat([self._batch, constant([kv, 0, width])], 0)
        empty = op.broadcast(constant(0.0, np.float32), empty_shape)
        name = f"past_key_values.{layer}.{part}present.{layer}.{part}"
        past = op.read_value(empty, name, np.float32, openvino.PartialShape([-1, kv, -1, width]))
        past = op.gather(past, self._beams, constant(0))
        whole = op.concat([past, x], 2)
        self.sinks.append(op.assign(whole, name))
        return whole

    def _repeated(self, x: Any) -> Any:
        """Every key-value head once for each query head of its group."""
        kv, width = self.config.num_key_value_heads, self.config.head_dim
        group = self.config.num_attention_heads // kv
        if group == 1:
            return x
        op, constant = self.op, self.w.constant
        shape = op.shape_of(x, output_type="i64")
        batch, total = (op.gather(shape, constant([axis]), constant(0)) for axis in (0, 2))
        target = op.concat([batch, constant([kv, group]), total, constant([width])], 0)
        wide = op.broadcast(op.unsqueeze(x, constant(2)), target, broadcast_spec="BIDIRECTIONAL")
        return op.reshape(wide, constant([0, kv * group, -1, width]), special_zero=True)

    def _rotated(self, x: Any, kind: str) -> Any:
        """x·cos + rotate_half(x)·sin (Su et al. 2021, arXiv 2104.09864)."""
        op, constant, half = self.op, self.w.constant, self.config.head_dim // 2
        cos, sin = self._rope(kind)
        first = op.slice(x, constant([0]), constant([half]), constant([1]), constant([3]))
        second = op.slice(x, constant([half]), constant([np.iinfo(np.int64).max]), constant([1]), constant([3]))
        turned = op.concat([op.multiply(second, constant(-1.0, np.float32)), first], -1)
        return op.add(op.multiply(x, cos), op.multiply(turned, sin))

    def _rope(self, kind: str) -> tuple[Any, Any]:
        """Cosines and sines [batch, 1, tokens, d] of one kind of layer."""
        prefix, rope = self.config.rope_prefix(kind), self.config.rope_of(kind)
        if prefix not in self._ropes:
            op, constant = self.op, self.w.constant
            context = self.config.max_position_embeddings
            frequencies = constant(rope.frequencies(context).reshape(1, -1, 1), np.float32)
            if rope.kind == "longrope" and 0 < rope.long_from < context:
                short = constant(rope.frequencies(rope.long_from).reshape(1, -1, 1), np.float32)
                last = op.reduce_max(self._positions, constant([0, 1]), keep_dims=False)
                frequencies = op.select(op.greater_equal(last, constant(rope.long_from)), frequencies, short)
            places = op.convert(op.unsqueeze(self._positions, constant(1)), "f32")
            target = op.concat([self._batch, constant([1, 1])], 0)
            angles = op.matmul(op.broadcast(frequencies, target, broadcast_spec="BIDIRECTIONAL"), places, False, False)
            angles = op.transpose(angles, constant([0, 2, 1]))
            both = op.concat([angles, angles], -1)
            self._ropes[prefix] = tuple(
                op.unsqueeze(self.scaled(function(both), rope.amplitude), constant(1)) for function in (op.cos, op.sin)
            )
        return self._ropes[prefix]

    def _bias(self, kind: str) -> Any:
        """0 where a token may be seen, `MASKED` where not: [batch, 1, tokens, total]."""
        if kind not in self._biases:
            op, constant = self.op, self.w.constant
            total = op.gather(op.shape_of(self._mask, output_type="i64"), constant([1]), constant(0))
            end = op.squeeze(total, constant(0))
            columns = op.range(constant(0), end, constant(1), "i64")
            before = op.squeeze(op.subtract(total, self._length), constant(0))
            rows = op.unsqueeze(op.range(before, end, constant(1), "i64"), constant(1))
            causal = op.less_equal(columns, rows)
            tokens = op.not_equal(op.unsqueeze(op.unsqueeze(self._mask, constant(1)), constant(2)), constant(0))
            sliding = kind == SLIDING and self.config.sliding_window is not None
            seen = self._windowed(causal, tokens, rows, columns) if sliding else op.logical_and(tokens, causal)
            self._biases[kind] = op.select(seen, constant(0.0, np.float32), constant(MASKED, np.float32))
            if sliding:
                limits = [constant([n]) for n in (0, np.iinfo(np.int64).max, 1, 3)]
                self._biases[kind] = op.slice(self._biases[kind], *limits)
        return self._biases[kind]

    def _windowed(self, causal: Any, tokens: Any, rows: Any, columns: Any) -> Any:
        """What a sliding layer sees, spelled as transformers' GPT-OSS: only so does paged attention keep the window.

        (openvino, transformations/sdpa_to_paged_attention/state_management_pattern.cpp; any other spelling is taken for
        full attention without a word.)
        """
        op, constant = self.op, self.w.constant
        true = constant(True, np.bool_)
        near = op.greater(columns, op.add(rows, constant(-int(self.config.sliding_window or 0))))
        seen = op.bitwise_and(op.bitwise_and(causal, near), true)
        seen = op.bitwise_and(op.bitwise_and(true, seen), tokens)
        shape = op.concat([self._batch, constant([1, 1, 1])], 0)
        return op.broadcast(seen, shape, broadcast_spec="BIDIRECTIONAL")
