"""Writes ONNX graphs operator by operator, with weights that are read only when the graph is saved."""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import ArrayLike, DTypeLike
from onnxscript import GraphBuilder
from torch import Tensor

from editar_rt import names
from editar_rt.bundle.words import WHOLE, Blocks
from export.precision import integers_of, quantize, quantize_outputs

FLOAT = ir.DataType.FLOAT
FLOAT16 = ir.DataType.FLOAT16
BFLOAT16 = ir.DataType.BFLOAT16
INT32 = ir.DataType.INT32
INT64 = ir.DataType.INT64
INT4 = ir.DataType.INT4
INT8 = ir.DataType.INT8
FLOAT8 = ir.DataType.FLOAT8E4M3FN
TORCH_TYPES = {FLOAT: torch.float32, FLOAT16: torch.float16, BFLOAT16: torch.bfloat16}


class GraphWriter:
    """A graph being written: the builder, the available weights and their stored type.

    Args:
        opsets: version of every operator domain.
        weights: tensors by checkpoint name; read when the graph is saved, one at a time.
        dtype: of stored weights and of matmuls.
    """

    def __init__(self, name: str, opsets: Mapping[str, int], weights: Mapping[str, Tensor], dtype: ir.DataType) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports=dict(opsets), name=name)
        self.builder = GraphBuilder(self.graph)
        self.op = self.builder.op
        self.weights = weights
        self.dtype = dtype
        self.scopes: list[str] = []

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of weights and nodes that are created inside with `name`."""
        self.scopes.append(name)
        self.builder.push_module(name)
        yield
        self.builder.pop_module()
        self.scopes.pop()

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        return self.builder.input(name, dtype, shape)

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        value.dtype, value.shape = dtype, ir.Shape(shape)
        self.builder.add_output(value, name)

    def constant(self, values: ArrayLike, dtype: DTypeLike, name: str) -> ir.Value:
        return self.builder.initializer(ir.tensor(np.asarray(values, dtype), name=name))

    def stored_constant(self, values: ArrayLike, name: str) -> ir.Value:
        """A constant of the stored type."""
        return self.constant(values, self.dtype.numpy(), name)

    def source(self, name: str) -> Tensor:
        """A weight of the checkpoint, by its name within the current scope."""
        return self.weights[".".join([*self.scopes, name])]

    def lazy(self, name: str, dtype: ir.DataType, shape: Sequence[int], load: Callable[[], np.ndarray]) -> ir.Value:
        """An initializer whose values are computed when the graph is saved."""

        def tensor() -> ir.TensorProtocol:
            return ir.Tensor(load(), dtype=dtype, name=name)

        return self.builder.initializer(ir.LazyTensor(tensor, dtype=dtype, shape=ir.Shape(shape), name=name))

    def weight(self, name: str, transposed: bool = False, dtype: ir.DataType | None = None) -> ir.Value:
        """A weight in `dtype`, by default the stored type."""
        source, stored = self.source(name), dtype or self.dtype

        def load() -> np.ndarray:
            tensor = source.to(TORCH_TYPES[stored])
            tensor = (tensor.t() if transposed else tensor).contiguous()
            if stored == BFLOAT16:  # NumPy has no bfloat16
                return tensor.view(torch.uint16).numpy().view(stored.numpy())
            return tensor.numpy()

        return self.lazy(name, stored, tuple(reversed(source.shape)) if transposed else tuple(source.shape), load)

    def norm_weight(self, name: str) -> ir.Value:
        """A normalization's weight: float32 in every precision."""
        return self.constant(self.source(name).float().numpy(), np.float32, name)

    def stored(self, value: ir.Value) -> ir.Value:
        """Cast a float32 value to the stored type."""
        return value if self.dtype == FLOAT else self.op.Cast(value, to=self.dtype)

    def float32(self, value: ir.Value) -> ir.Value:
        """Cast a value of the stored type to float32."""
        return value if self.dtype == FLOAT else self.op.Cast(value, to=FLOAT)

    def linear(self, value: ir.Value, name: str, blocks: Blocks | None = None) -> ir.Value:
        """Matmul of [..., in] and the weight [out, in], which is quantized if `blocks` is given.

        Quantized weights are multiplied by ONNX Runtime's operator if the graph may contain it, otherwise dequantized
        by ONNX's. In the latter case, a weight that does not fill its last block is not quantized, because TensorRT
        does not document such weights.
        """
        by_onnx = "com.microsoft" not in self.graph.opset_imports
        if blocks is None or (by_onnx and blocks.block != WHOLE and self.source(name).shape[1] % blocks.block):
            return self.op.MatMul(value, self.weight(name, transposed=True))
        if by_onnx:
            return self.op.MatMul(value, self._dequantized(name, blocks))
        features, size = self.source(name).shape
        count = -(-size // blocks.block)
        packed, scales = self._both(name, lambda weight: quantize(weight, blocks))
        return self.builder.opset("com.microsoft", 1).MatMulNBits(
            value,
            self.lazy(name, ir.DataType.UINT8, (features, count, blocks.block * blocks.bits // 8), packed),
            self.lazy(f"{name}.scales", self.dtype, (features, count), scales),
            K=size,
            N=features,
            bits=blocks.bits,
            block_size=blocks.block,
            accuracy_level=4,  # multiply as int8; the activations of a row are quantized in blocks too
        )

    def _dequantized(self, name: str, blocks: Blocks) -> ir.Value:
        """A weight [in, out] in the stored type, from small numbers and their scales."""
        features, size = self.source(name).shape
        if blocks.block == WHOLE:
            dtype = FLOAT8 if blocks.is_float else INT8
            numbers, scales = self._both(name, lambda weight: quantize_outputs(weight, dtype))
            return self.op.DequantizeLinear(
                self.lazy(name, dtype, (size, features), numbers),
                self.lazy(f"{name}.scales", self.dtype, (features,), scales),
                axis=1,
            )

        def by_block(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            packed, scales = quantize(weight, blocks)
            whole = integers_of(packed, blocks.bits).reshape(features, size)
            return np.ascontiguousarray(whole.T).astype(INT4.numpy()), np.ascontiguousarray(scales.T)

        numbers, scales = self._both(name, by_block)
        return self.op.DequantizeLinear(
            self.lazy(name, INT4, (size, features), numbers),
            self.lazy(f"{name}.scales", self.dtype, (size // blocks.block, features), scales),
            axis=0,
            block_size=blocks.block,
        )

    def _both(
        self, name: str, quantized: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    ) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
        """Functions that load a weight's small numbers and its scales; it is quantized once, and then forgotten.

        Args:
            quantized: both, for a weight [in, out].
        """
        source = self.source(name)

        @functools.lru_cache(1)  # they are saved one after the other
        def both() -> tuple[np.ndarray, np.ndarray]:
            return quantized(source.float().t().contiguous().numpy())

        def scales() -> np.ndarray:
            values = both()[1].astype(self.dtype.numpy())
            both.cache_clear()
            return values

        return lambda: both()[0], scales

    def model(self, ir_version: int = 10) -> ir.Model:
        """The finished model."""
        mark_precisions(self.graph)
        return without_traces(ir.Model(self.graph, ir_version=ir_version))


def without_traces(model: ir.Model) -> ir.Model:
    """Remove the traces of the export: the builders' bookkeeping, source lines, paths of this machine."""
    model.producer_name, model.producer_version = "editar-rt", None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    return model


def mark_precisions(graph: ir.Graph) -> None:
    """Prefix the name of every node that returns floats with their type.

    A weakly typed builder (TensorRT 8) may compute any layer in any type; the names tell it the graph's types.
    """
    marks = {FLOAT: names.FP32_NODE, FLOAT16: names.FP16_NODE}
    for node in graph:
        dtype = node.outputs[0].dtype
        if dtype in marks:
            node.name = f"{marks[dtype]}{node.name}"


def save(model: ir.Model, path: Path) -> None:
    """Write a graph to `path` and its weights to `<path>.data`, and release the weights. Can be called only once."""
    # Page-aligned, so that weights can be used directly in the mapped file; tiny ones stay in the graph.
    ir.save(model, path, external_data=path.name + ".data", size_threshold_bytes=1024, alignment=4096)
    for value in model.graph.initializers.values():
        value.const_value = None
    gc.collect()  # models, traces and graphs contain reference cycles


# Inputs of which an operator reads only single rows: embedding tables, and the rotation's cosines and sines.
TABLES = {"Gather": (0,), "GroupQueryAttention": (7, 8), "RotaryEmbedding": (1, 2)}


def weight_bytes(model: ir.Model, provider: str) -> int:
    """Bytes of weights that one run of a graph reads: all constants except tables, of which it reads single rows.

    ONNX Runtime converts 16-bit weights to float32 when it loads them: all of them on CPUs, which have no such matmuls;
    on other devices, those that the graph casts.
    """
    total = 0
    for value in model.graph.initializers.values():
        uses, dtype, shape = value.uses(), value.dtype, value.shape
        assert dtype is not None and shape is not None  # the writer gives both
        if uses and all(use.idx in TABLES.get(use.node.op_type, ()) for use in uses):
            continue
        cast = any(use.node.op_type == "Cast" for use in uses)
        widened = dtype in (FLOAT16, BFLOAT16) and (provider == "cpu" or cast)
        total += math.ceil(math.prod(shape.numpy()) * (4 if widened else dtype.itemsize))
    return total


def working_set(model: ir.Model) -> int:
    """Bytes that the largest operator of a graph reads and writes besides weights, for one row.

    Symbolic dimensions count as 1; values without a shape do not count.
    """
    weights = set(model.graph.initializers)
    return max((_size(node.inputs, weights) + _size(node.outputs, weights) for node in model.graph), default=0)


def _size(values: Iterable[ir.Value | None], weights: set[str]) -> int:
    total = 0
    for value in values:
        if value is None or value.name in weights or value.shape is None or value.dtype is None:
            continue
        elements = math.prod(d if isinstance(d, int) else 1 for d in value.shape)
        total += math.ceil(elements * value.dtype.itemsize)
    return total
