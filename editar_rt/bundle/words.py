"""Precisions, dialects and KV cache types of decoders, and the properties that follow from each.

A *precision* is the stored type of the weights, a *dialect* the set of operators of the graph. A row of
`PRECISIONS` is all that a new precision needs; a new dialect needs a row of `DIALECTS` and a module in
`export.dialects` that writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from editar_rt import names

SAME, INT8 = "same", "int8"
KV_CACHES = (SAME, INT8)  # the activations' type, or int8 with one scale per layer for keys and one for values
HALVES = ("float16", "bfloat16")


WHOLE = 0  # size of a block that is the whole input: one scale for each output


class Blocks(NamedTuple):
    """Weights as small numbers: `block` of them along the input share a scale, and zero is in the middle."""

    bits: int  # 4 or 8
    block: int
    is_float: bool = False  # 8-bit floats with 4 bits of exponent and 3 of mantissa, otherwise integers


@dataclass(frozen=True)
class Precision:
    """How the numbers of a decoder's matmuls are stored."""

    stored: str
    """The type of activations, cache and unquantized weights: float32, float16 or bfloat16."""
    bound: float
    """Largest allowed error compared with another machine or PyTorch, as a share of the largest value."""
    blocks: Blocks | None = None
    """Blocks of quantized weights."""
    head: Blocks | None = None
    """Blocks of the output head's weights."""

    @property
    def is_quantized(self) -> bool:
        return self.blocks is not None

    @property
    def is_half(self) -> bool:
        """Whether it computes in 16-bit floats."""
        return self.stored in HALVES


# Bounds: float32 differs by the order of sums: up to 7e-6 (GPT-XL) was measured, and 2e-4 is what the reference's
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
    "fp8": Precision("float16", 1e-2, Blocks(8, WHOLE, is_float=True)),
}
INT8_CACHE_BOUND = 1e-1  # rounded keys and values add values near a rounding boundary: 6e-2 was measured
# TensorRT multiplies 4-bit weights in blocks of 64 or 128, 8-bit ones with a scale for each output. Activations stay
# float16: the weights are the same on both sides, so the bound is float16's.
WEIGHT_ONLY = {
    "int4": Precision("float16", PRECISIONS["fp16"].bound, Blocks(4, 64)),
    "int8": Precision("float16", PRECISIONS["fp16"].bound, Blocks(8, WHOLE)),
    "fp8": PRECISIONS["fp8"],
}
# How far a replayed CUDA graph may be from an ordinary step, as a share of the largest logit: about ten roundings of
# the type computed in. Attention splits its sums by the length it is given; another position differs by more. With an
# int8 cache, a value that differs by a rounding may be stored as the next integer.
REPLAY_BOUNDS = {"float16": 1e-2, "bfloat16": 8e-2}
INT8_CACHE_REPLAYS = 2  # times as far


@dataclass(frozen=True)
class Dialect:
    """Capabilities of a dialect's operators."""

    bits: tuple[int, ...] = ()
    """Supported sizes of quantized weights."""
    other_bits: str = ""
    """Why other sizes are not supported."""
    quantized: Mapping[str, Precision] = field(default_factory=dict)
    """Storage of quantized weights by precision, where it is not the precision's own."""
    reads_float8: bool = False
    reads_int8_cache: bool = False
    takes_chunk_lengths: bool = False
    """Whether its decoder can have a second graph, `names.DECODER_CHUNKS`, which runs chunks of several rows."""
    has_sampler: bool = False
    """Whether the bundle can have a sampling head, which samples on the device."""
    has_fixed_shapes: bool = False
    """Whether engines of fixed shapes run it (TensorRT), with a cache of fixed capacity; otherwise ONNX Runtime."""
    returns_new_rows: bool = False
    """Whether it returns new keys and values, which the runtime places; otherwise it updates the cache in place."""
    needs_half_on_cuda: bool = False
    """Whether ONNX Runtime's CUDA provider supports only 16-bit activations."""
    reads_whole_cache: bool = False
    """Whether a step works on the whole capacity of the cache instead of the cached positions."""


DIALECTS = {
    "ort": Dialect(bits=(4, 8), reads_int8_cache=True, takes_chunk_lengths=True, needs_half_on_cuda=True),
    "standard": Dialect(
        other_bits="MatMulNBits, which multiplies integer weights, belongs to the dialect ort",
        reads_whole_cache=True,
    ),
    "delta": Dialect(
        bits=(4, 8),
        quantized=WEIGHT_ONLY,
        reads_float8=True,
        has_sampler=True,
        has_fixed_shapes=True,
        returns_new_rows=True,
    ),
    "native": Dialect(
        bits=(4, 8),
        quantized=WEIGHT_ONLY,
        reads_float8=True,
        has_sampler=True,
        has_fixed_shapes=True,
        reads_whole_cache=True,
    ),
}
DEFAULT_DIALECT = "ort"


def stored_numbers(precision: str, dialect: str) -> Precision:
    """The storage of a precision in a dialect."""
    return DIALECTS[dialect].quantized.get(precision, PRECISIONS[precision])


def rounds_activations(precision: str, kv_cache: str, dialect: str) -> bool:
    """Whether the decoder's activations, keys or values become integers on the way.

    A value near a rounding boundary becomes another integer after the smallest other error, so that tokens may differ
    wherever two machines do not compute the same bits.
    """
    integer_matmuls = PRECISIONS[precision].is_quantized and precision not in DIALECTS[dialect].quantized
    return integer_matmuls or kv_cache == INT8


def text_precision(precision: str, dialect: str) -> str:
    """The text encoder's precision: fp16 if the decoder computes in 16-bit floats on its target, otherwise fp32.

    It runs only once per edit, so bfloat16 would have no advantage over float16.
    """
    return "fp16" if stored_numbers(precision, dialect).is_half else "fp32"


def error_bound(part: str, precision: str, kv_cache: str, dialect: str) -> float:
    """Largest allowed error of a part's outputs, as a share of the largest value."""
    if part in (names.DECODER, names.DECODER_CHUNKS):
        return max(stored_numbers(precision, dialect).bound, INT8_CACHE_BOUND if kv_cache == INT8 else 0.0)
    if part == names.TEXT_ENCODER:
        return PRECISIONS[text_precision(precision, dialect)].bound
    return PRECISIONS["fp32"].bound  # the other parts stay float32


def replay_bound(precision: str, kv_cache: str) -> float:
    """Largest allowed difference of a replayed CUDA graph from an ordinary step, as a share of the largest logit."""
    bound = REPLAY_BOUNDS.get(PRECISIONS[precision].stored, REPLAY_BOUNDS["float16"])
    return bound * (INT8_CACHE_REPLAYS if kv_cache == INT8 else 1)
