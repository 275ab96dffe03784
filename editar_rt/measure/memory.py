"""Estimates the memory that a bundle needs from its manifest and the sizes of its files; nothing is loaded.

The estimates help to choose a device. Weights and cache are exact except for padding and prepacking; activations are
the most that one operator reads and writes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from editar_rt import names
from editar_rt.backends.engines.folder import find_folders, read_build
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.manifest import Manifest
from editar_rt.bundle.words import PRECISIONS

FLOAT32 = 4
DECODER_WIDTHS = 13  # largest working set of a position in the decoder, as a multiple of the model's width


@dataclass(frozen=True)
class Need:
    """Bytes on one kind of device."""

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations


def cache_bytes_per_position(manifest: Manifest) -> int:
    """Bytes of the keys and values of one position of one row in all layers; 0 without a decoder."""
    model = manifest.model
    cache_type = next(
        (t.dtype for part in manifest.parts.values() for t in part.inputs if t.name == names.past_key(0)), None
    )
    if cache_type is None:
        return 0
    element = 2 if cache_type == "bfloat16" else np.dtype(cache_type).itemsize
    return 2 * (model.layers or 0) * (model.dim or 0) * element


def memory_needs(bundle: Bundle, rows: int = 2) -> dict[str, Need]:
    """The memory needed on each device, `cpu` and `cuda`, with every part loaded.

    Args:
        rows: number of rows of the decoder; two with guidance.

    Raises:
        BundleError: a part's graph cannot be read, or reads what it may not.
    """
    manifest, needs = bundle.manifest, {}
    model = manifest.model
    positions = 2 * (model.picture_tokens or 0) + (model.text_tokens or 0)
    cache = rows * positions * cache_bytes_per_position(manifest)
    chunk = rows * (positions - (model.picture_tokens or 0)) * (model.dim or 0) * DECODER_WIDTHS * FLOAT32
    activations = max([*model.activations.values(), chunk if names.DECODER in manifest.parts else 0], default=0)
    stored = bundle.stored_bytes(*manifest.parts)
    # CPUs have no 16-bit matmuls: ONNX Runtime converts such weights to float32 when it loads them.
    widened = FLOAT32 * sum(model.parameters.values()) if PRECISIONS[manifest.precision].is_half else stored
    for device, weights in (("cpu", widened), ("cuda", stored)):
        needs[device] = Need(weights, cache, activations)
    return needs


def engine_needs(bundle: Bundle, rows: int = 2) -> dict[str, Need]:
    """The GPU memory that built engines need, by the name of their folder in the bundle; TensorRT is not needed.

    An engine of several shapes counts once, others each with all their weights. `activations` is the memory that all
    share; of engines that have not run, it is what their builder logged.

    Args:
        rows: number of rows of the decoder; two with guidance.

    Raises:
        BackendError: a folder's `build.json` is damaged.
    """
    needs, per_position = {}, cache_bytes_per_position(bundle.manifest)
    decoder = bundle.manifest.parts.get(names.DECODER)
    past = [tensor for tensor in decoder.inputs if tensor.name == names.past_key(0)] if decoder is not None else []
    capacity = next((size for tensor in past if isinstance(size := tensor.shape[2], int)), 0)
    for folder in find_folders(bundle):
        info = read_build(folder)
        weights = sum(file.bytes for file in info.files.values())
        scratch = max((engine.scratch_bytes for engine in info.engines.values()), default=0)
        needs[folder.name] = Need(weights, info.plan.padded(rows) * capacity * per_position, scratch)
    return needs
