"""The dialect "ort": ONNX Runtime's own operators.

The cache is updated in place if past and present are the same buffer.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from editar_rt import names
from editar_rt.bundle.words import INT8
from editar_rt.errors import OptionError
from export.dialects.base import CacheTensors, Scales, scale_names
from export.graph_writer import INT32, GraphWriter
from export.precision import Storage
from training.config import TransformerConfig
from training.models.rotary import rotary_table

QUERY_SEQLENS = 16  # GroupQueryAttention's input with the lengths of the rows' chunks
PER_TENSOR = "PER_TENSOR"  # GroupQueryAttention's value for one scale per layer for keys, and one for values


def choose(storage: Storage) -> type[OrtDialect]:
    """The class that writes a decoder with this storage."""
    return OrtDialect


def add_chunk_lengths(model: ir.Model) -> None:
    """Give a decoder of this dialect the input chunk_lengths [B].

    Without it, the operator takes several positions behind a past for one row only. ONNX Runtime before 1.32 does not
    have it, so a bundle has a graph without it as well; both read the same weights.
    """
    lengths = ir.Value(name=names.CHUNK_LENGTHS, type=ir.TensorType(INT32), shape=ir.Shape([names.ROWS_DIM]))
    model.graph.inputs.append(lengths)
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            node.resize_inputs(QUERY_SEQLENS + 1)
            node.replace_input_with(QUERY_SEQLENS, lengths)


class OrtDialect:
    """One operator for rotation, cache and attention, and one for sum and normalization.

    Extra inputs: past_length [B] and total_length [], the largest past_length + S. The operator needs total_length on
    the host, even on a GPU, so it is not computed in the graph. For CUDA, last_row [B] replaces past_length: if it were
    computed from a shape, it would be on the host and be copied, which prevents a CUDA graph of a step.
    """

    opsets: ClassVar = {"": 17, "com.microsoft": 1}
    ir_version: ClassVar = 10

    @staticmethod
    def check(config: TransformerConfig) -> None:
        if config.head_dim % 16:
            raise OptionError(
                f"the dialect ort needs a head width that is a multiple of 16; this transformer's is {config.head_dim} "
                f"({config.dim} / {config.n_head} heads)"
            )

    def __init__(
        self, writer: GraphWriter, config: TransformerConfig, tokens: ir.Value, storage: Storage, scales: Scales
    ) -> None:
        self.writer, self.config, self.storage = writer, config, storage
        self.op = writer.op
        self.microsoft = writer.builder.opset("com.microsoft", 1)
        # The operator needs the index, from 0, of the last position after this chunk.
        if storage.provider == "cuda":
            self.last_row = writer.input(names.LAST_ROW, INT32, [names.ROWS_DIM])
        else:
            past_length = writer.input(names.PAST_LENGTH, INT32, [names.ROWS_DIM])
            positions = self.op.Cast(self.op.Shape(tokens, start=1, end=2), to=INT32)  # [1] = S
            self.last_row = self.op.Sub(self.op.Add(past_length, positions), writer.constant([1], np.int32, "one"))
        self.total_length = writer.input(names.TOTAL_LENGTH, INT32, [])
        # Both tables are zero at text positions, which zeroes queries and keys there, as in training.
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
