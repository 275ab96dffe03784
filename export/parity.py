"""Exported graphs against the PyTorch models they came from, on small seeded inputs, before a bundle is published.

A graph that loads is not yet a graph that is right. A `Case` is made from the PyTorch model and compared with the graph
as it lies on disk, run by ONNX Runtime. Whole generations are compared in the tests.
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
from editar_rt.backends.ort.backend import WEIGHT_ONLY
from editar_rt.errors import BackendError
from editar_rt.measure import selftest
from export.calibration import LARGEST
from export.precision import dequantize
from export.spelling import Scales, scale_names
from training.errors import first_line
from training.models.text_encoder import encode
from training.models.transformer import KVCache, Transformer
from training.models.vq import VQModel

Array = np.ndarray[Any, np.dtype[Any]]

CLEAR_MARGIN = 1e-4  # of the best codebook row's cosine over the second's: far above what sums in another order change
SEED = 0
# Label, rows, whether there is a past, positions.
DECODER_CASES = (("prefill", 2, False, 6), ("chunk after a past", 1, True, 4))


@dataclass(frozen=True)
class Case:
    """Inputs of a graph, and what PyTorch answers."""

    part: str
    label: str
    inputs: dict[str, Array]
    expected: dict[str, Array]
    """By output. Tokens that may differ, because two codebook rows are about equally near, are -1."""


@dataclass(frozen=True)
class Parity:
    """How far one output is from PyTorch's.

    The error is the largest absolute difference over the largest expected value; of tokens, the share that differs.
    """

    part: str
    label: str
    error: float
    bound: float

    @property
    def holds(self) -> bool:
        return self.error <= self.bound  # false for NaN

    def __str__(self) -> str:
        verdict = "ok" if self.holds else "TOO FAR"
        return f"{self.part:12}  {self.label:28}  error {self.error:.1e}  bound {self.bound:.0e}  {verdict}"


def compare(path: Path, cases: Sequence[Case], bound: float) -> list[Parity]:
    """Run a graph on every case, on the CPU. Tokens must be equal whatever the bound.

    Raises:
        BackendError: where ONNX Runtime does not load or run the graph.
    """
    try:
        return _compare(path, cases, bound)
    except Exception as error:  # the binding raises its own classes, all of them direct Exceptions
        raise BackendError(
            f"ONNX Runtime {onnxruntime.__version__} does not run {path.name}: {first_line(error)}"
        ) from error


def _compare(path: Path, cases: Sequence[Case], bound: float) -> list[Parity]:
    # One run does not pay for rearranged weights, which would take a text encoder's memory twice. The decoder's
    # whole-number products have no other way.
    session = open_session(path, prepack=any(case.part == names.DECODER for case in cases))
    found = []
    for case in cases:
        answers = session.run(list(case.expected), feeds(session, case.inputs))
        for (name, expected), answer in zip(case.expected.items(), answers):
            label = f"{name}, {case.label}" if case.label else name
            if np.issubdtype(expected.dtype, np.integer):
                found.append(Parity(case.part, label, float((answer != expected)[expected >= 0].mean()), 0.0))
            else:
                error = float(np.abs(answer - expected).max() / np.abs(expected).max())
                found.append(Parity(case.part, label, error, bound))
    return found


def open_session(path: Path, prepack: bool = True) -> onnxruntime.InferenceSession:
    """A graph on the CPU, as the runtime opens it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, too
    options.add_session_config_entry(*WEIGHT_ONLY)
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(session: onnxruntime.InferenceSession, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs that a graph has, in its types: the cache's is the precision's, and spellings differ."""
    found = {}
    for tensor in session.get_inputs():
        value = inputs[tensor.name]
        if tensor.type == "tensor(float16)":
            value = value.astype(np.float16)
        # A cache of fixed capacity has room behind what is filled.
        room = [(0, d - v if isinstance(d, int) and v > 1 else 0) for d, v in zip(tensor.shape, value.shape)]
        found[tensor.name] = np.pad(value, room) if np.any(room) else value
    return found


@torch.inference_mode()
def vq_encoder_case(vq: VQModel, image_size: int) -> Case:
    pixels = torch.rand(1, 3, image_size, image_size, generator=_generator()) * 2 - 1
    features = vq.encode_features(pixels)
    tokens = vq.quantize_features(features)
    vectors = nn.functional.normalize(features.flatten(2).transpose(1, 2), dim=-1)
    best, second = (vectors @ vq.quantize.normalized().t()).topk(2).values.unbind(-1)  # [1, N] cosines
    tokens[best - second < CLEAR_MARGIN] = -1
    return Case(names.VQ_ENCODER, "", _arrays({names.PIXELS: pixels}), _arrays({names.TOKENS: tokens}))


@torch.inference_mode()
def vq_decoder_case(vq: VQModel, image_size: int) -> Case:
    cells = (image_size // vq.config.downsampling) ** 2
    tokens = torch.randint(vq.config.codebook_size, (1, cells), generator=_generator(), dtype=torch.int32)
    return Case(names.VQ_DECODER, "", _arrays({names.TOKENS: tokens}), _arrays({names.PIXELS: vq.decode(tokens)}))


@torch.inference_mode()
def text_encoder_case(encoder: nn.Module, text_tokens: int) -> Case:
    """A text that fills half of the positions."""
    vocabulary = int(encoder.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    ids = torch.randint(vocabulary, (1, text_tokens), generator=_generator(), dtype=torch.int32)
    mask = (torch.arange(text_tokens)[None] < text_tokens // 2).int()
    inputs = {names.INPUT_IDS: ids, names.ATTENTION_MASK: mask}
    return Case(names.TEXT_ENCODER, "", _arrays(inputs), _arrays({names.TEXT_STATES: encode(encoder, ids, mask)}))


@torch.inference_mode()
def prefix_case(transformer: Transformer) -> Case:
    config = transformer.config
    states = torch.randn(1, config.cls_token_num, config.caption_dim, generator=_generator())
    expected = {
        names.TEXT_PREFIX: transformer.project_text(states),
        names.NULL_TEXT_PREFIX: transformer.null_text(),
        names.NULL_PICTURE_PREFIX: transformer.embed_picture(None),
    }
    return Case(names.PREFIX_GRAPH, "", _arrays({names.TEXT_STATES: states}), _arrays(expected))


def sampler_cases(vocab_size: int, most: int) -> list[Case]:
    """What the host draws in the self-test's cases, with guidance and without: a picture's row and its null row."""
    cases = []
    for example in selftest.sampler_examples(vocab_size, most):
        inputs = {
            name: np.atleast_1d(np.asarray(value, np.int32 if name == names.TOP_K else np.float32))
            for name, value in example.draw.repeated(2).inputs.items()
        }
        inputs[names.LOGITS] = example.logits[:, None]
        inputs[names.NULL_ROWS] = np.asarray([1 if example.guided else 0, 1], np.int32)
        expected = np.asarray([example.token, -1], np.int32)  # the null row's token is nobody's
        cases.append(Case(names.SAMPLER, example.label, inputs, {names.DRAWN: expected}))
    return cases


@contextmanager
def products_as_stored(transformer: Transformer, path: Path) -> Iterator[None]:
    """The model with the products that a decoder's graph takes of whole numbers: weights and activations as it rounds.

    A graph that dequantizes its weights rounds no activations.
    What is left between the two is the order of sums, and what a number that lies between two whole ones makes of it.
    Weights are unpacked one layer at a time, so that the model is not in memory twice.
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
            block: int = node.attributes["block_size"].as_int(),
            is_plain: bool = is_plain,
        ) -> Tensor:
            by_block = scales.numpy().astype(np.float32)
            if is_plain:  # [in, out]
                weight = packed.numpy().astype(np.float32) * np.repeat(by_block, block, axis=0)[: module.in_features]
                weight = np.ascontiguousarray(weight.T)
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
    """What MatMulNBits multiplies instead of [..., in]: in every block whole numbers up to 127 times a scale."""
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


