"""What TensorRT's ONNX parser takes, as far as this project's graphs go, from the tables that come with it.

TensorRT 8.5: docs/operators.md of github.com/onnx/onnx-tensorrt, its version for 8.5 ("supports operators up to Opset
17"; types FLOAT32, FLOAT16, INT8, BOOL, INT32 limited, INT64 cast down). 10.15: the same file, for 10.15. INT4:
TensorRT's documentation of its operator Dequantize and of quantization schemes, for 10.0 and later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

REAL = frozenset({"FP32", "FP16"})
NUMBERS = REAL | {"INT32"}
MOVED = NUMBERS | {"BOOL"}
TYPES_8_5 = {
    "Add": NUMBERS,
    "ArgMax": REAL,
    "Cast": MOVED,
    "Clip": REAL,
    "Concat": MOVED,
    "Conv": REAL,
    "DequantizeLinear": frozenset({"INT8"}),
    "Div": NUMBERS,
    "Exp": REAL,
    "Expand": MOVED,
    "Gather": MOVED,
    "InstanceNormalization": REAL,
    "Less": NUMBERS,
    "LessOrEqual": NUMBERS,
    "MatMul": REAL,
    "Max": NUMBERS,
    "Mul": NUMBERS,
    "Neg": NUMBERS,
    "Pad": NUMBERS,
    "Pow": REAL,
    "Reciprocal": REAL,
    "ReduceL2": REAL,
    "ReduceMax": REAL,
    "ReduceMean": REAL,
    "ReduceMin": REAL,
    "ReduceSum": REAL,
    "Reshape": MOVED,
    "Resize": REAL,
    "Shape": MOVED,
    "Sigmoid": REAL,
    "Slice": MOVED,
    "Softmax": REAL,
    "Split": MOVED,
    "Sqrt": REAL,
    "Sub": NUMBERS,
    "Tanh": REAL,
    "TopK": REAL,
    "Transpose": MOVED,
    "Unsqueeze": MOVED,
    "Where": MOVED,
}


@dataclass(frozen=True)
class Parser:
    """What a version of TensorRT reads."""

    opset: int
    ir_version: int
    types: Mapping[str, frozenset[str]]
    """By operator, of its data."""


# IR version 8 is ONNX 1.12's, which brought opset 17; IR version 10 is that of 1.16, with opset 21 and its INT4.
PARSERS = {
    "8.5": Parser(17, 8, TYPES_8_5),
    "10.0": Parser(21, 10, TYPES_8_5 | {"DequantizeLinear": frozenset({"INT8", "FP8", "INT4"})}),
}
INT4_BLOCKS = (64, 128)
# Not in 8.5's table, or N there. 10.15 takes them.
REFUSED_8_5 = {"Gelu", "GroupNormalization", "LayerNormalization", "RMSNormalization", "RotaryEmbedding", "IsInf"}
# Inputs that must be constants, by place. 10.15 says so for the Reduce operators' axes too, which are attributes here.
CONSTANT_INPUTS = {
    "InstanceNormalization": (1, 2),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
}
MOST_SORTED = 3840  # of TopK, in every version
RESIZE = {
    "mode": {"nearest", "linear"},
    "coordinate_transformation_mode": {
        "half_pixel",
        "pytorch_half_pixel",
        "tf_half_pixel_for_nn",
        "asymmetric",
        "align_corners",
    },
    "nearest_mode": {"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"},
}
