"""The tensors that a manifest must list for each part, with shapes that fit the model's sizes.

Buffers and loops depend on those sizes, so contradictions must be found before a graph is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from editar_rt import names
from editar_rt.bundle.manifest import Manifest, Part, TensorInfo
from editar_rt.errors import BundleError

SYMBOL = None  # a symbolic dimension, chosen by each call
Shape = tuple[int | str | None, ...]  # numbers, names of fields of `ModelInfo`, and `SYMBOL`

PIXELS: Shape = (SYMBOL, 3, "image_size", "image_size")
PICTURE: Shape = (SYMBOL, "picture_tokens")
TEXT: Shape = (SYMBOL, "text_tokens")
STATES: Shape = (SYMBOL, "text_tokens", "text_dim")
CHUNK: dict[str, Shape] = {names.TOKENS: (SYMBOL, SYMBOL), names.PREFIX: (SYMBOL, SYMBOL, "dim")}
LOGITS: dict[str, Shape] = {names.LOGITS: (SYMBOL, SYMBOL, "vocab_size")}

# By part: inputs, outputs.
TENSORS: dict[str, tuple[dict[str, Shape], dict[str, Shape]]] = {
    names.VQ_ENCODER: ({names.PIXELS: PIXELS}, {names.TOKENS: PICTURE}),
    names.VQ_DECODER: ({names.TOKENS: PICTURE}, {names.PIXELS: PIXELS}),
    names.TEXT_ENCODER: ({names.INPUT_IDS: TEXT, names.ATTENTION_MASK: TEXT}, {names.TEXT_STATES: STATES}),
    names.PREFIX_GRAPH: (
        {names.TEXT_STATES: STATES},
        {
            names.TEXT_PREFIX: (SYMBOL, "text_tokens", "dim"),
            names.NULL_TEXT_PREFIX: (1, "text_tokens", "dim"),
            names.NULL_PICTURE_PREFIX: (1, "picture_tokens", "dim"),
        },
    ),
    names.DECODER: (CHUNK, LOGITS),
    names.DECODER_CHUNKS: (CHUNK | {names.CHUNK_LENGTHS: (SYMBOL,)}, LOGITS),
    names.SAMPLER: (
        {names.LOGITS: (SYMBOL, SYMBOL, "vocab_size"), names.NOISE: (SYMBOL, SYMBOL, "vocab_size")},
        {names.DRAWN: (SYMBOL, SYMBOL)},
    ),
}
# Symbols that a dialect of fixed shapes may have: what an engine fixes.
CALLED = (names.ROWS_DIM, names.POSITIONS_DIM, names.WANTED_DIM, names.PREFIX_ROWS_DIM, names.PREFIX_POSITIONS_DIM)


def check_parts(manifest: Manifest, where: str) -> None:
    """Reject parts whose tensors differ from those that the runtime binds, or do not fit the model's sizes.

    Args:
        where: the manifest's name, for messages.
    """
    for name, part in manifest.parts.items():
        if name not in TENSORS:
            continue
        expected = list(zip(("input", "output"), (part.inputs, part.outputs), TENSORS[name], strict=True))
        for kind, tensors, shapes in expected:
            given = {tensor.name: tensor for tensor in tensors}
            for tensor, shape in shapes.items():
                _check_tensor(manifest, f"{where}: {name}", kind, given, tensor, shape)
        if name in (names.DECODER, names.DECODER_CHUNKS):
            _check_cache(manifest, part, f"{where}: {name}")
        for tensor_info in (*part.inputs, *part.outputs):
            unknown = [d for d in tensor_info.shape if isinstance(d, str) and d not in CALLED]
            if manifest.operators.has_fixed_shapes and unknown:
                _refuse(
                    f"{where}: {name}: {tensor_info.name} has the dimension {unknown[0]!r:.40}, which the dialect "
                    f"{manifest.dialect} does not have"
                )


def _check_cache(manifest: Manifest, part: Part, where: str) -> None:
    """Check the decoder's keys and values, two tensors per layer."""
    layers, fixed = manifest.model.layers, manifest.operators.has_fixed_shapes
    if layers is None:
        _refuse(f"{where} needs the size layers, which model lacks")
    held = sum(tensor.name.startswith(names.PAST_BEGINNINGS) for tensor in part.inputs)
    if held != 2 * layers:
        _refuse(f"{where} must have keys and values of {layers} layers, as in model, but has {held} such tensors")
    shape: Shape = (SYMBOL, "heads", SYMBOL, "head_dim")
    inputs, outputs = ({tensor.name: tensor for tensor in tensors} for tensors in (part.inputs, part.outputs))
    for past, present in _cache_names(layers):
        _check_tensor(manifest, where, "input", inputs, past, shape, fixed_too=fixed)
        if not manifest.operators.returns_new_rows:
            _check_tensor(manifest, where, "output", outputs, present, shape, fixed_too=fixed)
            if fixed and inputs[past].shape != outputs[present].shape:
                _refuse(f"{where}: {present} must have the shape of {past}, with whose memory it is updated in place")
    if manifest.operators.returns_new_rows:
        rows: Shape = (2 * layers, SYMBOL, "heads", SYMBOL, "head_dim")
        _check_tensor(manifest, where, "output", outputs, names.NEW_ROWS, rows)


def _cache_names(layers: int) -> Iterator[tuple[str, str]]:
    for layer in range(layers):
        yield names.past_key(layer), names.present_key(layer)
        yield names.past_value(layer), names.present_value(layer)


def _check_tensor(
    manifest: Manifest,
    where: str,
    kind: str,
    given: dict[str, TensorInfo],
    name: str,
    shape: Shape,
    fixed_too: bool = False,
) -> None:
    """Check one tensor by its name.

    Args:
        fixed_too: allow numbers in place of symbols.
    """
    tensor = given.get(name)
    if tensor is None:
        _refuse(f"{where} lacks the {kind} {name}")
    wanted: list[int | None] = []
    for dimension in shape:
        size = getattr(manifest.model, dimension) if isinstance(dimension, str) else dimension
        if isinstance(dimension, str) and size is None:
            _refuse(f"{where} needs the size {dimension}, which model lacks")
        wanted.append(size)
    fits = len(tensor.shape) == len(wanted) and all(
        actual == size if size is not None else isinstance(actual, str) or (fixed_too and actual > 0)
        for actual, size in zip(tensor.shape, wanted, strict=True)
    )
    if not fits:
        shown = ", ".join("any" if size is None else str(size) for size in wanted)
        _refuse(f"{where}: {name} must be [{shown}], as in model, got {tensor.shape!s:.80}")


def _refuse(what: str) -> NoReturn:
    raise BundleError(f"{what}; export the bundle again")
