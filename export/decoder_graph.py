"""The transformer as two ONNX graphs, written op by op from the checkpoint's tensors: the decoder and its prefix.

Prefill, chunks of known tokens and single steps are one graph: S positions go in at `past_length`, read the cache up to
there and extend it. It is written by hand because a traced cache update becomes a copy of the whole cache each step.

What every target shares is in `decoder_graph`: embedding, projections, feed-forward, logits. A *spelling* is what
differs between targets: normalization, rotation, attention and the cache, in operators that the target runs well.

- "ort": operators of ONNX Runtime's own, the cache updated in place where past and present are one buffer.

Precision "fp16" stores weights and cache and multiplies matrices in float16. Float32 stay: the residual stream with its
sums and normalizations, softmax (inside the attention operator), and the logits.

Shapes in comments: B rows, S positions, K positions that get logits, N tokens of a picture, D the model's width,
H heads, V vocabulary, T text positions, C the text encoder's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from torch import Tensor

from editar_rt import names
from editar_rt.errors import OptionError
from export.graph_writer import FLOAT, FLOAT16, INT32, GraphWriter
from training.config import TransformerConfig
from training.models.rotary import rotary_table

PRECISIONS = {"fp32": FLOAT, "fp16": FLOAT16}
ROWS, POSITIONS, CAPACITY = "rows", "positions", "capacity"  # symbolic dimensions


class OrtSpelling:
    """Operators of ONNX Runtime: one for rotation, cache and attention, one for sum and normalization.

    Extra inputs: past_length [B] and total_length [], the largest past_length + S; the operator wants the latter on the
    host even where everything else is on a GPU, so it is not computed in the graph.
    """

    opsets: ClassVar = {"": 17, "com.microsoft": 1}

    @staticmethod
    def check(config: TransformerConfig) -> None:
        """Refuses sizes that the operators do not take."""
        if config.head_dim % 8:
            raise OptionError(
                f"the spelling ort takes heads of a width that is a multiple of 8; this transformer's are "
                f"{config.head_dim} wide ({config.dim} / {config.n_head} heads)"
            )

    def __init__(self, writer: GraphWriter, config: TransformerConfig, tokens: ir.Value) -> None:
        self.writer, self.config = writer, config
        self.op = writer.op
        self.microsoft = writer.builder.opset("com.microsoft", 1)
        past_length = writer.input(names.PAST_LENGTH, INT32, [ROWS])
        self.total_length = writer.input(names.TOTAL_LENGTH, INT32, [])
        positions = self.op.Cast(self.op.Shape(tokens, start=1, end=2), to=INT32)  # [1] = S
        # The operator counts from 0: the index of the last valid row of the cache after this chunk.
        self.last_row = self.op.Sub(self.op.Add(past_length, positions), writer.constant([1], np.int32, "one"))
        table_type = np.float16 if writer.dtype == FLOAT16 else np.float32
        # Zero in both tables for text positions, which zeroes queries and keys there: the weights were trained so.
        self.cos, self.sin = (
            writer.constant(table, table_type, name)
            for table, name in zip(rotary_table(config), ("rotary_cos", "rotary_sin"))
        )
        self.cache_shape: list[int | str] = [ROWS, config.n_head, CAPACITY, config.head_dim]
        self.past = [
            (
                writer.input(names.past_key(i), writer.dtype, self.cache_shape),
                writer.input(names.past_value(i), writer.dtype, self.cache_shape),
            )
            for i in range(config.n_layer)
        ]
        self.present: list[tuple[ir.Value, ir.Value]] = []

    def normalize(self, hidden: ir.Value, weight: ir.Value) -> ir.Value:
        """RMSNorm of hidden [B, S, D]."""
        return self.op.SimplifiedLayerNormalization(hidden, weight, axis=-1, epsilon=self.config.norm_eps)

    def add_and_normalize(self, hidden: ir.Value, addend: ir.Value, weight: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The sum, and its RMSNorm, [B, S, D] each."""
        normalized, _, _, total = self.microsoft.SkipSimplifiedLayerNormalization(
            hidden, addend, weight, epsilon=self.config.norm_eps, _outputs=4
        )
        return total, normalized

    def silu(self, value: ir.Value) -> ir.Value:
        return self.microsoft.QuickGelu(value, alpha=1.0)  # x · sigmoid(alpha x)

    def attend(self, layer: int, qkv: ir.Value) -> ir.Value:
        """Queries, keys and values in one, [B, S, 3 D] -> what the heads read, [B, S, D]."""
        output, key, value = self.microsoft.GroupQueryAttention(
            qkv,
            None,
            None,
            *self.past[layer],
            self.last_row,
            self.total_length,
            self.cos,
            self.sin,
            num_heads=self.config.n_head,
            kv_num_heads=self.config.n_head,
            do_rotary=1,
            rotary_interleaved=1,
            _outputs=3,
        )
        self.present.append((key, value))
        return output

    def add_outputs(self) -> None:
        """The cache's outputs, after the last layer is written."""
        for i, (key, value) in enumerate(self.present):
            self.writer.output(key, names.present_key(i), self.writer.dtype, self.cache_shape)
            self.writer.output(value, names.present_value(i), self.writer.dtype, self.cache_shape)


