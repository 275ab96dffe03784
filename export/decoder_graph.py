"""The transformer as two ONNX graphs, written op by op from the checkpoint's tensors: the decoder and its prefix.

Prefill, chunks of known tokens and single steps use the same graph: S positions enter at `past_length`, read the cache
up to there and extend it. The graph is written by hand, because a traced cache update would copy the whole cache in
each step.

`decoder_graph` contains the operators that all targets share: embedding, projections, feed-forward, logits. A *dialect*
contains those that differ between targets: normalization, rotation, attention and the cache.

- "ort": ONNX Runtime's own operators. They work in place, and only on the cached positions.
- "standard": ONNX opset 24 only, for any runtime that supports it. Work grows with the capacity.
- "delta": basic operators of opset 17, for TensorRT 8.5 and later (opset 21 with INT4 weights, for 10.0 and later). The
  graph returns the new keys and values, and the runtime writes them to the cache.
- "native": "standard" with a cache of fixed capacity, for TensorRT 10.15 and later and for TensorRT for RTX.

`export.precision` decides the stored types.

Shapes in comments: B rows, S positions, K positions that get logits, N tokens of a picture, D the model's width,
H heads, V vocabulary, T text positions, C the text encoder's width.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from torch import Tensor

from editar_rt import names
from export.dialects.base import Dialect, Scales
from export.graph_writer import FLOAT, FLOAT16, INT32, GraphWriter
from export.precision import Storage
from training.config import TransformerConfig


def dialect_of(storage: Storage) -> type[Dialect]:
    """The class that writes a decoder with this storage, from the dialect's module."""
    module = importlib.import_module(f"export.dialects.{storage.dialect}")
    chosen: type[Dialect] = module.choose(storage)
    return chosen


def decoder_graph(
    config: TransformerConfig, weights: Mapping[str, Tensor], storage: Storage, scales: Scales = ()
) -> ir.Model:
    """The decoder's graph; weights are read when it is saved.

    Inputs: tokens int32 [B, S]; prefix float32, broadcast to [B, S, D], used where a token is negative; logit_positions
    int32 [K], the positions that get logits; the dialect's own inputs, including the cache.
    Outputs: logits float32 [B, K, V]; the dialect's cache.

    Args:
        weights: a transformer's tensors by their official names (`checkpoint_reader.read_transformer`).
        scales: of an int8 cache, a pair per layer (`calibration.cache_scales`).
    """
    numbers, dialect = storage.numbers, dialect_of(storage)
    writer = GraphWriter("decoder", dialect.opsets, weights, numbers.stored)
    op = writer.op
    tokens = writer.input(names.TOKENS, INT32, [names.ROWS_DIM, names.POSITIONS_DIM])
    prefix = writer.input(names.PREFIX, FLOAT, [names.PREFIX_ROWS_DIM, names.PREFIX_POSITIONS_DIM, config.dim])
    logit_positions = writer.input(names.LOGIT_POSITIONS, INT32, [names.WANTED_DIM])
    target = dialect(writer, config, tokens, storage, scales)

    zero = writer.constant(0, np.int32, "zero")
    # Rows are looked up, not multiplied: integer matmuls would not keep more than 16 bits.
    table_type = FLOAT16 if numbers.blocks else writer.dtype
    embedded = op.Gather(writer.weight("tok_embeddings.weight", dtype=table_type), op.Max(tokens, zero))
    if table_type != FLOAT:
        embedded = op.Cast(embedded, to=FLOAT)
    is_prefix = op.Unsqueeze(op.Less(tokens, zero), writer.constant([2], np.int64, "last_axis"))  # [B, S, 1]
    hidden = op.Where(is_prefix, prefix, embedded)  # [B, S, D], the residual stream

    def linear(value: ir.Value, name: str) -> ir.Value:
        return writer.linear(value, name, numbers.blocks)

    fed = None  # output of the previous layer's feed-forward, not yet added to the residual stream
    for layer in range(config.n_layer):
        with writer.scope(f"layers.{layer}"):
            norm = writer.norm_weight("attention_norm.weight")
            if fed is None:
                normalized = target.normalize(hidden, norm)
            else:
                hidden, normalized = target.add_and_normalize(hidden, fed, norm)
            qkv = linear(writer.stored(normalized), "attention.wqkv.weight")
            attended = writer.float32(linear(target.attend(layer, qkv), "attention.wo.weight"))
            if layer == config.n_layer - 1:  # the cache is complete: continue with the positions that get logits
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
    writer.output(logits, names.LOGITS, FLOAT, [names.ROWS_DIM, names.WANTED_DIM, config.vocab_size])
    target.add_outputs()
    return writer.model(dialect.ir_version)


def prefix_graph(config: TransformerConfig, weights: Mapping[str, Tensor]) -> ir.Model:
    """The graph of the decoder's inputs that are not tokens: the projected text and the unconditional embeddings.

    Input: text_states float32 [B, T, C]. Outputs, float32: text_prefix [B, T, D]; null_text_prefix [1, T, D], the
    unconditional text after the same projection; null_picture_prefix [1, N, D]. It is small, so it stays float32.

    Args:
        weights: as in `decoder_graph`.
    """
    writer = GraphWriter("prefix", {"": 17}, weights, FLOAT)
    op = writer.op
    text_states = writer.input(names.TEXT_STATES, FLOAT, [names.ROWS_DIM, config.cls_token_num, config.caption_dim])
    half, one, cubic, inner = (
        writer.constant(value, np.float32, f"gelu.{name}")
        for name, value in (("half", 0.5), ("one", 1), ("cubic", 0.044715), ("inner", math.sqrt(2 / math.pi)))
    )

    def uncond(name: str) -> ir.Value:  # [1, positions, width]
        return op.Reshape(writer.weight(name), writer.constant([1, *weights[name].shape], np.int64, f"{name}.shape"))

    def gelu(x: ir.Value) -> ir.Value:  # in its tanh form, x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))
        bent = op.Mul(x, op.Add(one, op.Mul(cubic, op.Mul(x, x))))
        return op.Mul(op.Mul(half, x), op.Add(one, op.Tanh(op.Mul(inner, bent))))

    uncond_states = uncond("cls_embedding.uncond_embedding")
    with writer.scope("cls_embedding.cap_proj"):
        widen, mix = (writer.weight(name, transposed=True) for name in ("fc1.weight", "fc2.weight"))
        text, uncond_text = (op.MatMul(gelu(op.MatMul(states, widen)), mix) for states in (text_states, uncond_states))
    uncond_picture = uncond("img_uncond_embedding")
    text_shape = (config.cls_token_num, config.dim)
    writer.output(text, names.TEXT_PREFIX, FLOAT, [names.ROWS_DIM, *text_shape])
    writer.output(uncond_text, names.NULL_TEXT_PREFIX, FLOAT, [1, *text_shape])
    writer.output(uncond_picture, names.NULL_PICTURE_PREFIX, FLOAT, [1, config.block_size, config.dim])
    return writer.model(ir_version=8)
