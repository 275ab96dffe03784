"""Compares exported graphs with their PyTorch models on small seeded inputs, before a bundle is published.

A graph that loads is not necessarily correct. A `Case` has the outputs of the PyTorch model, which are compared with
those of the graph on disk, run by ONNX Runtime. Complete generations are compared in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

from editar_rt import names
from editar_rt.backends.ort.backend import WEIGHT_ONLY, takes_chunk_lengths
from editar_rt.bundle.compare import Comparison
from editar_rt.bundle.words import WHOLE
from editar_rt.errors import BackendError
from editar_rt.measure import selftest
from export.calibration import LARGEST
from export.dialects.base import Scales, scale_names
from export.precision import dequantize
from training.config import TransformerConfig, VQConfig
from training.errors import first_line
from training.models.text_encoder import encode
from training.models.transformer import KVCache, Transformer
from training.models.vq import VQModel

Array = np.ndarray[Any, np.dtype[Any]]

CLEAR_MARGIN = 1e-4  # between the best two cosines of codebook rows; far above the effect of the order of sums
SEED = 0
# By part: label, rows, whether there is a past, positions.
DECODER_CASES: dict[str, tuple[tuple[str, int, bool, int], ...]] = {
    names.DECODER: (("prefill", 2, False, 6), ("chunk after a past", 1, True, 4)),
    names.DECODER_CHUNKS: (("chunks after a past", 2, True, 4),),
}


@dataclass(frozen=True)
class Case:
    """Inputs of a graph, and PyTorch's outputs."""

    part: str
    label: str
    inputs: dict[str, Array]
    expected: dict[str, Array]
    """By output. Tokens that may differ, because two codebook rows are about equally close, are -1."""


def compare(path: Path, cases: Sequence[Case], bound: float) -> list[Comparison]:
    """Run a graph on every case, on the CPU. Tokens must be equal regardless of the bound.

    Raises:
        BackendError: ONNX Runtime cannot load or run the graph.
    """
    try:
        return _compare(path, cases, bound)
    except Exception as error:  # the binding's own classes derive directly from Exception
        raise BackendError(
            f"ONNX Runtime {onnxruntime.__version__} does not run {path.name}: {first_line(error)}"
        ) from error


def _compare(path: Path, cases: Sequence[Case], bound: float) -> list[Comparison]:
    # Prepacking is not worthwhile for one run, and would double a text encoder's memory. The decoder's integer matmuls
    # require it.
    session = open_session(path, prepack=any(case.part in DECODER_CASES for case in cases))
    comparisons = []
    for case in cases:
        answers = session.run(list(case.expected), feeds(session, case.inputs))
        for (name, expected), answer in zip(case.expected.items(), answers):
            label = f"{name}, {case.label}" if case.label else name
            comparisons.append(Comparison.of(case.part, label, answer, expected, bound))
    return comparisons


def runs_here(part: str) -> bool:
    """Whether this version of ONNX Runtime can run a part."""
    return part != names.DECODER_CHUNKS or takes_chunk_lengths(onnxruntime.__version__)


def open_session(path: Path, prepack: bool = True) -> onnxruntime.InferenceSession:
    """A graph on the CPU, as the runtime opens it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # failures are also raised
    options.add_session_config_entry(*WEIGHT_ONLY)
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(session: onnxruntime.InferenceSession, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs of a graph, in its types: the cache's type depends on the precision, and dialects differ."""
    return {
        tensor.name: fitted(inputs[tensor.name], tensor.type == "tensor(float16)", tensor.shape)
        for tensor in session.get_inputs()
    }


def fitted(value: Array, halved: bool, shape: Sequence[int | str | None]) -> Array:
    """Convert a value to a graph's input, which may be float16 or a cache of fixed capacity."""
    if halved:
        value = value.astype(np.float16)
    # A cache of fixed capacity is padded after the cached positions.
    room = [(0, d - v if isinstance(d, int) and v > 1 else 0) for d, v in zip(shape, value.shape)]
    return np.pad(value, room) if np.any(room) else value


