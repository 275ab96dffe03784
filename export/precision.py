"""What a decoder's numbers are stored in, and which execution providers of ONNX Runtime can run that.

| precision | weights of products | activations of products, cache |
|---|---|---|
| fp32, fp16, bf16 | that type | that type |
| int8 | 8 bits in blocks of 128 | float32 (float16 for CUDA) |
| int4 | 4 bits in blocks of 32, the output head 8 bits | float32 (float16 for CUDA) |
| int4, dialect delta | 4 bits in blocks of 64, the output head float16 | float16 |

Blocks are quantized by ONNX Runtime's own quantizer and multiplied by its MatMulNBits, which quantizes the activations
of each row on its own: a picture's tokens do not depend on what else is in the batch. TensorRT has no such operator: it
reads ONNX's INT4 type through DequantizeLinear, in blocks of 64 or 128, and the activations stay float16 (weight-only).
Float32 stay everywhere: the residual stream with its sums and normalizations, softmax (inside the attention operator),
and the logits.

The KV cache is of the activations' type, or int8 with one scale a layer for keys and one for values. On CUDA the latter
saves memory and no time: ONNX Runtime's kernel that reads it as it is wants several heads of queries for one of keys,
and these models have one, so that each step turns a layer's cache into 16 bits and reads those. It needs a GPU of
compute capability 8.0 or newer, which the runtime checks when it opens the decoder.
"""

from __future__ import annotations

import dataclasses
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
    Blocks,
    error_bound,
    stored_numbers,
    text_precision,
)
from editar_rt.errors import OptionError
from export.recipe import PROVIDERS, READABLE, read_storage

Array = np.ndarray  # [in, out] float32 unless said otherwise

TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


def quantize(weight: Array, blocks: Blocks) -> tuple[Array, Array]:
    """[in, out] -> (uint8 [out, blocks, block · bits / 8], scales float32 [out, blocks])."""
    config = DefaultWeightOnlyQuantConfig(blocks.block, is_symmetric=True, accuracy_level=4, bits=blocks.bits)
    packed, scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(weight))
    return packed, scales.reshape(packed.shape[:2])


def whole_numbers(packed: Array, bits: int) -> Array:
    """The whole numbers in `quantize`'s result, int8 [out, blocks, block] around 0."""
    values = packed if bits == 8 else np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:2], -1)
    return (values.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)


def dequantize(packed: Array, scales: Array, bits: int, size: int) -> Array:
    """What `quantize`'s results stand for, [out, in] float32 with `size` inputs."""
    values = whole_numbers(packed, bits).astype(np.float32) * scales[..., None]
    return np.ascontiguousarray(values.reshape(len(packed), -1)[:, :size])


class Numbers(NamedTuple):
    """How matmuls are stored for a provider; `blocks` and `head` of quantized weights, None for the stored type."""

    stored: ir.DataType
    blocks: Blocks | None
    head: Blocks | None


@dataclass(frozen=True)
class Storage:
    """Everything that decides how a decoder is stored.

    Raises:
        OptionError: for what no provider that it is meant for runs; the reason is in the message.
    """

    precision: str = "fp32"
    """A key of `words.PRECISIONS`."""
    dialect: str = DEFAULT_DIALECT
    """A key of `words.DIALECTS`."""
    kv_cache: str = SAME
    """One of `words.KV_CACHES`."""
    provider: str = "cpu"
    """One of `recipe.PROVIDERS`; what whole-number weights are multiplied with differs between them."""
    sampling_head: bool = False
    """Whether the bundle has a sampler beside the decoder, which draws on the device (`export.sampler_graph`)."""

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

    @property
    def text_precision(self) -> str:
        """Of a text encoder beside it."""
        return text_precision(self.precision, self.dialect)

    def bound(self, part: str) -> float:
        """Largest error allowed of a part's outputs, as a share of the largest value."""
        return error_bound(part, self.precision, self.kv_cache, self.dialect)

    @property
    def cache_type(self) -> ir.DataType:
        return ir.DataType.INT8 if self.kv_cache == INT8 else self.numbers.stored

    @property
    def providers(self) -> list[str]:
        """Those that run it, not only the one that it is meant for."""
        return [provider for provider in PROVIDERS if not any(self._reasons(provider))]

    def _reasons(self, provider: str) -> Iterator[str]:
        """Why a provider does not run it."""
        stored, operators = self.numbers.stored, DIALECTS[self.dialect]
        blocks = PRECISIONS[self.precision].blocks
        if provider == "cpu" and stored == ir.DataType.BFLOAT16:
            yield "ONNX Runtime has no bfloat16 products or attention for CPUs; take fp32 or int8, or --provider cuda"
        if provider == "cuda" and operators.needs_half_on_cuda and stored == ir.DataType.FLOAT:
            yield (
                "ONNX Runtime's GroupQueryAttention takes 16-bit types on CUDA; take fp16 or bf16, or the dialect "
                "standard"
            )
        if self.kv_cache == INT8 and not operators.reads_int8_cache:
            yield "only GroupQueryAttention of the dialect ort reads an int8 cache"
        if self.sampling_head and not operators.has_sampler:
            yield "the sampling head goes with the dialect delta; other dialects' logits come to the host anyway"
        if blocks is not None and blocks.bits not in operators.bits:
            yield operators.other_bits


def storage(target: str | None, **given: str | bool | None) -> Storage:
    """The recipe's storage, with the options that were given in its place.

    Raises:
        OptionError: as `read_storage`, for what no provider runs, and for a precision that the devices do not read.
    """
    fields = read_storage(target) if target is not None else {}
    readable = fields.pop(READABLE, None)
    fields = fields | {name: value for name, value in given.items() if value is not None}
    stored = dataclasses.replace(Storage(), **fields)
    if readable is not None and stored.precision not in readable:
        raise OptionError(
            f"the TensorRT of the recipe {target} does not read precision {stored.precision}; take --precision "
            f"{' or '.join(readable)}"
        )
    return stored
