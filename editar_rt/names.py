"""The table of part and tensor names, shared by export, runtime, tests and documentation.

Shapes: B rows, S positions of a chunk, K positions that get logits, N tokens of a picture, T text positions,
C the text encoder's width, D the transformer's, V the vocabulary.
"""

from __future__ import annotations

# Parts of a bundle, each one graph.
VQ_ENCODER = "vq_encoder"  # pixels -> tokens
VQ_DECODER = "vq_decoder"  # tokens -> pixels
TEXT_ENCODER = "text_encoder"  # input_ids, attention_mask -> text_states
PREFIX_GRAPH = "prefix"  # text_states -> text_prefix, null_text_prefix, null_picture_prefix
DECODER = "decoder"  # tokens, prefix, logit_positions, lengths, past -> logits, present
DECODER_CHUNKS = "decoder_chunks"  # the same over the same weights, and chunks of several rows; the dialect ort's
SAMPLER = "sampler"  # logits of a step, null_rows, numbers, settings -> drawn; of dialects for TensorRT
PARTS = (VQ_ENCODER, VQ_DECODER, TEXT_ENCODER, PREFIX_GRAPH, DECODER, DECODER_CHUNKS, SAMPLER)

PIXELS = "pixels"  # float32 [B, 3, H, W] in [-1, 1]
TOKENS = "tokens"  # int32 [B, N]; in the decoder [B, S], negative where the input is `prefix`
INPUT_IDS = "input_ids"  # int32 [B, T]
ATTENTION_MASK = "attention_mask"  # int32 [B, T], 1 for text and 0 for padding
TEXT_STATES = "text_states"  # float32 [B, T, C]
TEXT_PREFIX = "text_prefix"  # float32 [B, T, D]
NULL_TEXT_PREFIX = "null_text_prefix"  # float32 [1, T, D]
NULL_PICTURE_PREFIX = "null_picture_prefix"  # float32 [1, N, D]
PREFIX = "prefix"  # float32 [B or 1, S or 1, D]
LOGIT_POSITIONS = "logit_positions"  # int32 [K], indices into the S positions
PAST_LENGTH = "past_length"  # int32 [B], number of cached positions of each row
POSITIONS = "positions"  # int32 [B, S], positions in the sequence; of padding, any up to the capacity
TOTAL_LENGTH = "total_length"  # int32 [], the largest past_length + S, or more
LAST_ROW = "last_row"  # int32 [B], the last position, past_length + S - 1; replaces past_length in graphs for CUDA
CHUNK_LENGTHS = "chunk_lengths"  # int32 [B], number of positions of each row's chunk; of `DECODER_CHUNKS`
LOGITS = "logits"  # float32 [B, K, V]
NEW_ROWS = "new_rows"  # [2 · layers, B, heads, S, head_dim], new keys and values of the chunk: keys, values by layer

# Tensors of the sampler, whose logits are [B, K, V].
NULL_ROWS = "null_rows"  # int32 [B], index of each row's unconditional row; its own index without guidance
NUMBERS = "numbers"  # float32 [B, K] in [0, 1), the random numbers; negative where the noise decides
CFG_SCALE = "cfg_scale"  # float32 [B, K]
TEMPERATURE = "temperature"  # float32 [B, K]
TOP_K = "top_k"  # int32 [B, K], 0 is off
TOP_P = "top_p"  # float32 [B, K], 1 is off
NOISE = "noise"  # float32 [B, K, V], Gumbel noise of each token
DRAWN = "drawn"  # int32 [B, K], sampled tokens; UNCLEAR if rounding could change the token
UNCLEAR = -1

# Prefixes of the names of nodes that return floats, for builders that choose types by themselves.
FP32_NODE = "fp32/"
FP16_NODE = "fp16/"

# Symbolic dimensions.
ROWS_DIM = "rows"  # B
POSITIONS_DIM = "positions"  # S
WANTED_DIM = "logit_positions"  # K
PREFIX_ROWS_DIM, PREFIX_POSITIONS_DIM = "prefix_rows", "prefix_positions"  # B or 1, S or 1
CAPACITY_DIM = "capacity"


PAST_BEGINNINGS = ("past_key_", "past_value_")
PRESENT_BEGINNINGS = ("present_key_", "present_value_")


def past_key(layer: int) -> str:
    """Keys of a layer before the chunk, [B, heads, capacity, head_dim]."""
    return f"past_key_{layer}"


def past_value(layer: int) -> str:
    """Values of a layer before the chunk, [B, heads, capacity, head_dim]."""
    return f"past_value_{layer}"


def present_key(layer: int) -> str:
    """Keys of a layer after the chunk; bound to the same memory as `past_key`."""
    return f"present_key_{layer}"


def present_value(layer: int) -> str:
    """Values of a layer after the chunk; bound to the same memory as `past_value`."""
    return f"present_value_{layer}"


def present_of(past: str) -> str:
    """The name after the chunk of keys or values that have the name `past` before it."""
    return past.replace("past_", "present_", 1)
