"""The stored types of a decoder, and the execution providers of ONNX Runtime that can run them.

| precision | weights of matmuls | activations of matmuls, cache |
|---|---|---|
| fp32, fp16, bf16 | that type | that type |
| int8 | 8 bits in blocks of 128 | float32 (float16 for CUDA) |
| int4 | 4 bits in blocks of 32, the output head 8 bits | float32 (float16 for CUDA) |
| int4, dialects delta and native | 4 bits in blocks of 64, the output head float16 | float16 |
| int8, the same dialects | 8 bits with a scale for each output, the head float16 | float16 |
| fp8, the same dialects | 8-bit floats (e4m3) with a scale for each output, the head float16 | float16 |

Blocks are quantized by ONNX Runtime's quantizer and multiplied by its operator MatMulNBits, which quantizes the
activations of each row separately: a picture's tokens do not depend on the rest of the batch. TensorRT has no such
operator; it reads ONNX's small types through DequantizeLinear, INT4 in blocks of 64 or 128, 8-bit ones with a scale for
each output, and the activations stay float16 (weight-only). Always in float32: the residual stream with its sums and
normalizations, softmax (inside the attention operator), and the logits.

The KV cache has the activations' type, or int8 with one scale per layer for keys and one for values. On CUDA, int8
saves memory but not time: ONNX Runtime's native int8-cache kernel needs grouped-query attention, and these models have
one KV head per query head, so each step first converts a layer's cache to 16 bits. It needs a GPU of compute capability
8.0 or newer, which the runtime checks when it opens the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

from editar_rt.bundle.words import (
    DEFAULT_DIALECT,
    DIALECTS,
    INT8,
    PRECISIONS,
    SAME,
    WHOLE,
    Blocks,
    error_bound,
    stored_numbers,
    text_precision,
)
from editar_rt.errors import OptionError
from export.recipe import PROVIDERS, READABLE, read_storage

Array = np.ndarray  # [in, out] float32 unless noted otherwise

TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


def quantize(weight: Array, blocks: Blocks) -> tuple[Array, Array]:
    """[in, out] -> (uint8 [out, blocks, block · bits / 8], scales float32 [out, blocks])."""
    config = DefaultWeightOnlyQuantConfig(blocks.block, is_symmetric=True, accuracy_level=4, bits=blocks.bits)
    packed, scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(weight))
    return packed, scales.reshape(packed.shape[:2])


LARGEST = {ir.DataType.INT8: 127.0, ir.DataType.FLOAT8E4M3FN: 448.0}  # of the numbers of a type


def quantize_outputs(weight: Array, dtype: ir.DataType) -> tuple[Array, Array]:
    """[in, out] -> (8-bit numbers [in, out], scales float32 [out]), one scale for each output."""
    scales = np.maximum(np.abs(weight).max(axis=0), np.finfo(np.float32).tiny) / LARGEST[dtype]
    # Scales are stored in float16: the numbers must belong to the stored ones.
    scales = np.maximum(scales, np.finfo(np.float16).tiny).astype(np.float16).astype(np.float32)
    numbers = np.clip(weight / scales, -LARGEST[dtype], LARGEST[dtype])
    return (np.rint(numbers) if dtype == ir.DataType.INT8 else numbers).astype(dtype.numpy()), scales


def integers_of(packed: Array, bits: int) -> Array:
    """The integers in `quantize`'s result, int8 [out, blocks, block], centred at 0."""
    values = packed if bits == 8 else np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:2], -1)
    return (values.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)


def dequantize(packed: Array, scales: Array, bits: int, size: int) -> Array:
    """The values of `quantize`'s results, [out, in] float32 with `size` inputs."""
    values = integers_of(packed, bits).astype(np.float32) * scales[..., None]
    return np.ascontiguousarray(values.reshape(len(packed), -1)[:, :size])


class Numbers(NamedTuple):
    """The types of matmuls for a provider. `blocks` and `head` describe quantized weights; None means `stored`."""

    stored: ir.DataType
    blocks: Blocks | None
    head: Blocks | None