SPELLINGS = {"ort": OrtSpelling}


def decoder_graph(
    config: TransformerConfig, weights: Mapping[str, Tensor], precision: str = "fp32", spelling: str = "ort"
) -> ir.Model:
    """The decoder's graph; weights are read when it is saved.

    Inputs: tokens int32 [B, S]; prefix float32, broadcast against [B, S, D], taken where a token is negative;
    logit_positions int32 [K], which of the S positions get logits; the spelling's own, the cache among them.
    Outputs: logits float32 [B, K, V]; the spelling's cache.

    Args:
        weights: a transformer's tensors by their official names (`checkpoint_reader.read_transformer`).
        precision: a key of `PRECISIONS`.
        spelling: a key of `SPELLINGS`.
    """
    Spelling = SPELLINGS[spelling]
    writer = GraphWriter("decoder", Spelling.opsets, weights, PRECISIONS[precision])
    op = writer.op
    tokens = writer.input(names.TOKENS, INT32, [ROWS, POSITIONS])
    prefix = writer.input(names.PREFIX, FLOAT, ["prefix_rows", "prefix_positions", config.dim])
    logit_positions = writer.input(names.LOGIT_POSITIONS, INT32, ["logit_positions"])
    target = Spelling(writer, config, tokens)

    zero = writer.constant(0, np.int32, "zero")
    embedded = op.Gather(writer.weight("tok_embeddings.weight"), op.Max(tokens, zero))
    is_prefix = op.Unsqueeze(op.Less(tokens, zero), writer.constant([2], np.int64, "last_axis"))  # [B, S, 1]
    hidden = op.Where(is_prefix, prefix, writer.float32(embedded))  # [B, S, D], the residual stream

    fed = None  # what the layer before adds to the residual stream
    for layer in range(config.n_layer):
        with writer.scope(f"layers.{layer}"):
            norm = writer.norm_weight("attention_norm.weight")
            if fed is None:
                normalized = target.normalize(hidden, norm)
            else:
                hidden, normalized = target.add_and_normalize(hidden, fed, norm)
            qkv = writer.linear(writer.stored(normalized), "attention.wqkv.weight")
            attended = writer.float32(writer.linear(target.attend(layer, qkv), "attention.wo.weight"))
            if layer == config.n_layer - 1:  # the cache is complete: go on with what gets logits
                hidden, attended = (op.Gather(value, logit_positions, axis=1) for value in (hidden, attended))
            hidden, normalized = target.add_and_normalize(hidden, attended, writer.norm_weight("ffn_norm.weight"))
            normalized = writer.stored(normalized)
            gate = target.silu(writer.linear(normalized, "feed_forward.w1.weight"))
            up = writer.linear(normalized, "feed_forward.w3.weight")
            fed = writer.float32(writer.linear(op.Mul(gate, up), "feed_forward.w2.weight"))

    assert fed is not None  # a model has layers
    _, normalized = target.add_and_normalize(hidden, fed, writer.norm_weight("norm.weight"))
    logits = op.MatMul(normalized, writer.float32(writer.weight("output.weight", transposed=True)))
    writer.output(logits, names.LOGITS, FLOAT, [ROWS, "logit_positions", config.vocab_size])
    target.add_outputs()
    return writer.model()


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
