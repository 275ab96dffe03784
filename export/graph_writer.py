"""Writing ONNX graphs op by op, with weights that are read only when the graph is saved."""

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
from editar_rt.bundle.words import Blocks
from export.precision import quantize, whole_numbers

FLOAT = ir.DataType.FLOAT
FLOAT16 = ir.DataType.FLOAT16
BFLOAT16 = ir.DataType.BFLOAT16
INT32 = ir.DataType.INT32
INT64 = ir.DataType.INT64
INT4 = ir.DataType.INT4
TORCH_TYPES = {FLOAT: torch.float32, FLOAT16: torch.float16, BFLOAT16: torch.bfloat16}


class GraphWriter:
    """A graph being written: the builder, the weights it may draw on and the type they are stored in.

    Args:
        opsets: version of every operator domain.
        weights: tensors by checkpoint name; read when the graph is saved, one at a time.
        dtype: of stored weights and of matrix products.
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
        """Weights and nodes made inside are named below `name`."""
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
        """A constant in the stored type."""
        return self.constant(values, self.dtype.numpy(), name)

    def source(self, name: str) -> Tensor:
        """A weight as the checkpoint has it, by its name within the current scope."""
        return self.weights[".".join([*self.scopes, name])]

    def lazy(self, name: str, dtype: ir.DataType, shape: Sequence[int], load: Callable[[], np.ndarray]) -> ir.Value:
        """An initializer whose values are made when the graph is saved."""

        def tensor() -> ir.TensorProtocol:
            return ir.Tensor(load(), dtype=dtype, name=name)

        return self.builder.initializer(ir.LazyTensor(tensor, dtype=dtype, shape=ir.Shape(shape), name=name))

    def weight(self, name: str, transposed: bool = False, dtype: ir.DataType | None = None) -> ir.Value:
        """A weight in the stored type or `dtype`."""
        source, stored = self.source(name), dtype or self.dtype

        def load() -> np.ndarray:
            tensor = source.to(TORCH_TYPES[stored])
            tensor = (tensor.t() if transposed else tensor).contiguous()
            if stored == BFLOAT16:  # which NumPy alone does not have
                return tensor.view(torch.uint16).numpy().view(stored.numpy())
            return tensor.numpy()

        return self.lazy(name, stored, tuple(reversed(source.shape)) if transposed else tuple(source.shape), load)

    def norm_weight(self, name: str) -> ir.Value:
        """A normalization's weight: float32 in every precision."""
        return self.constant(self.source(name).float().numpy(), np.float32, name)

    def stored(self, value: ir.Value) -> ir.Value:
        """A float32 value in the stored type."""
        return value if self.dtype == FLOAT else self.op.Cast(value, to=self.dtype)

    def float32(self, value: ir.Value) -> ir.Value:
        """A value of the stored type in float32."""
        return value if self.dtype == FLOAT else self.op.Cast(value, to=FLOAT)

    def linear(self, value: ir.Value, name: str, blocks: Blocks | None = None) -> ir.Value:
        """[..., in] times the weight [out, in], which is stored in blocks where they are given.

        Blocks are multiplied by ONNX Runtime's operator where the graph may have it, else dequantized by ONNX's. A
        weight that does not fill its last block is stored in the stored type then: TensorRT says nothing of such.
        """
        by_onnx = "com.microsoft" not in self.graph.opset_imports
        if blocks is None or (by_onnx and self.source(name).shape[1] % blocks.block):
            return self.op.MatMul(value, self.weight(name, transposed=True))
        source = self.source(name)
        size, features = source.shape[1], source.shape[0]
        count = -(-size // blocks.block)

        @functools.lru_cache(1)  # both initializers come from one quantization; they are saved one after the other
        def quantized() -> tuple[np.ndarray, np.ndarray]:
            packed, scales = quantize(source.float().t().contiguous().numpy(), blocks)
            scales = scales.astype(self.dtype.numpy())
            if not by_onnx:
                return packed, scales
            whole = whole_numbers(packed, blocks.bits).reshape(features, size)
            return np.ascontiguousarray(whole.T).astype(INT4.numpy()), np.ascontiguousarray(scales.T)

        def packed() -> np.ndarray:
            return quantized()[0]

        def scales() -> np.ndarray:
            values = quantized()[1]
            quantized.cache_clear()
            return values

        if by_onnx:
            assert blocks.bits == 4  # the only whole-number weights of TensorRT
            weight = self.op.DequantizeLinear(
                self.lazy(name, INT4, (size, features), packed),
                self.lazy(f"{name}.scales", self.dtype, (count, features), scales),
                axis=0,
                block_size=blocks.block,
            )
            return self.op.MatMul(value, weight)
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

    def model(self, ir_version: int = 10) -> ir.Model:
        """The finished model."""
        mark_precisions(self.graph)
        return without_traces(ir.Model(self.graph, ir_version=ir_version))


def without_traces(model: ir.Model) -> ir.Model:
    """The model without what its making left in it: bookkeeping of builders, source lines, paths of this machine."""
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
    """Begins the name of every node that gives real numbers with their type.

    A weakly typed builder (TensorRT 8) may compute any layer in any type; from the names it learns the graph's.
    """
    marks = {FLOAT: names.FP32_NODE, FLOAT16: names.FP16_NODE}
    for node in graph:
        dtype = node.outputs[0].dtype
        if dtype in marks:
            node.name = f"{marks[dtype]}{node.name}"


def save(model: ir.Model, path: Path) -> None:
    """Write a graph to `path` and its weights, once, to `<path>.data` beside it; in memory they are let go."""
    # Page-aligned, so that weights can be used where they lie in the mapped file; tiny ones stay in the graph.
    ir.save(model, path, external_data=path.name + ".data", size_threshold_bytes=1024, alignment=4096)
    for value in model.graph.initializers.values():
        value.const_value = None
    gc.collect()  # models, traces and graphs refer to themselves: nothing else frees what they hold


# Inputs of which an operator reads single rows only: embedding tables, and the rotation's cosines and sines.
TABLES = {"Gather": (0,), "GroupQueryAttention": (7, 8), "RotaryEmbedding": (1, 2)}


def weight_bytes(model: ir.Model, provider: str) -> int:
    """Bytes of weights that one pass through a graph reads: all constants but tables, of which it reads single rows.

    ONNX Runtime widens 16-bit weights to float32 when it loads them: for CPUs, which have no such products, all of
    them, elsewhere those that the graph casts.
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
    """Bytes that the largest operation of a graph reads and writes besides weights, for one row.

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