@dataclass(frozen=True)
class Storage:
    """The storage of a decoder.

    Raises:
        OptionError: the provider cannot run it, with the reason.
    """

    precision: str = "fp32"
    """A key of `words.PRECISIONS`."""
    dialect: str = DEFAULT_DIALECT
    """A key of `words.DIALECTS`."""
    kv_cache: str = SAME
    """One of `words.KV_CACHES`."""
    provider: str = "cpu"
    """One of `recipe.PROVIDERS`; the activations type of integer weights depends on it."""
    sampling_head: bool = False
    """Whether the bundle has a sampler, which samples on the device (`export.sampler_graph`)."""

    def __post_init__(self) -> None:
        if reason := next(self._reasons(self.provider), None):
            raise OptionError(f"{self} cannot run on {self.provider}: {reason}")

    def __str__(self) -> str:
        return f"precision {self.precision}, cache {self.kv_cache}, dialect {self.dialect}"

    @property
    def numbers(self) -> Numbers:
        """The precision's types in the dialect, for the provider."""
        chosen = stored_numbers(self.precision, self.dialect)
        stored = "float16" if self.provider == "cuda" and chosen.is_quantized else chosen.stored
        return Numbers(TYPES[stored], chosen.blocks, chosen.head)

    def check_width(self, width: int) -> None:
        """Reject a transformer whose inputs do not fill whole blocks, where none of its weights would be quantized.

        Raises:
            OptionError: the width of the transformer does not fit.
        """
        blocks = self.numbers.blocks
        if DIALECTS[self.dialect].quantized and blocks is not None and blocks.block != WHOLE and width % blocks.block:
            raise OptionError(
                f"TensorRT's {self.precision.upper()} weights need a width that is a multiple of {blocks.block}, but "
                f"this transformer's is {width}; use --precision int8 or fp16"
            )

    @property
    def text_precision(self) -> str:
        """Precision of the text encoder in the same bundle."""
        return text_precision(self.precision, self.dialect)

    def bound(self, part: str) -> float:
        """Largest allowed error of a part's outputs, as a share of the largest value."""
        return error_bound(part, self.precision, self.kv_cache, self.dialect)

    @property
    def cache_type(self) -> ir.DataType:
        return ir.DataType.INT8 if self.kv_cache == INT8 else self.numbers.stored

    @property
    def providers(self) -> list[str]:
        """All providers that can run it, not only the intended one."""
        return [provider for provider in PROVIDERS if not any(self._reasons(provider))]

    def _reasons(self, provider: str) -> Iterator[str]:
        """The reasons why a provider cannot run it."""
        stored, operators = self.numbers.stored, DIALECTS[self.dialect]
        blocks = PRECISIONS[self.precision].blocks
        if provider == "cpu" and stored == ir.DataType.BFLOAT16:
            yield "ONNX Runtime has no bfloat16 matmuls or attention for CPUs; use fp32 or int8, or --provider cuda"
        if provider == "cuda" and operators.needs_half_on_cuda and stored == ir.DataType.FLOAT:
            yield (
                "ONNX Runtime's GroupQueryAttention accepts only 16-bit types on CUDA; use fp16 or bf16, or the "
                "dialect standard"
            )
        if self.kv_cache == INT8 and not operators.reads_int8_cache:
            yield "only GroupQueryAttention of the dialect ort reads an int8 cache"
        if self.sampling_head and not operators.has_sampler:
            yield "the sampling head needs the dialect delta or native; others copy the logits to the host anyway"
        if blocks is not None and blocks.is_float and not operators.reads_float8:
            yield "FP8 weights need the dialect delta or native, for TensorRT for RTX; use int8, or --dialect native"
        elif blocks is not None and blocks.bits not in operators.bits:
            yield operators.other_bits


def storage(target: str | None, **given: str | bool | None) -> Storage:
    """The recipe's storage, overridden by the given options.

    Raises:
        OptionError: as in `read_storage`; or no provider runs it; or the devices do not read the precision.
    """
    fields = read_storage(target) if target is not None else {}
    readable = fields.pop(READABLE, None)
    fields = fields | {name: value for name, value in given.items() if value is not None}
    precision = PRECISIONS.get(str(fields.get("precision")))
    if "provider" not in fields and precision is not None and precision.stored == "bfloat16":
        fields["provider"] = "cuda"  # no CPU computes in it
    stored = Storage(**fields)
    if readable is not None and stored.precision not in readable:
        raise OptionError(
            f"the TensorRT of the recipe {target} cannot read precision {stored.precision}; use --precision "
            f"{' or '.join(readable)}"
        )
    return stored