@torch.inference_mode()
def decoder_cases(transformer: Transformer, path: Path) -> list[Case]:
    """Two rows from an empty cache; then one row behind a random past, crossing from text to target positions.

    Args:
        path: the graph; what it multiplies as whole numbers, PyTorch does too.
    """
    scales = cache_scales_of(path, transformer.config.n_layer)
    with products_as_stored(transformer, path):
        return [_decoder_case(transformer, scales, *which) for which in DECODER_CASES]


def _decoder_case(transformer: Transformer, scales: Scales, label: str, rows: int, filled: bool, chunk: int) -> Case:
    config, generator = transformer.config, _generator()
    past = max(config.block_size + config.cls_token_num - 2, 1) if filled else 0
    chunk = min(chunk, config.max_positions - past)
    cache = transformer.make_cache(rows)
    if scales:
        cache.extend = partial(_extend_rounded, cache, scales)  # type: ignore[method-assign]
    inputs: dict[str, Array] = {}
    for i in range(config.n_layer):
        pair = ((names.past_key(i), cache.keys[i]), (names.past_value(i), cache.values[i]))
        for which, (name, stored) in enumerate(pair):
            before = torch.randn(stored[:, :, :past].shape, generator=generator)
            given = torch.zeros(stored[:, :, : past + chunk].shape)
            if scales:
                whole = (before * LARGEST / 4).round().clamp(-LARGEST, LARGEST)  # four deviations wide
                before, given = whole * scales[i][which], given.to(torch.int8)
                given[:, :, :past] = whole.to(torch.int8)
            else:
                given[:, :, :past] = before
            stored[:, :, :past] = before
            inputs[name] = given.numpy()
    tokens = torch.randint(config.vocab_size, (rows, chunk), generator=generator)
    embedded = transformer.tok_embeddings(tokens)
    # Embeddings stand in for texts: noise would be what no model was trained on, and blow every rounding up.
    prefix = transformer.tok_embeddings(torch.randint(config.vocab_size, (rows, chunk), generator=generator))
    tokens[:, ::2] = -1  # every other position is taken from the prefix
    hidden = torch.where(tokens[..., None] < 0, prefix, embedded)
    logits = transformer.logits(transformer.forward_chunk(hidden, past, cache))
    inputs |= _arrays(
        {
            names.TOKENS: tokens.int(),
            names.PREFIX: prefix,
            names.LOGIT_POSITIONS: torch.arange(chunk).int(),
            names.PAST_LENGTH: torch.full((rows,), past).int(),
            names.LAST_ROW: torch.full((rows,), past + chunk - 1).int(),
            names.POSITIONS: (past + torch.arange(chunk)).expand(rows, chunk).int(),
            names.TOTAL_LENGTH: torch.tensor(past + chunk).int(),
        }
    )
    return Case(names.DECODER, label, inputs, _arrays({names.LOGITS: logits}))


def _extend_rounded(
    cache: KVCache, scales: Scales, layer: int, position: int, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    """`KVCache.extend` of a cache that stores whole numbers times a layer's scales."""
    rounded = (
        (x / scale).round().clamp(-LARGEST - 1, LARGEST) * scale for x, scale in zip((keys, values), scales[layer])
    )
    return KVCache.extend(cache, layer, position, *rounded)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def _arrays(tensors: dict[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}
