"""The dialect "delta": basic operators of opset 17, for TensorRT 8.5 and later.

The graph reads the cache and returns only the chunk's own keys and values; the runtime writes them to the cache. No
operator writes to its input, so a runtime need not guarantee where its results are stored.

One graph runs everything: the prefill of the picture, the prefill of the text after a cached picture, a chunk of known
tokens, and a single step. Rows, positions and logit positions are symbolic, everything else is fixed, and no operator
computes a shape: once the builder sets the sizes of the inputs, all shapes are static. ONNX Runtime runs the same file.
A separate graph for prefills would save the scores against an empty cache, but it would be a second definition to
maintain.

Scores against the cache and against the chunk are concatenated, masked ones lowered by `HIDDEN`, and normalized
together in float32. Cache contents after `past_length` get weight 0, so they must be finite: zero the cache once.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from editar_rt import names
from editar_rt.backends.engines.device import ALIGNMENT
from export.dialects.base import BasicOperators, Scales
from export.graph_writer import INT32, GraphWriter
from export.precision import Storage
from training.config import TransformerConfig
from training.models.rotary import rotary_table

HIDDEN = -1e30  # added to a score, it makes the weight 0 and stays finite
REST = np.iinfo(np.int32).max  # end of a slice: to the last one


def capacity(config: TransformerConfig, dtype: ir.DataType) -> int:
    """Capacity of the cache: a complete sequence, rounded up so that the keys of every head are aligned."""
    step = ALIGNMENT // math.gcd(ALIGNMENT, int(config.head_dim * dtype.itemsize))
    return -(-config.max_positions // step) * step


def choose(storage: Storage) -> type[DeltaDialect]:
    """The class that writes a decoder with this storage."""
    return QuantizedDeltaDialect if storage.numbers.blocks is not None else DeltaDialect


class DeltaDialect(BasicOperators):
    """See the module's docstring.

    Extra inputs: positions int32 [B, S], positions in the sequence, of padding any up to the capacity; past_length
    int32 [B], number of cached positions; past_key_i and past_value_i [B, H, capacity, head_dim]. Extra output:
    new_rows [2 · layers, B, H, S, head_dim], keys and then values of each layer.
    """

    opsets: ClassVar = {"": 17}
    ir_version: ClassVar = 8  # of opset 17

    @staticmethod
    def check(config: TransformerConfig) -> None:
        """Supports every size."""

    def __init__(
        self, writer: GraphWriter, config: TransformerConfig, tokens: ir.Value, storage: Storage, scales: Scales
    ) -> None:
        super().__init__(writer)
        self.config, self.dtype, op = config, storage.cache_type, self.op
        rows = capacity(config, self.dtype)
        shape: list[int | str] = [names.ROWS_DIM, config.n_head, rows, config.head_dim]
        positions = writer.input(names.POSITIONS, INT32, [names.ROWS_DIM, names.POSITIONS_DIM])
        past_length = writer.input(names.PAST_LENGTH, INT32, [names.ROWS_DIM])
        self.past = [
            (writer.input(names.past_key(i), self.dtype, shape), writer.input(names.past_value(i), self.dtype, shape))
            for i in range(config.n_layer)
        ]
        self.new: list[ir.Value] = []

        pairs = config.head_dim // 2
        tables = np.zeros((2, rows + 1, 1, pairs, 1), np.float32)  # the last row is for padding
        for table, values in zip(tables, rotary_table(config)):
            table[: len(values), 0, :, 0] = values
        self.cos, self.sin = (  # [B, S, 1, pairs, 1]
            op.Gather(writer.constant(table, np.float32, name), positions)
            for table, name in zip(tables, ("rotary_cos", "rotary_sin"))
        )

        def axes(*values: int) -> ir.Value:
            return self._integers(f"axes_{'_'.join(map(str, values))}", *values)

        places = writer.constant(np.arange(rows).reshape(1, 1, 1, rows), np.int32, "places")
        filled = op.Less(places, op.Unsqueeze(past_length, axes(1, 2, 3)))  # [B, 1, 1, capacity]
        causal = op.LessOrEqual(  # [B, 1, S, S], the new key is not after the query
            op.Unsqueeze(positions, axes(1, 2)), op.Unsqueeze(positions, axes(1, 3))
        )
        shown, hidden = (writer.constant(v, np.float32, name) for v, name in ((0, "shown"), (HIDDEN, "hidden")))
        self.lowered_past, self.lowered_new = (op.Where(seen, shown, hidden) for seen in (filled, causal))

        self.sizes = self._integers("qk_v_sizes", 2 * config.dim, config.dim)
        self.by_pair = self._integers("by_pair", 0, 0, 2 * config.n_head, pairs, 2)
        self.by_head = self._integers("by_head", 0, 0, -1, config.head_dim)
        self.halves = self._integers("halves", config.n_head, config.n_head)
        self.ones = self._integers("ones", 1, 1)
        self.in_one = self._integers("in_one", 0, 0, config.dim)
        self.start, self.border, self.rest, self.last = (
            self._integers(name, value) for name, value in (("start", 0), ("border", rows), ("rest", REST), ("last", 3))
        )
        self.first = axes(0)
        self.scale = writer.constant(config.head_dim**-0.5, np.float32, "score_scale")
        self.epsilon = writer.constant(config.norm_eps, np.float32, "norm_epsilon")

    def _integers(self, name: str, *values: int) -> ir.Value:
        # Shapes, axes and bounds are int64 in ONNX; TensorRT reads such constants when it parses.
        return self.writer.constant(list(values), np.int64, name)

    def mean(self, values: ir.Value) -> ir.Value:
        """Mean over the last axis, which is kept."""
        return self.op.ReduceMean(values, axes=[-1])

    def normalize(self, hidden: ir.Value, weight: ir.Value) -> ir.Value:
        op = self.op
        mean_square = self.mean(op.Mul(hidden, hidden))
        return op.Mul(op.Div(hidden, op.Sqrt(op.Add(mean_square, self.epsilon))), weight)

    def attend(self, layer: int, qkv: ir.Value) -> ir.Value:
        op, stored, float32 = self.op, self.writer.stored, self.writer.float32
        queries_keys, values = op.Split(qkv, self.sizes, axis=-1, _outputs=2)
        turned = self._rotate(float32(op.Reshape(queries_keys, self.by_pair)))  # [B, S, 2 H, head_dim]
        queries, keys = op.Split(turned, self.halves, axis=2, _outputs=2)
        query, key, value = (
            op.Transpose(part, perm=[0, 2, 1, 3])  # [B, H, S, head_dim]
            for part in (stored(op.Mul(queries, self.scale)), stored(keys), op.Reshape(values, self.by_head))
        )
        self.new += [key, value]
        past_key, past_value = self.past[layer]
        scores = [
            op.Add(float32(op.MatMul(query, op.Transpose(which, perm=[0, 1, 3, 2]))), lowered)
            for which, lowered in ((past_key, self.lowered_past), (key, self.lowered_new))
        ]
        weights = stored(op.Softmax(op.Concat(*scores, axis=-1), axis=-1))  # [B, H, S, capacity + S]
        of_past = op.Slice(weights, self.start, self.border, self.last)
        of_new = op.Slice(weights, self.border, self.rest, self.last)
        read = op.Add(float32(op.MatMul(of_past, past_value)), float32(op.MatMul(of_new, value)))
        return op.Reshape(op.Transpose(stored(read), perm=[0, 2, 1, 3]), self.in_one)

    def _rotate(self, pairs: ir.Value) -> ir.Value:
        """[B, S, heads, pairs, 2] -> [B, S, heads, head_dim], each pair rotated by its position's angle."""
        op = self.op
        even, odd = op.Split(pairs, self.ones, axis=-1, _outputs=2)
        turned = (
            op.Sub(op.Mul(even, self.cos), op.Mul(odd, self.sin)),
            op.Add(op.Mul(even, self.sin), op.Mul(odd, self.cos)),
        )
        return op.Reshape(op.Concat(*turned, axis=-1), self.by_head)

    def add_outputs(self) -> None:
        layers = [self.op.Unsqueeze(value, self.first) for value in self.new]
        shape: list[int | str] = [
            len(self.new),
            names.ROWS_DIM,
            self.config.n_head,
            names.POSITIONS_DIM,
            self.config.head_dim,
        ]
        self.writer.output(self.op.Concat(*layers, axis=0), names.NEW_ROWS, self.dtype, shape)


class QuantizedDeltaDialect(DeltaDialect):
    """The dialect with quantized weights of opset 21, for TensorRT 10 and later; one operator differs."""

    opsets: ClassVar = {"": 21}
    ir_version: ClassVar = 10  # of opset 21

    def __init__(
        self, writer: GraphWriter, config: TransformerConfig, tokens: ir.Value, storage: Storage, scales: Scales
    ) -> None:
        super().__init__(writer, config, tokens, storage, scales)
        self.width = self._integers("axis_width", -1)

    def mean(self, values: ir.Value) -> ir.Value:
        return self.op.ReduceMean(values, self.width)  # axes are no longer an attribute
