"""What differs between the targets of a decoder's graph, as an interface: a dialect.

`decoder_graph` writes what all targets share; the other modules of this package are what it can be written in. Each has
a function `choose(storage)` that gives its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import onnx_ir as ir

from editar_rt import names
from export.graph_writer import GraphWriter
from export.precision import Storage
from training.config import TransformerConfig

Scales = Sequence[tuple[float, float]]  # of keys and values, by layer


def scale_names(layer: int) -> tuple[str, str]:
    """Constants of an int8 cache's scales: of keys, of values."""
    return f"key_scale.{layer}", f"value_scale.{layer}"


class Dialect(Protocol):
    """Writes what differs between targets: normalization, rotation, attention and the cache."""

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


class CacheTensors:
    """The inputs and outputs of a cache that is updated in place, [B, H, capacity, head_dim] each."""

    def __init__(self, writer: GraphWriter, config: TransformerConfig, dtype: ir.DataType) -> None:
        self.writer, self.dtype = writer, dtype
        self.shape: list[int | str] = [names.ROWS_DIM, config.n_head, names.CAPACITY_DIM, config.head_dim]
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
