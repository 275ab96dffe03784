"""The dialect "standard": standard ONNX operators of a recent opset.

The cache is updated in place if past and present are the same buffer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from editar_rt import names
from export.dialects.base import BasicOperators, CacheTensors, Scales
from export.graph_writer import INT32, INT64, GraphWriter
from export.precision import Storage
from training.config import TransformerConfig
from training.models.rotary import rotary_table


def choose(storage: Storage) -> type[StandardDialect]:
    """The class that writes a decoder with this storage."""
    return StandardDialect


class StandardDialect(BasicOperators):
    """Standard ONNX operators, opset 24.

    Extra input: past_length [B]. Attention uses an explicit mask, because `is_causal` counts from the first position of
    the cache in some runtimes and from the last in others.
    """

    opsets: ClassVar = {"": 24}
    ir_version: ClassVar = 11

    @staticmethod
    def check(config: TransformerConfig) -> None:
        """Supports every size."""

    def __init__(
        self, writer: GraphWriter, config: TransformerConfig, tokens: ir.Value, storage: Storage, scales: Scales
    ) -> None:
        super().__init__(writer)
        self.config, op = config, self.op
        self.past_length = op.Cast(writer.input(names.PAST_LENGTH, INT32, [names.ROWS_DIM]), to=INT64)
        self.cache = self.add_cache(storage.cache_type)
        self.cos, self.sin = (
            writer.stored_constant(table, name)
            for table, name in zip(self.rotary_tables(), ("rotary_cos", "rotary_sin"))
        )
        self.positions, self.mask = self.positions_and_mask(tokens)
        self.split = writer.constant([config.dim] * 3, np.int64, "qkv_sizes")
        self.by_head = writer.constant([0, 0, config.n_head, config.head_dim], np.int64, "by_head")
        self.in_one = writer.constant([0, 0, config.dim], np.int64, "in_one")

    def add_cache(self, dtype: ir.DataType) -> CacheTensors:
        """The cache's inputs."""
        return CacheTensors(self.writer, self.config, dtype)

    def rotary_tables(self) -> Iterable[np.ndarray]:
        """Cosines and sines by position, [positions, head_dim / 2] each."""
        return rotary_table(self.config)

    def positions_and_mask(self, tokens: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Positions in the sequence, int64 [B, S], and the cached positions that each of them sees, bool [B, 1, S,
        capacity]."""
        op, constant = self.op, self.writer.constant
        zero, one = (constant(value, np.int64, name) for value, name in ((0, "start"), (1, "increment")))
        last, second = (constant([axis], np.int64, name) for axis, name in ((1, "axis_1"), (2, "axis_2")))

        def count(value: ir.Value, axis: int) -> ir.Value:  # 0, 1, …, one less than the dimension
            size = op.Squeeze(op.Shape(value, start=axis, end=axis + 1))
            return op.Range(zero, size, one)

        positions = op.Add(op.Unsqueeze(self.past_length, last), count(tokens, 1))
        seen = op.LessOrEqual(count(self.cache.past[0][0], 2), op.Unsqueeze(positions, second))
        return positions, op.Unsqueeze(seen, last)

    def normalize(self, hidden: ir.Value, weight: ir.Value) -> ir.Value:
        return self.op.RMSNormalization(hidden, weight, axis=-1, epsilon=self.config.norm_eps)

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
