"""One layer's attention over an int8 cache, and what its products would take otherwise.

    python -m tests.benchmarks.int8_attention

GPT-XL's sizes, two rows, one thread. GroupQueryAttention, which runs it, reads each row's keys and values by itself.
MatMulInteger multiplies whole numbers as they are, and reads one cache for the queries of both rows; its products alone
are timed, without the softmax, scales and quantization between them. All take turns in one process, each over several
caches that together do not stay in the processor's. Not a test: pytest does not collect it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

ROWS, HEADS, WIDTH, FILLED, CAPACITY = 2, 20, 64, 1600, 2176
CACHES = 8
TYPES = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}
RNG = np.random.default_rng(0)


def random(dtype: str, *shape: int) -> np.ndarray:
    if dtype == "float32":
        return RNG.standard_normal(shape).astype(np.float32)
    return RNG.integers(0 if dtype == "uint8" else -127, 128, shape, np.dtype(dtype))


class Graph:
    """A graph of one operator on one thread."""

    def __init__(self, node: onnx.NodeProto, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        described = [
            [helper.make_tensor_value_info(name, TYPES[str(a.dtype)], a.shape) for name, a in arrays.items()]
            for arrays in (inputs, outputs)
        ]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(helper.make_graph([node], "g", *described), opset_imports=opsets, ir_version=10)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

    def bound(self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> Callable[[], Any]:
        """A run over these arrays; outputs of an input's name are written into it."""
        binding, make = self.session.io_binding(), ort.OrtValue.ortvalue_from_numpy
        values = {name: make(array) for name, array in inputs.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, values.get(name.removeprefix("new_")) or make(array))
        return lambda: self.session.run_with_iobinding(binding)


def attention() -> list[Callable[[], Any]]:
    """The operator in use, keys and values updated in place."""
    names = ["qkv", "", "", "key", "value", "last", "total", "cos", "sin", "", "", "", "key_scale", "value_scale"]
    node = helper.make_node(
        "GroupQueryAttention", names, ["y", "new_key", "new_value"], domain="com.microsoft", num_heads=HEADS,
        kv_num_heads=HEADS, do_rotary=1, rotary_interleaved=1, k_quant_type="PER_TENSOR", v_quant_type="PER_TENSOR",
        kv_cache_bit_width=8,
    )  # fmt: skip

    def arrays() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        cache = {name: random("int8", ROWS, HEADS, CAPACITY, WIDTH) for name in ("key", "value")}
        table = {
            "cos": np.ones((CAPACITY, WIDTH // 2), np.float32),
            "sin": np.zeros((CAPACITY, WIDTH // 2), np.float32),
        }
        lengths = {"last": np.full(ROWS, FILLED - 1, np.int32), "total": np.asarray(FILLED, np.int32)}
        scales = {name: np.full(1, 0.02, np.float32) for name in ("key_scale", "value_scale")}
        inputs = {"qkv": random("float32", ROWS, 1, 3 * HEADS * WIDTH), **cache, **lengths, **table, **scales}
        return inputs, {"y": random("float32", ROWS, 1, HEADS * WIDTH)} | {f"new_{n}": a for n, a in cache.items()}

    graph = Graph(node, *arrays())
    return [graph.bound(*arrays()) for _ in range(CACHES)]


def product(left: tuple[str, int, int], right: tuple[str, int, int]) -> list[Callable[[], Any]]:
    """Products of whole numbers of every head, (type, rows, columns) each."""

    def arrays() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        inputs = {"a": random(left[0], HEADS, *left[1:]), "b": random(right[0], HEADS, *right[1:])}
        return inputs, {"y": random("int32", HEADS, left[1], right[2])}

    graph = Graph(helper.make_node("MatMulInteger", ["a", "b"], ["y"]), *arrays())
    return [graph.bound(*arrays()) for _ in range(CACHES)]


@click.command()
@click.option("--repeats", type=click.IntRange(1), default=160, show_default=True)
def main(repeats: int) -> None:
    """Print the least and the lower quartile of each one's milliseconds, and what it reads a second at the least."""
    one = HEADS * FILLED * WIDTH  # bytes of one row's keys, or values
    subjects = {
        "GroupQueryAttention, keys and values of two rows": (attention(), 2 * ROWS * one),
        "Q·K, keys transposed": (product(("uint8", ROWS, WIDTH), ("int8", WIDTH, FILLED)), one),
        "Q·K, keys as the cache has them": (product(("int8", FILLED, WIDTH), ("int8", WIDTH, ROWS)), one),
        "P·V, values as the cache has them": (product(("uint8", ROWS, FILLED), ("int8", FILLED, WIDTH)), one),
        "P·V, values transposed": (product(("int8", WIDTH, FILLED), ("int8", FILLED, ROWS)), one),
    }
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for repeat in range(CACHES + repeats):
        for name, (runs, _) in subjects.items():
            begun = time.perf_counter()
            runs[repeat % CACHES]()
            seconds[name].append(time.perf_counter() - begun)
    for name, (_, size) in subjects.items():
        own = np.asarray(seconds[name][CACHES:])
        rate = size / own.min() / 1e9
        click.echo(f"{name:50} {1e3 * own.min():.3f} ms ({1e3 * np.quantile(own, 0.25):.3f})  {rate:.1f} GB/s")


if __name__ == "__main__":
    main()
