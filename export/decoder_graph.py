"""The transformer as two ONNX graphs, written op by op from the checkpoint's tensors: the decoder and its prefix.

Prefill, chunks of known tokens and single steps are one graph: S positions go in at `past_length`, read the cache up to
there and extend it. It is written by hand because a traced cache update becomes a copy of the whole cache each step.

What every target shares is in `decoder_graph`: embedding, projections, feed-forward, logits. A *spelling* is what
differs between targets: normalization, rotation, attention and the cache, in operators that the target runs well.

- "ort": operators of ONNX Runtime's own: truly in place and no work beyond the positions filled.
- "standard": ONNX opset 24 alone, for any runtime that has it; work grows with the capacity.

Both update the cache in place where past and present are one buffer.

How its numbers are stored is `export.precision`'s.

Shapes in comments: B rows, S positions, K positions that get logits, N tokens of a picture, D the model's width,
H heads, V vocabulary, T text positions, C the text encoder's width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import numpy as np
import onnx_ir as ir
from torch import Tensor

from editar_rt import names
from editar_rt.errors import OptionError
from export.graph_writer import FLOAT, FLOAT16, INT32, INT64, GraphWriter
from export.precision import INT8, Storage
from training.config import TransformerConfig
from training.models.rotary import rotary_table

Scales = Sequence[tuple[float, float]]  # of keys and values, by layer
ROWS, POSITIONS, CAPACITY = "rows", "positions", "capacity"  # symbolic dimensions
PER_TENSOR = "PER_TENSOR"  # GroupQueryAttention's word for one scale for all keys, or values, of a layer


def scale_names(layer: int) -> tuple[str, str]:
    """Constants of an int8 cache's scales: of keys, of values."""
    return f"key_scale.{layer}", f"value_scale.{layer}"


