"""The interface of a dialect: the part of a decoder's graph that differs between targets.

`decoder_graph` writes the part that all targets share. Each of the other modules of this package is a dialect, with a
function `choose(storage)` that returns its class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

import onnx_ir as ir

from editar_rt import names
from export.graph_writer import GraphWriter
from export.precision import Storage
from training.config import TransformerConfig

Scales = Sequence[tuple[float, float]]  # of keys and values, by layer


def scale_names(layer: int) -> tuple[str, str]:
    """Names of the constants with an int8 cache's scales: keys, values."""
    return f"key_scale.{layer}", f"value_scale.{layer}"


class Dialect(Protocol):
    """Writes the operators that differ between targets: normalization, rotation, attention and the cache."""

    opsets: ClassVar[dict[str, int]]
    ir_version: ClassVar[int]

    def __init__(
        self, writer: GraphWriter, config: TransformerConfig, tokens: ir.Value, storage: Storage, scales: Scales
    ) -> None: ...

    @staticmethod
    def check(config: TransformerConfig) -> None:
        """Reject sizes that the operators do not support."""

    def normalize(self, hidden: ir.Value, weight: ir.Value) -> ir.Value:
        """RMSNorm of hidden [B, S, D]."""

    def add_and_normalize(self, hidden: ir.Value, addend: ir.Value, weight: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The sum, and its RMSNorm, [B, S, D] each."""

    def silu(self, value: ir.Value) -> ir.Value:
        """x · sigmoid(x)."""

    def attend(self, layer: int, qkv: ir.Value) -> ir.Value:
        """Attention: concatenated queries, keys and values [B, S, 3 D] -> output of the heads [B, S, D]."""

    def add_outputs(self) -> None:
        """Add the cache's outputs, after the last layer."""


class BasicOperators(ABC):
    """What a dialect composes from basic operators if it has no fused ones."""

    def __init__(self, writer: GraphWriter) -> None:
        self.writer, self.op = writer, writer.op

    @abstractmethod
    def normalize(self, hidden: ir.Value, weight: ir.Value) -> ir.Value:
        """See `Dialect`."""

    def add_and_normalize(self, hidden: ir.Value, addend: ir.Value, weight: ir.Value) -> tuple[ir.Value, ir.Value]:
        total = self.op.Add(hidden, addend)
        return total, self.normalize(total, weight)

    def silu(self, value: ir.Value) -> ir.Value:
        return self.op.Mul(value, self.op.Sigmoid(value))


class CacheTensors:
    """The inputs and outputs of a cache that is updated in place, [B, H, capacity, head_dim] each."""

    def __init__(
        self,
        writer: GraphWriter,
        config: TransformerConfig,
        dtype: ir.DataType,
        capacity: int | str = names.CAPACITY_DIM,
    ) -> None:
        self.writer, self.dtype = writer, dtype
        self.shape: list[int | str] = [names.ROWS_DIM, config.n_head, capacity, config.head_dim]
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
