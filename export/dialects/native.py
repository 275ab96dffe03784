"""The dialect "native": the operators of "standard" with a cache of fixed capacity, for TensorRT 10.15 and later.

TensorRT for RTX reads it too. TensorScatter becomes TensorRT's KVCacheUpdate, which writes to its input: past and
present have the same address, and no step copies the cache. Attention becomes one fused kernel. As in "delta", rows,
positions and logit positions are symbolic, everything else is fixed, and no operator computes a shape.

The update writes every position of a chunk, also the padding behind it. The cache therefore has room for more positions
than a sequence has, which are never read: `ROOM`, or a text's chunk if that is longer.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from editar_rt import names
from export.dialects.base import CacheTensors
from export.dialects.standard import StandardDialect
from export.graph_writer import INT32, INT64
from export.precision import Storage
from training.config import TransformerConfig
from training.models.rotary import rotary_table

ROOM = 64  # positions for padding, at least
STEP = 64  # capacities are multiples: what attention kernels read at once


def capacity(config: TransformerConfig) -> int:
    """Capacity of the cache: a complete sequence and room for the padding behind a chunk."""
    return -(-(config.max_positions + max(ROOM, config.cls_token_num)) // STEP) * STEP


def choose(storage: Storage) -> type[NativeDialect]:
    """The class that writes a decoder with this storage."""
    return NativeDialect


class NativeDialect(StandardDialect):
    """See the module's docstring.

    Extra inputs: past_length int32 [B], where the chunk is written; positions int32 [B, S], positions in the sequence,
    which see the cached ones up to themselves.
    """

    def add_cache(self, dtype: ir.DataType) -> CacheTensors:
        return CacheTensors(self.writer, self.config, dtype, capacity(self.config))

    def rotary_tables(self) -> Iterable[np.ndarray]:
        """With rows for the padding, which are not rotated."""
        for table in rotary_table(self.config):
            yield np.pad(np.asarray(table), ((0, capacity(self.config) - len(table)), (0, 0)))

    def positions_and_mask(self, tokens: ir.Value) -> tuple[ir.Value, ir.Value]:
        op, writer = self.op, self.writer
        positions = writer.input(names.POSITIONS, INT32, [names.ROWS_DIM, names.POSITIONS_DIM])
        places = writer.constant(np.arange(capacity(self.config)), np.int32, "places")
        axes = writer.constant([1, 3], np.int64, "axes_1_3")
        seen = op.LessOrEqual(places, op.Unsqueeze(positions, axes))  # [B, 1, S, capacity]
        return op.Cast(positions, to=INT64), seen