class Spelling(Protocol):
    """What differs between targets."""

    opsets: ClassVar[dict[str, int]]
    ir_version: ClassVar[int]

    def __init__(
        self, writer: GraphWriter, config: TransformerConfig, tokens: ir.Value, storage: Storage, scales: Scales
    ) -> None: ...

    @staticmethod
    def check(config: TransformerConfig) -> None:
        """Refuses sizes that the operators do not take."""

    def normalize(self, hidden: ir.Value, weight: ir.Value) -> ir.Value:
        """RMSNorm of hidden [B, S, D]."""

    def add_and_normalize(self, hidden: ir.Value, addend: ir.Value, weight: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The sum, and its RMSNorm, [B, S, D] each."""

    def silu(self, value: ir.Value) -> ir.Value:
        """x · sigmoid(x)."""

    def attend(self, layer: int, qkv: ir.Value) -> ir.Value:
        """Queries, keys and values in one, [B, S, 3 D] -> what the heads read, [B, S, D]."""

    def add_outputs(self) -> None:
        """The cache's outputs, after the last layer is written."""


class OrtSpelling:
    """Operators of ONNX Runtime: one for rotation, cache and attention, one for sum and normalization.

    Extra inputs: past_length [B] and total_length [], the largest past_length + S; the operator wants the latter on the
    host even where everything else is on a GPU, so it is not computed in the graph.
    """

    opsets: ClassVar = {"": 17, "com.microsoft": 1}
    ir_version: ClassVar = 10

    @staticmethod
    def check(config: TransformerConfig) -> None:
        if config.head_dim % 8:
            raise OptionError(
                f"the spelling ort takes heads of a width that is a multiple of 8; this transformer's are "
                f"{config.head_dim} wide ({config.dim} / {config.n_head} heads)"
            )

    def __init__(
        self, writer: GraphWriter, config: TransformerConfig, tokens: ir.Value, storage: Storage, scales: Scales
    ) -> None:
        self.writer, self.config, self.storage = writer, config, storage
        self.op = writer.op
        self.microsoft = writer.builder.opset("com.microsoft", 1)
        past_length = writer.input(names.PAST_LENGTH, INT32, [ROWS])
        self.total_length = writer.input(names.TOTAL_LENGTH, INT32, [])
        positions = self.op.Cast(self.op.Shape(tokens, start=1, end=2), to=INT32)  # [1] = S
        # The operator counts from 0: the index of the last valid row of the cache after this chunk.
        self.last_row = self.op.Sub(self.op.Add(past_length, positions), writer.constant([1], np.int32, "one"))
        # Zero in both tables for text positions, which zeroes queries and keys there: the weights were trained so.
        self.cos, self.sin = (
            writer.stored_constant(table, name)
            for table, name in zip(rotary_table(config), ("rotary_cos", "rotary_sin"))
        )
        self.cache = CacheTensors(writer, config, storage.cache_type)
        self.quantization: dict[str, int | str] = {}
        self.scales: list[tuple[ir.Value, ...]] = [() for _ in range(config.n_layer)]
        if storage.kv_cache == INT8:
            self.quantization = {"k_quant_type": PER_TENSOR, "v_quant_type": PER_TENSOR, "kv_cache_bit_width": 8}
            self.scales = [
                tuple(writer.constant([value], np.float32, name) for value, name in zip(pair, scale_names(i)))
                for i, pair in enumerate(scales)
            ]

    def normalize(self, hidden: ir.Value, weight: ir.Value) -> ir.Value:
        return self.op.SimplifiedLayerNormalization(hidden, weight, axis=-1, epsilon=self.config.norm_eps)

    def add_and_normalize(self, hidden: ir.Value, addend: ir.Value, weight: ir.Value) -> tuple[ir.Value, ir.Value]:
        normalized, _, _, total = self.microsoft.SkipSimplifiedLayerNormalization(
            hidden, addend, weight, epsilon=self.config.norm_eps, _outputs=4
        )
        return total, normalized

    def silu(self, value: ir.Value) -> ir.Value:
        return self.microsoft.QuickGelu(value, alpha=1.0)  # x · sigmoid(alpha x)

    def attend(self, layer: int, qkv: ir.Value) -> ir.Value:
        # Positions, bias and sink are not used; the scales come after them.
        scales = (None, None, None, *self.scales[layer]) if self.scales[layer] else ()
        output, key, value = self.microsoft.GroupQueryAttention(
            qkv,
            None,
            None,
            *self.cache.past[layer],
            self.last_row,
            self.total_length,
            self.cos,
            self.sin,
            *scales,
            num_heads=self.config.n_head,
            kv_num_heads=self.config.n_head,
            do_rotary=1,
            rotary_interleaved=1,
            **self.quantization,
            _outputs=3,
        )
        self.cache.present.append((key, value))
        return output

    def add_outputs(self) -> None:
        self.cache.add_outputs()


class StandardSpelling:
    """Operators of ONNX itself, opset 24.

    Extra input: past_length [B]. A mask says what every position sees: `is_causal` counts from the first row of the
    cache in some runtimes and from the last in others.
    """

    opsets: ClassVar = {"": 24}
    ir_version: ClassVar = 11

    @staticmethod
    def check(config: TransformerConfig) -> None:
        """Takes every size."""

    def __init__(
        self, writer: GraphWriter, config: TransformerConfig, tokens: ir.Value, storage: Storage, scales: Scales
    ) -> None:
        self.writer, self.config = writer, config
        op = self.op = writer.op
        past_length = op.Cast(writer.input(names.PAST_LENGTH, INT32, [ROWS]), to=INT64)
        self.cos, self.sin = (
            writer.stored_constant(table, name)
            for table, name in zip(rotary_table(config), ("rotary_cos", "rotary_sin"))
        )
        self.cache = CacheTensors(writer, config, storage.cache_type)
        zero, one = (writer.constant(value, np.int64, name) for value, name in ((0, "start"), (1, "increment")))
        last, second = (writer.constant([axis], np.int64, name) for axis, name in ((1, "axis_1"), (2, "axis_2")))

        def count(value: ir.Value, axis: int) -> ir.Value:  # 0, 1, …, one less than the dimension
            size = op.Squeeze(op.Shape(value, start=axis, end=axis + 1))
            return op.Range(zero, size, one)

        self.past_length = past_length
        self.positions = op.Add(op.Unsqueeze(past_length, last), count(tokens, 1))  # [B, S]
        seen = op.LessOrEqual(count(self.cache.past[0][0], 2), op.Unsqueeze(self.positions, second))
        self.mask = op.Unsqueeze(seen, last)  # bool [B, 1, S, capacity]
        self.split = writer.constant([config.dim] * 3, np.int64, "qkv_sizes")
        self.by_head = writer.constant([0, 0, config.n_head, config.head_dim], np.int64, "by_head")
        self.in_one = writer.constant([0, 0, config.dim], np.int64, "in_one")

    def normalize(self, hidden: ir.Value, weight: ir.Value) -> ir.Value:
        return self.op.RMSNormalization(hidden, weight, axis=-1, epsilon=self.config.norm_eps)

    def add_and_normalize(self, hidden: ir.Value, addend: ir.Value, weight: ir.Value) -> tuple[ir.Value, ir.Value]:
        total = self.op.Add(hidden, addend)
        return total, self.normalize(total, weight)

    def silu(self, value: ir.Value) -> ir.Value:
        return self.op.Mul(value, self.op.Sigmoid(value))

    def attend(self, layer: int, qkv: ir.Value) -> ir.Value:
        op = self.op
        queries, keys, values = (
            op.Transpose(op.Reshape(part, self.by_head), perm=[0, 2, 1, 3])  # [B, H, S, head_dim]
            for part in op.Split(qkv, self.split, axis=-1, _outputs=3)
        )
        queries, keys = (
            op.RotaryEmbedding(part, self.cos, self.sin, self.positions, interleaved=1) for part in (queries, keys)
        )
        past_key, past_value = self.cache.past[layer]
        key, value = (
            op.TensorScatter(past, new, self.past_length, axis=-2)
            for past, new in ((past_key, keys), (past_value, values))
        )
        self.cache.present.append((key, value))
        return op.Reshape(
            op.Transpose(op.Attention(queries, key, value, self.mask), perm=[0, 2, 1, 3]),
            self.in_one,
        )

    def add_outputs(self) -> None:
        self.cache.add_outputs()


class CacheTensors:
    """The inputs and outputs of a cache that is updated in place, [B, H, capacity, head_dim] each."""

    def __init__(self, writer: GraphWriter, config: TransformerConfig, dtype: ir.DataType) -> None:
        self.writer, self.dtype = writer, dtype
        self.shape: list[int | str] = [ROWS, config.n_head, CAPACITY, config.head_dim]
        self.past = [
            (
                writer.input(names.past_key(i), dtype, self.shape),
                writer.input(names.past_value(i), dtype, self.shape),
            )
            for i in range(config.n_layer)
        ]
        self.present: list[tuple[ir.Value, ir.Value]] = []

    def add_outputs(self) -> None:
        for i, (key, value) in enumerate(self.present):
            self.writer.output(key, names.present_key(i), self.dtype, self.shape)
            self.writer.output(value, names.present_value(i), self.dtype, self.shape)


SPELLINGS: dict[str, type[Spelling]] = {"ort": OrtSpelling, "standard": StandardSpelling}


def decoder_graph(
    config: TransformerConfig, weights: Mapping[str, Tensor], storage: Storage, scales: Scales = ()
) -> ir.Model:
    """The decoder's graph; weights are read when it is saved.

    Inputs: tokens int32 [B, S]; prefix float32, broadcast against [B, S, D], taken where a token is negative;
    logit_positions int32 [K], which of the S positions get logits; the spelling's own, the cache among them.
    Outputs: logits float32 [B, K, V]; the spelling's cache.

    Args:
        weights: a transformer's tensors by their official names (`checkpoint_reader.read_transformer`).
        scales: of an int8 cache, a pair a layer (`calibration.cache_scales`).
    """
    numbers, spelling = storage.numbers, SPELLINGS[storage.spelling]
    writer = GraphWriter("decoder", spelling.opsets, weights, numbers.stored)
    op = writer.op
    tokens = writer.input(names.TOKENS, INT32, [ROWS, POSITIONS])
    prefix = writer.input(names.PREFIX, FLOAT, ["prefix_rows", "prefix_positions", config.dim])
    logit_positions = writer.input(names.LOGIT_POSITIONS, INT32, ["logit_positions"])
    target = spelling(writer, config, tokens, storage, scales)

    zero = writer.constant(0, np.int32, "zero")
    # Rows are picked, not multiplied: 16 bits lose nothing that whole-number products would keep.
    table_type = FLOAT16 if numbers.blocks else writer.dtype
    embedded = op.Gather(writer.weight("tok_embeddings.weight", dtype=table_type), op.Max(tokens, zero))
    if table_type != FLOAT:
        embedded = op.Cast(embedded, to=FLOAT)
    is_prefix = op.Unsqueeze(op.Less(tokens, zero), writer.constant([2], np.int64, "last_axis"))  # [B, S, 1]
    hidden = op.Where(is_prefix, prefix, embedded)  # [B, S, D], the residual stream

    def linear(value: ir.Value, name: str) -> ir.Value:
        return writer.linear(value, name, numbers.blocks)

    fed = None  # what the layer before adds to the residual stream
    for layer in range(config.n_layer):
        with writer.scope(f"layers.{layer}"):
            norm = writer.norm_weight("attention_norm.weight")
            if fed is None:
                normalized = target.normalize(hidden, norm)
            else:
                hidden, normalized = target.add_and_normalize(hidden, fed, norm)
            qkv = linear(writer.stored(normalized), "attention.wqkv.weight")
            attended = writer.float32(linear(target.attend(layer, qkv), "attention.wo.weight"))
            if layer == config.n_layer - 1:  # the cache is complete: go on with what gets logits
                hidden, attended = (op.Gather(value, logit_positions, axis=1) for value in (hidden, attended))
            hidden, normalized = target.add_and_normalize(hidden, attended, writer.norm_weight("ffn_norm.weight"))
            normalized = writer.stored(normalized)
            gate = target.silu(linear(normalized, "feed_forward.w1.weight"))
            up = linear(normalized, "feed_forward.w3.weight")
            fed = writer.float32(linear(op.Mul(gate, up), "feed_forward.w2.weight"))

    assert fed is not None  # a model has layers
    _, normalized = target.add_and_normalize(hidden, fed, writer.norm_weight("norm.weight"))
    if numbers.head is None:
        logits = op.MatMul(normalized, writer.float32(writer.weight("output.weight", transposed=True)))
    else:
        logits = writer.float32(writer.linear(writer.stored(normalized), "output.weight", numbers.head))
    writer.output(logits, names.LOGITS, FLOAT, [ROWS, "logit_positions", config.vocab_size])
    target.add_outputs()
    return writer.model(spelling.ir_version)


def prefix_graph(config: TransformerConfig, weights: Mapping[str, Tensor]) -> ir.Model:
    """What the decoder reads in place of tokens: the projected text, and the stand-ins for what is dropped.

    Input: text_states float32 [B, T, C]. Outputs, float32: text_prefix [B, T, D]; null_text_prefix [1, T, D], the null
    text through the same projection; null_picture_prefix [1, N, D]. It is small, so it stays float32.

    Args:
        weights: as in `decoder_graph`.
    """
    writer = GraphWriter("prefix", {"": 20}, weights, FLOAT)
    op = writer.op
    text_states = writer.input(names.TEXT_STATES, FLOAT, [ROWS, config.cls_token_num, config.caption_dim])

    def stand_in(name: str) -> ir.Value:  # [1, positions, width]
        return op.Reshape(writer.weight(name), writer.constant([1, *weights[name].shape], np.int64, f"{name}.shape"))

    null_states = stand_in("cls_embedding.uncond_embedding")
    with writer.scope("cls_embedding.cap_proj"):
        widen, mix = (writer.weight(name, transposed=True) for name in ("fc1.weight", "fc2.weight"))
        text, null_text = (
            op.MatMul(op.Gelu(op.MatMul(states, widen), approximate="tanh"), mix)
            for states in (text_states, null_states)
        )
    null_picture = stand_in("img_uncond_embedding")
    text_shape = (config.cls_token_num, config.dim)
    writer.output(text, names.TEXT_PREFIX, FLOAT, [ROWS, *text_shape])
    writer.output(null_text, names.NULL_TEXT_PREFIX, FLOAT, [1, *text_shape])
    writer.output(null_picture, names.NULL_PICTURE_PREFIX, FLOAT, [1, config.block_size, config.dim])
    return writer.model()
