"""Exported graphs against the PyTorch models they came from, on small seeded inputs, before a bundle is published.

A graph that loads is not yet a graph that is right. A `Case` is made from the PyTorch model and compared with the graph
as it lies on disk, run by ONNX Runtime. Whole generations are compared in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from editar_rt import names
from editar_rt.errors import BackendError
from training.checkpoints import first_line
from training.models.text_encoder import encode
from training.models.transformer import Transformer
from training.models.vq import VQModel

Array = np.ndarray[Any, np.dtype[Any]]

# Float32 differs by the order of sums: up to 7e-6 (GPT-XL) was measured, and 2e-4 is what the golden numbers allow.
# Float16 keeps 11 bits, and errors grow with the number of layers: 2e-4 (3) to 4e-3 (36, GPT-XL) was measured on
# random weights, which are harder than trained ones.
BOUNDS = {"fp32": 2e-4, "fp16": 1e-2}
CLEAR_MARGIN = 1e-4  # of the best codebook row's cosine over the second's: far above what sums in another order change
SEED = 0


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
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, too
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    stored_types = {
        tensor.name: np.float16 for tensor in session.get_inputs() if tensor.type == "tensor(float16)"
    }  # the cache of an fp16 graph
    found = []
    for case in cases:
        feeds = {name: array.astype(stored_types.get(name, array.dtype)) for name, array in case.inputs.items()}
        answers = session.run(list(case.expected), feeds)
        for (name, expected), answer in zip(case.expected.items(), answers):
            label = f"{name}, {case.label}" if case.label else name
            if np.issubdtype(expected.dtype, np.integer):
                found.append(Parity(case.part, label, float((answer != expected)[expected >= 0].mean()), 0.0))
            else:
                error = float(np.abs(answer - expected).max() / np.abs(expected).max())
                found.append(Parity(case.part, label, error, bound))
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


@torch.inference_mode()
def decoder_cases(transformer: Transformer) -> list[Case]:
    """Two rows from an empty cache; then one row behind a random past, crossing from text to target positions."""
    config, generator = transformer.config, _generator()
    first_target = config.block_size + config.cls_token_num
    cases = []
    for label, rows, past, chunk in (("prefill", 2, 0, 6), ("chunk after a past", 1, first_target - 2, 4)):
        cache = transformer.make_cache(rows)
        for stored in (cache.keys, cache.values):
            stored[:, :, :past] = torch.randn(stored[:, :, :past].shape, generator=generator)
        inputs = {}
        for i in range(config.n_layer):  # copies: the PyTorch cache is extended in place below
            inputs[names.past_key(i)] = cache.keys[i, :, : past + chunk].transpose(1, 2).clone()
            inputs[names.past_value(i)] = cache.values[i, :, : past + chunk].transpose(1, 2).clone()
        tokens = torch.randint(config.vocab_size, (rows, chunk), generator=generator)
        embedded = transformer.tok_embeddings(tokens)
        prefix = embedded.std() * torch.randn(embedded.shape, generator=generator)
        tokens[:, ::2] = -1  # every other position is taken from the prefix
        hidden = torch.where(tokens[..., None] < 0, prefix, embedded)
        logits = transformer.logits(transformer.forward_chunk(hidden, past, cache))
        inputs |= {
            names.TOKENS: tokens.int(),
            names.PREFIX: prefix,
            names.LOGIT_POSITIONS: torch.arange(chunk).int(),
            names.PAST_LENGTH: torch.full((rows,), past).int(),
            names.TOTAL_LENGTH: torch.tensor(past + chunk).int(),
        }
        cases.append(Case(names.DECODER, label, _arrays(inputs), _arrays({names.LOGITS: logits})))
    return cases


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def _arrays(tensors: dict[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}
