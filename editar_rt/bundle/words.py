"""The words for how a decoder is stored, and what follows from each: precisions, dialects and KV caches.

A *precision* says what the weights are stored as, a *dialect* which operators the graph is written in. A row of
`PRECISIONS` is all that a new precision needs; a new dialect needs a row of `DIALECTS` and a module in
`export.dialects` that writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from editar_rt import names

SAME, INT8 = "same", "int8"
KV_CACHES = (SAME, INT8)  # the activations' type, or int8 with one scale per layer for keys and one for values
HALVES = ("float16", "bfloat16")


class Blocks(NamedTuple):
    """Weights as small integers: `block` of them along the input share a scale, and zero is in the middle."""

    bits: int  # 4 or 8
    block: int


@dataclass(frozen=True)
class Precision:
    """How the numbers of a decoder's matmuls are stored."""

    stored: str
    """The type of activations and cache, and of weights that are not quantized: float32, float16 or bfloat16."""
    bound: float
    """Largest error allowed against another machine or PyTorch, as a share of the largest value."""
    blocks: Blocks | None = None
    """Of quantized weights."""
    head: Blocks | None = None
    """Of the output head's weights."""

    @property
    def is_quantized(self) -> bool:
        return self.blocks is not None

    @property
    def is_half(self) -> bool:
        """Whether it computes in 16 bits."""
        return self.stored in HALVES


# Bounds: float32 differs by the order of sums: up to 7e-6 (GPT-XL) was measured, and 2e-4 is what the reference's own
# numbers allow. Float16 keeps 11 bits, and errors grow with the layers: 2e-4 (3 layers) to 4e-3 (36, GPT-XL) was
# measured on random weights, which are harder than trained ones; bfloat16 keeps 8 bits. With quantized weights both
# sides round weights and activations alike; what remains are values near a rounding boundary that round the other way:
# 2e-2 was measured (the demo's model).
PRECISIONS = {
    "fp32": Precision("float32", 2e-4),
    "fp16": Precision("float16", 1e-2),
    "bf16": Precision("bfloat16", 8e-2),
    "int8": Precision("float32", 8e-2, Blocks(8, 128), Blocks(8, 128)),
    "int4": Precision("float32", 8e-2, Blocks(4, 32), Blocks(8, 128)),
}
INT8_CACHE_BOUND = 1e-1  # more values are near a rounding boundary where keys and values are rounded: 6e-2 was measured
# TensorRT multiplies 4-bit weights in blocks of 64 or 128 with activations that stay float16: the integers are the same
# on both sides, so the bound is float16's.
WEIGHT_ONLY = Precision("float16", PRECISIONS["fp16"].bound, Blocks(4, 64))
# How far a replayed CUDA graph may be from an ordinary step, as a share of the largest logit: about ten roundings of
# the type computed in. Attention splits its sums by the length it is given; another position differs by more. With an
# int8 cache, a value that differs by a rounding may be stored as the next integer.
REPLAY_BOUNDS = {"float16": 1e-2, "bfloat16": 8e-2}
INT8_CACHE_REPLAYS = 2  # times as far


@dataclass(frozen=True)
class Dialect:
    """What a dialect's operators can do."""

    bits: tuple[int, ...] = ()
    """Of quantized weights that they multiply."""
    other_bits: str = ""
    """Why they multiply no others."""
    quantized: Precision | None = None
    """How quantized weights are stored, where not as the precision says."""
    reads_int8_cache: bool = False
    has_sampler: bool = False
    """Whether a sampling head can stand beside the decoder, which draws on the device."""
    has_fixed_shapes: bool = False
    """Run by engines of fixed shapes (TensorRT), which return new keys and values to be placed; else ONNX Runtime."""
    needs_half_on_cuda: bool = False
    """Whether ONNX Runtime's CUDA provider takes activations of 16 bits only."""
    reads_whole_cache: bool = False
    """Whether a step works through the cache's capacity instead of the positions filled."""


DIALECTS = {
    "ort": Dialect(bits=(4, 8), reads_int8_cache=True, needs_half_on_cuda=True),
    "standard": Dialect(
        other_bits="MatMulNBits, which multiplies whole-number weights, belongs to the dialect ort",
        reads_whole_cache=True,
    ),
    "delta": Dialect(
        bits=(4,),
        other_bits="TensorRT documents no 8-bit weights for products with real numbers; take int4 or fp16",
        quantized=WEIGHT_ONLY,
        has_sampler=True,
        has_fixed_shapes=True,
    ),
}
DEFAULT_DIALECT = "ort"


def stored_numbers(precision: str, dialect: str) -> Precision:
    """How a decoder of a precision is stored in a dialect."""
    own = DIALECTS[dialect].quantized
    return own if own is not None and PRECISIONS[precision].is_quantized else PRECISIONS[precision]


def text_precision(precision: str, dialect: str) -> str:
    """Of the text encoder beside a decoder: fp16 where the decoder computes in 16 bits on its target, else fp32.

    It runs once per edit: bfloat16 would save nothing over float16.
    """
    return "fp16" if stored_numbers(precision, dialect).is_half else "fp32"


def error_bound(part: str, precision: str, kv_cache: str, dialect: str) -> float:
    """Largest error allowed of a part's outputs, as a share of the largest value."""
    if part == names.DECODER:
        return max(stored_numbers(precision, dialect).bound, INT8_CACHE_BOUND if kv_cache == INT8 else 0.0)
    if part == names.TEXT_ENCODER:
        return PRECISIONS[text_precision(precision, dialect)].bound
    return PRECISIONS["fp32"].bound  # the other parts stay float32


def replay_bound(precision: str, kv_cache: str) -> float:
    """How far a replayed CUDA graph may be from an ordinary step; what CUDA runs in the dialect ort has 16 bits."""
    bound = REPLAY_BOUNDS.get(PRECISIONS[precision].stored, REPLAY_BOUNDS["float16"])
    return bound * (INT8_CACHE_REPLAYS if kv_cache == INT8 else 1)