def vq_encoder_inputs(image_size: int) -> dict[str, Array]:
    return _arrays({names.PIXELS: torch.rand(1, 3, image_size, image_size, generator=_generator()) * 2 - 1})


def vq_decoder_inputs(config: VQConfig, image_size: int) -> dict[str, Array]:
    cells = (image_size // config.downsampling) ** 2
    tokens = torch.randint(config.codebook_size, (1, cells), generator=_generator(), dtype=torch.int32)
    return _arrays({names.TOKENS: tokens})


def text_encoder_inputs(vocabulary: int, text_tokens: int) -> dict[str, Array]:
    """A text that fills half of the positions."""
    ids = torch.randint(vocabulary, (1, text_tokens), generator=_generator(), dtype=torch.int32)
    mask = (torch.arange(text_tokens)[None] < text_tokens // 2).int()
    return _arrays({names.INPUT_IDS: ids, names.ATTENTION_MASK: mask})


def prefix_inputs(config: TransformerConfig) -> dict[str, Array]:
    states = torch.randn(1, config.cls_token_num, config.caption_dim, generator=_generator())
    return _arrays({names.TEXT_STATES: states})


def case(part: str, model: Any, inputs: dict[str, Array]) -> Case:
    """Inputs and PyTorch's outputs of any part except decoder and sampler."""
    return Case(part, "", inputs, answers(part, model, inputs))


@torch.inference_mode()
def answers(part: str, model: Any, inputs: Mapping[str, Array], scales: Scales = ()) -> dict[str, Array]:
    """The outputs of a PyTorch model for a part's inputs, by name.

    Args:
        part: any except the sampler, which is compared with the host.
        model: the VQ tokenizer, text encoder or transformer of the part.
        inputs: of the graph, in any floating type; a cache may be longer than the cached positions.
        scales: of a decoder's int8 cache, a pair per layer.
    """
    given = {name: _as_pytorch(value) for name, value in inputs.items()}
    if part == names.VQ_ENCODER:
        return _arrays({names.TOKENS: _clear_tokens(model, given[names.PIXELS])})
    if part == names.VQ_DECODER:
        return _arrays({names.PIXELS: model.decode(given[names.TOKENS])})
    if part == names.TEXT_ENCODER:
        return _arrays({names.TEXT_STATES: encode(model, given[names.INPUT_IDS], given[names.ATTENTION_MASK])})
    if part == names.PREFIX_GRAPH:
        return _arrays(
            {
                names.TEXT_PREFIX: model.project_text(given[names.TEXT_STATES]),
                names.NULL_TEXT_PREFIX: model.null_text(),
                names.NULL_PICTURE_PREFIX: model.embed_picture(None),
            }
        )
    return _arrays({names.LOGITS: _logits(model, given, scales)})


def _as_pytorch(value: Array) -> Tensor:
    """A copy as a tensor, with floats converted to float32."""
    return torch.from_numpy(value.astype(np.float32 if np.issubdtype(value.dtype, np.floating) else value.dtype))


def _clear_tokens(vq: VQModel, pixels: Tensor) -> Tensor:
    """A picture's tokens; -1 where two codebook rows are about equally close."""
    features = vq.encode_features(pixels)
    tokens = vq.quantize_features(features)
    vectors = nn.functional.normalize(features.flatten(2).transpose(1, 2), dim=-1)
    best, second = (vectors @ vq.quantize.normalized().t()).topk(2).values.unbind(-1)  # [1, N] cosines
    tokens[best - second < CLEAR_MARGIN] = -1
    return tokens


def _logits(transformer: Transformer, given: Mapping[str, Tensor], scales: Scales) -> Tensor:
    """The transformer's logits for a decoder's inputs, in which all rows have the same past length."""
    tokens, past = given[names.TOKENS], int(given[names.PAST_LENGTH][0])
    cache = transformer.make_cache(len(tokens))
    if scales:
        cache.extend = partial(_extend_rounded, cache, scales)  # type: ignore[method-assign]
    for i in range(transformer.config.n_layer):
        pair = ((cache.keys[i], names.past_key(i)), (cache.values[i], names.past_value(i)))
        for which, (stored, name) in enumerate(pair):
            scale = scales[i][which] if scales else 1.0
            stored[:, :, :past] = given[name][:, :, :past].float() * scale
    embedded = transformer.tok_embeddings(tokens.clamp(min=0))
    hidden = torch.where(tokens[..., None] < 0, given[names.PREFIX], embedded)
    return transformer.logits(transformer.forward_chunk(hidden, past, cache))


def sampler_cases(vocab_size: int, most: int) -> list[Case]:
    """The tokens that the host samples in the self-test's cases, with a conditional and an unconditional row."""
    cases = []
    for example in selftest.sampler_examples(vocab_size, most):
        uncond_rows = np.asarray([1 if example.guided else 0, 1], np.int32)
        inputs = selftest.sampler_inputs(example, uncond_rows, most).arrays()
        inputs[names.LOGITS] = example.logits[:, None]
        inputs.setdefault(names.NOISE, np.zeros_like(inputs[names.LOGITS]))
        expected = np.asarray([[example.token], [-1]], np.int32)  # the unconditional row's token is not used
        cases.append(Case(names.SAMPLER, example.label, inputs, {names.DRAWN: expected}))
    return cases


@contextmanager
def matmuls_as_stored(transformer: Transformer, path: Path) -> Iterator[None]:
    """Make the model's matmuls round weights and activations as the integer matmuls of a decoder's graph do.

    A graph that dequantizes its weights does not round activations. The remaining difference between model and graph is
    the order of sums, and its effect on values near a rounding boundary. Weights are unpacked one layer at a time, so
    that the model is not in memory twice.
    """
    modules, handles = dict(transformer.named_modules()), []
    for node in ir.load(path).graph:
        if node.op_type not in ("MatMulNBits", "DequantizeLinear"):
            continue
        is_plain = node.op_type == "DequantizeLinear"
        constants = node.inputs[:2] if is_plain else node.inputs[1:3]
        packed, scales = (value.const_value for value in constants if value is not None)
        assert packed is not None and scales is not None  # the exporter writes constants
        module: Any = modules[str(packed.name).removesuffix(".weight")]

        def unpack(
            module: Any,
            inputs: tuple[Tensor],
            packed: ir.TensorProtocol = packed,
            scales: ir.TensorProtocol = scales,
            bits: int = 4 if is_plain else node.attributes["bits"].as_int(),
            block: int = node.attributes["block_size"].as_int() if "block_size" in node.attributes else WHOLE,
            is_plain: bool = is_plain,
        ) -> Tensor:
            by_block = scales.numpy().astype(np.float32)
            if is_plain:  # [in, out]; a whole input has one scale for each output
                by_row = by_block if block == WHOLE else np.repeat(by_block, block, axis=0)[: module.in_features]
                weight = np.ascontiguousarray((packed.numpy().astype(np.float32) * by_row).T)
            else:
                weight = dequantize(packed.numpy(), by_block, bits, module.in_features)
            module.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
            return inputs[0] if is_plain else round_activations(inputs[0], block)

        def restore(module: Any, *_: Any, own: nn.Parameter = module.weight) -> None:
            module.weight = own

        handles += [module.register_forward_pre_hook(unpack), module.register_forward_hook(restore)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def round_activations(values: Tensor, block: int) -> Tensor:
    """Round activations [..., in] as MatMulNBits does: in every block, integers up to 127 times a scale."""
    size = values.shape[-1]
    blocks = nn.functional.pad(values, (0, -size % block)).unflatten(-1, (-1, block))
    scales = blocks.abs().amax(dim=-1, keepdim=True) / LARGEST
    rounded = torch.where(scales > 0, (blocks / scales).round() * scales, 0)
    return rounded.flatten(-2)[..., :size]


def cache_scales_of(path: Path, layers: int) -> Scales:
    """The scales in the graph of a decoder with an int8 cache; empty for one without."""
    stored = {name: value.const_value for name, value in ir.load(path).graph.initializers.items()}
    if scale_names(0)[0] not in stored:
        return ()
    pairs = [[stored[name] for name in scale_names(layer)] for layer in range(layers)]
    return [(keys.numpy().item(), values.numpy().item()) for keys, values in pairs if keys and values]


def decoder_cases(transformer: Transformer, path: Path, part: str = names.DECODER) -> list[Case]:
    """Two rows with an empty cache, and one row after a random past, from text to target positions.

    Args:
        path: the graph, whose integer matmuls PyTorch imitates.
        part: `DECODER_CHUNKS` has two rows after the past instead.
    """
    config, embeddings = transformer.config, transformer.tok_embeddings.weight
    scales, cases = cache_scales_of(path, config.n_layer), []
    with matmuls_as_stored(transformer, path):
        for label, rows, filled, chunk in DECODER_CASES[part]:
            inputs = decoder_inputs(config, embeddings, scales, rows, filled, chunk)
            cases.append(Case(part, label, inputs, answers(part, transformer, inputs, scales)))
    return cases


def decoder_inputs(
    config: TransformerConfig, embeddings: Tensor, scales: Scales, rows: int, filled: bool, chunk: int
) -> dict[str, Array]:
    """Inputs of a decoder, for all dialects.

    Args:
        embeddings: of the picture tokens, float32 [V, D].
        scales: of an int8 cache, a pair per layer; empty for other caches.
        rows, filled, chunk: as in `DECODER_CASES`.
    """
    generator = _generator()
    past = max(config.block_size + config.cls_token_num - 2, 1) if filled else 0
    chunk = min(chunk, config.max_positions - past)
    inputs: dict[str, Array] = {}
    for i in range(config.n_layer):
        for name in (names.past_key(i), names.past_value(i)):
            stored = torch.zeros(rows, config.n_head, past + chunk, config.head_dim)
            before = torch.randn(rows, config.n_head, past, config.head_dim, generator=generator)
            if scales:  # integers, four deviations wide
                before, stored = (before * LARGEST / 4).round().clamp(-LARGEST, LARGEST), stored.to(torch.int8)
            stored[:, :, :past] = before
            inputs[name] = stored.numpy()
    tokens = torch.randint(config.vocab_size, (rows, chunk), generator=generator)
    # Embeddings replace texts: noise is unlike any training data, and would amplify every rounding.
    prefix = embeddings[torch.randint(config.vocab_size, (rows, chunk), generator=generator)]
    tokens[:, ::2] = -1  # every other position takes its value from the prefix
    return inputs | _arrays(
        {
            names.TOKENS: tokens.int(),
            names.PREFIX: prefix,
            names.LOGIT_POSITIONS: torch.arange(chunk).int(),
            names.PAST_LENGTH: torch.full((rows,), past).int(),
            names.LAST_ROW: torch.full((rows,), past + chunk - 1).int(),
            names.POSITIONS: (past + torch.arange(chunk)).expand(rows, chunk).int(),
            names.TOTAL_LENGTH: torch.tensor(past + chunk).int(),
            names.CHUNK_LENGTHS: torch.full((rows,), chunk).int(),
        }
    )


def _extend_rounded(
    cache: KVCache, scales: Scales, layer: int, position: int, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    """`KVCache.extend` for a cache of integers times a layer's scales."""
    rounded = (
        (x / scale).round().clamp(-LARGEST - 1, LARGEST) * scale for x, scale in zip((keys, values), scales[layer])
    )
    return KVCache.extend(cache, layer, position, *rounded)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def _arrays(tensors: dict[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}
