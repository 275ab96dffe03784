"""A bundle's self-test: fixed inputs for every part, and the outputs of the exporting machine.

The exporter writes the result of `answers` into the manifest, and `editar verify` computes it again on the target.
Inputs are computed arithmetically, because a library may change the stream of its random generator. The decoder is
tested on the beginning of a sequence, which takes only seconds even at full size.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.backends.sampler import BY_NOISE, SamplerInputs, rounded_gumbel
from editar_rt.bundle.compare import Comparison, largest_difference, relative_error
from editar_rt.bundle.words import rounds_activations
from editar_rt.errors import BundleError, NotFiniteError
from editar_rt.generation.decoding import decode
from editar_rt.generation.noise import gumbel
from editar_rt.generation.noise import words as random_words
from editar_rt.generation.sampling import Sampling, candidates, distribution, guide, sample, sample_with_gumbel
from editar_rt.generation.scheduler import Scheduler
from editar_rt.generation.sequence import Chunk, Inputs, Sequence, state_chunk, token_chunk
from editar_rt.model import Model

PROMPT = "make the ball red"
CHUNK = 32  # positions of the decoder's prefill that are tokens, and then
TEXT_POSITIONS = 8  # from the text, and
STEPS = 8  # greedy tokens after it; fewer of each where the model's sequences are short
GREEDY, LOGITS_AFTER = "greedy_tokens", "logits_after"
SAMPLES = 16  # values of an output that are stored for comparison

SAMPLINGS = (
    Sampling(greedy=True),
    Sampling(cfg_scale=1.0, greedy=True),
    Sampling(),
    Sampling(cfg_scale=1.0, temperature=0.7, top_k=50),
    Sampling(cfg_scale=5.0, temperature=1.5, top_p=0.9),
    Sampling(cfg_scale=1.0, top_k=0),
    Sampling(noise="gumbel"),
    Sampling(cfg_scale=1.0, temperature=0.7, top_k=50, noise="gumbel"),
)  # settings with which samplers are tested
TIES = 0.01  # share of a picture's tokens that may differ, as two codebook rows may be about equally close


@dataclass(frozen=True)
class Way:
    """A way to run the decoder; all ways must give the same outputs."""

    rows: int = 1
    """Number of rows that run together, all with the same sequence."""
    row: int = 0
    """The row whose outputs are used."""
    pieces: int = 1
    """Number of pieces of the prefill: 1, or 2 with tokens and text separately."""


ONE_ROW = Way()


def answers(editor: Model, parts: Collection[str], way: Way = ONE_ROW) -> dict[str, Any]:
    """The outputs of this machine, by part and output, as JSON values.

    Args:
        parts: the bundle's parts to run.
    """
    found = {}
    if names.TEXT_ENCODER in parts:
        found[names.TEXT_ENCODER] = {names.TEXT_STATES: _values(editor.encode_prompts([PROMPT]))}
    if names.VQ_ENCODER in parts:
        found[names.VQ_ENCODER] = {names.TOKENS: _tokens(editor.encode_pixels(picture(editor.image_size)))}
    if names.VQ_DECODER in parts:
        shown = editor.decode_tokens(_spread(editor.picture_tokens, editor.model.codebook_size or 1)[None])
        found[names.VQ_DECODER] = {names.PIXELS: _values(shown)}
    if names.PREFIX_GRAPH in parts and names.DECODER in parts:
        found |= _transformer(editor, way)
    if names.SAMPLER in parts:
        found[names.SAMPLER] = _sampler(editor)
    return found


@dataclass(frozen=True)
class SamplerExample:
    """Logits for a sampler, and the token that the host samples from them."""

    label: str
    guided: bool
    logits: NDArray[np.float32]
    """[2, V], conditional and unconditional."""
    sampling: Sampling
    scale: float
    number: float
    """`BY_NOISE` if the noise decides."""
    words: NDArray[np.uint64] | None
    """[V], for the noise."""
    token: int
    """The token that the host samples."""


def sampler_examples(size: int, most: int) -> Iterator[SamplerExample]:
    """Two examples for each of `SAMPLINGS` that a sampler supports, far from rounding boundaries.

    Args:
        size: size of the vocabulary.
        most: the largest top-k of the sampler.
    """
    logits = np.maximum(-0.02 * _spread(size, size), -30.0)[None] * np.asarray([[1.0], [0.5]])
    logits = logits.astype(np.float32)
    for sampling in SAMPLINGS:
        scale = float(sampling.scales(1)[0])
        row = guide(logits[0], logits[1], scale) if sampling.guided else logits[0]
        if not SamplerInputs.unused(1, 1).set(0, sampling, most, size):
            continue
        chosen: list[tuple[float, NDArray[np.uint64] | None, int]]
        if sampling.greedy:
            chosen = [(0.0, None, int(row.argmax()))]
        elif sampling.noise == "gumbel":
            own = [_clear_words(row, sampling, seed) for seed in (0, 1000)]
            chosen = [(BY_NOISE, words, sample_with_gumbel(row, sampling, words)) for words in own]
        else:
            _, probabilities = distribution(row, sampling)
            ends = np.cumsum(probabilities)
            # In the middle of the intervals of the two most likely tokens.
            numbers = [float(ends[i] - probabilities[i] / 2) for i in np.argsort(-probabilities)[:2]]
            chosen = [(number, None, sample(row, sampling, number)) for number in numbers]
        for number, words, token in chosen:
            label = f"cfg_scale {scale:g}, top_k {sampling.top_k}, top_p {sampling.top_p:g}, number {number:.2f}"
            yield SamplerExample(label, sampling.guided, logits, sampling, scale, number, words, token)


def _clear_words(row: NDArray[np.float32], sampling: Sampling, seed: int) -> NDArray[np.uint64]:
    """Random words with which the best token is well ahead of the second; the first such seed from `seed` on."""
    while True:
        drawn = random_words(seed, 0, 0, len(row))
        kept, weights = candidates(row, sampling)
        second, best = np.sort(np.log(weights) + gumbel(drawn[kept]))[-2:]
        if best - second > 0.1:
            return drawn
        seed += 1


def sampler_inputs(example: SamplerExample, uncond_rows: NDArray[np.int32], most: int) -> SamplerInputs:
    """Inputs of an example for rows of logits of the same picture."""
    rows, size = len(uncond_rows), example.logits.shape[1]
    inputs = SamplerInputs.unused(rows, 1)
    for row in range(rows):
        inputs.set(row, example.sampling, most, size)
    inputs.numbers[:], inputs.cfg_scale[:], inputs.uncond_rows[:] = example.number, example.scale, uncond_rows
    if example.words is None:
        return inputs
    noise = np.broadcast_to(rounded_gumbel(example.words), (rows, 1, size))
    return inputs._replace(noise=np.ascontiguousarray(noise))


def verify(editor: Model, parts: Collection[str] | None = None, way: Way = ONE_ROW) -> list[Comparison]:
    """Repeat the self-test of an editor's bundle.

    Args:
        parts: the parts to test; None means all of the self-test. The decoder needs the prefix.

    Raises:
        BundleError: the bundle has no self-test, or an incomplete one.
    """
    manifest, exact = editor.bundle.manifest, other_version(editor) is not None
    if not manifest.self_test:
        raise BundleError(f"the bundle {editor.bundle.folder} has no self-test; export it again")
    wanted = [part for part in manifest.self_test if parts is None or part in parts]
    here, checks = answers(editor, [part for part in wanted if part in manifest.parts], way), []
    try:
        for part in wanted:
            outputs = here[part]
            bound = 0.0 if exact and part == names.DECODER else manifest.bound(part)
            for output, found in outputs.items():
                if output == LOGITS_AFTER and outputs[GREEDY]["tokens"] != manifest.self_test[part][GREEDY]["tokens"]:
                    continue  # of another text; whether its tokens may be others, their own check says
                checks.append(_compare(part, output, manifest.self_test[part][output], found, bound))
    except (LookupError, TypeError, ValueError) as e:
        raise BundleError(
            f"the self-test of the bundle {editor.bundle.folder} is not complete ({e!r}); export it again"
        ) from None
    return checks


def other_version(editor: Model) -> str | None:
    """The exporter's version of ONNX Runtime, if its answers must be repeated to the bit and this one is another.

    A decoder that rounds activations to integers gives other tokens after the smallest other error. Versions that
    compute the same bits are as good as the exporter's; another version with other bits is not: with 1.28 in place of
    1.32, 25 of 30 edits of the demo had other tokens, although the logits here differed by 7e-7. Other processors
    round at other places with any version, so they are held to the usual bounds.
    """
    manifest = editor.bundle.manifest
    here = getattr(getattr(editor.backend, "ort", None), "__version__", None)
    there = manifest.made_by.get("onnxruntime")
    same_kind = manifest.made_by.get("machine", platform.machine()) == platform.machine()
    rounds = rounds_activations(manifest.precision, manifest.kv_cache, manifest.dialect)
    apart = here is not None and there is not None and here != there
    return there if apart and same_kind and rounds and editor.backend.device == "cpu" else None


def batch_checks(editor: Model, sizes: Iterable[int] = (2, 3, 4)) -> list[Comparison]:
    """Check that a row's outputs are the same alone and as the last of several rows.

    On a CPU they must be identical. GPU libraries choose kernels by the number of rows, so there the bound for another
    machine applies.

    Args:
        sizes: numbers of rows.
    """
    manifest = editor.bundle.manifest
    if names.DECODER not in manifest.parts or names.PREFIX_GRAPH not in manifest.parts:
        return []
    exact = editor.backend.device == "cpu"
    bound = 0.0 if exact else manifest.bound(names.DECODER)
    alone, checks = _transformer(editor, ONE_ROW)[names.DECODER], []
    for rows in sizes:
        among = _transformer(editor, Way(rows, row=rows - 1))[names.DECODER]
        for output in (names.LOGITS, LOGITS_AFTER):
            label = f"{output}, a row among {rows}"
            checks.append(_compare(names.DECODER, label, alone[output], among[output], bound))
    return checks


def picture(size: int) -> NDArray[np.float32]:
    """A smooth, colourful picture, float32 [1, 3, size, size] in [-1, 1]."""
    y, x = np.mgrid[:size, :size].astype(np.float64) / size
    waves = (np.sin(7 * x + 3 * y), np.cos(9 * y - 2 * x), np.sin(5 * (x + y) ** 2))
    return np.stack(waves)[None].astype(np.float32)


def _spread(count: int, size: int) -> NDArray[np.int32]:
    """`count` numbers spread over 0..size-1; 7919 is a prime."""
    return ((np.arange(count, dtype=np.int64) * 7919 + 17) % size).astype(np.int32)


def _transformer(editor: Model, way: Way) -> dict[str, Any]:
    model = editor.model
    text_tokens, text_dim, vocabulary = model.text_tokens or 1, model.text_dim or 1, model.vocab_size or 1
    states = np.sin(np.arange(text_tokens * text_dim, dtype=np.float64) * 0.37).reshape(1, text_tokens, text_dim)
    outputs = editor.backend.run(names.PREFIX_GRAPH, {names.TEXT_STATES: states.astype(np.float32)})
    text = outputs[names.TEXT_PREFIX]
    # Tokens first, then some states of the text: the two kinds of the decoder's input.
    count, length, steps = _lengths(2 * (model.picture_tokens or 1) + text_tokens, text_tokens)
    first_part, second_part = token_chunk(_spread(count, vocabulary)), state_chunk(text[0, :length])
    if way.pieces == 1:
        hidden = np.concatenate([np.zeros((count, text.shape[2]), np.float32), text[0, :length]])
        first_part = Chunk(np.concatenate([first_part.tokens, second_part.tokens]), hidden)
        second_part = state_chunk(text[0, :0])
    scheduler = Scheduler(editor.backend, way.rows, 0, count + length, steps + 1, on_device=False)
    greedy, inputs = Sampling(greedy=True, cfg_scale=1.0), Inputs(first_part, second_part, second_part)
    sequences = [Sequence(scheduler.join(False), inputs, greedy, 0, None, steps + 1) for _ in range(way.rows)]
    sequences.sort(key=lambda sequence: sequence.context.cond.slot)
    logits: list[NDArray[np.float32]] = []
    try:
        for step in decode(scheduler, sequences):
            assert step.logits is not None  # nothing is known
            logits.append(step.logits[way.row].copy())
    except NotFiniteError:  # this is an answer too, which differs from the expected one
        nothing = np.full(vocabulary, np.nan, np.float32)
        logits += [nothing] * (steps + 1 - len(logits))
    first, *_, after = logits
    margins = []
    for each in logits[:steps]:
        second, best = np.partition(each, -2)[-2:]
        margins.append(float((best - second) / np.abs(each).max()))
    drawn = [int(each.argmax()) for each in logits[:steps]]
    return {
        names.PREFIX_GRAPH: {name: _values(value) for name, value in outputs.items()},
        names.DECODER: {
            names.LOGITS: _values(first),
            GREEDY: {"tokens": drawn, "margins": margins},
            LOGITS_AFTER: _values(after),
        },
    }


def _lengths(positions: int, text_tokens: int) -> tuple[int, int, int]:
    """Numbers of tokens, text positions and steps of the decoder's test, for a sequence of `positions`."""
    rows = min(TEXT_POSITIONS, text_tokens)
    steps = min(STEPS, (positions - rows) // 2)
    return min(CHUNK, positions - rows - steps), rows, steps


def _sampler(editor: Model) -> dict[str, Any]:
    """Test every sampler engine; those of several rows also with guidance, where the last row is unconditional.

    Every example stands at every position, beside others.
    """
    backend, manifest = editor.backend, editor.bundle.manifest
    if not backend.samplers:
        raise BundleError(
            f"the bundle {editor.bundle.folder} has a sampler for a dialect that has none; export it again"
        )
    found: dict[str, list[int]] = {}
    most = manifest.sampler_top_k or 0
    examples = list(sampler_examples(manifest.model.vocab_size or 1, most))
    for rows, positions in backend.samplers:
        for guided in (False, True) if rows > 1 else (False,):
            own = [example for example in examples if example.guided == guided]
            tokens: list[set[int]] = [set() for _ in own]
            for first in range(len(own)):
                places = [(first + position) % len(own) for position in range(positions)]
                logits, inputs = _side_by_side([own[place] for place in places], rows, most)
                drawn = backend.sample(logits, inputs)[: rows - 1 if guided else rows]
                for place, answers_here in zip(places, drawn.T.tolist()):
                    tokens[place].update(answers_here)
            label = f"{names.DRAWN}, {'guided' if guided else 'not guided'}"
            answers_before = found.get(label, [min(each) for each in tokens])
            found[label] = [
                before if each == {before} else names.UNCLEAR for before, each in zip(answers_before, tokens)
            ]
    return {label: {"tokens": tokens} for label, tokens in found.items()}


def _side_by_side(examples: list[SamplerExample], rows: int, most: int) -> tuple[NDArray[np.float32], SamplerInputs]:
    """Logits [rows, K, V] and inputs of K examples, all guided or none; then the last row is unconditional."""
    uncond_rows = np.arange(rows, dtype=np.int32)
    logits = np.stack([np.repeat(example.logits[:1], rows, axis=0) for example in examples], axis=1)
    if examples[0].guided:
        uncond_rows[:-1] = rows - 1
        logits[-1] = [example.logits[1] for example in examples]
    first, *_ = own = [sampler_inputs(example, uncond_rows, most) for example in examples]
    numbers, scales, temperatures, top_k, top_p = (
        np.concatenate(arrays, axis=1) for arrays in zip(*(inputs[1:6] for inputs in own))
    )
    noise = None
    if any(inputs.noise is not None for inputs in own):
        nothing = np.zeros((rows, 1, logits.shape[2]), np.float32)
        noise = np.concatenate([nothing if inputs.noise is None else inputs.noise for inputs in own], axis=1)
    return logits, SamplerInputs(first.uncond_rows, numbers, scales, temperatures, top_k, top_p, noise)


def _hash(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _values(array: NDArray[np.float32]) -> dict[str, Any]:
    """The stored description of floats: their hash, some values, and the largest magnitude."""
    flat = np.asarray(array, np.float32).ravel()
    kept = [float(v) for v in flat[_places(flat.size)]]
    return {"sha256": _hash(flat), "values": kept, "largest": float(np.abs(flat).max())}


def _tokens(array: NDArray[np.int32]) -> dict[str, Any]:
    return {"tokens": array.ravel().tolist()}


def _places(size: int) -> NDArray[np.int64]:
    return np.linspace(0, size - 1, SAMPLES).astype(np.int64)


def _compare(part: str, output: str, expected: dict[str, Any], found: dict[str, Any], bound: float) -> Comparison:
    if "tokens" in found:
        there, here = (np.asarray(answer["tokens"]) for answer in (expected, found))
        differ = there != here  # raises where the shapes differ
        if "margins" not in found:
            return Comparison.of_tokens(part, output, here, there, TIES)
        if differ.any() and expected["margins"][int(differ.argmax())] <= bound:
            bound = 1.0  # two tokens were about equally likely at the first difference; another text follows
        return Comparison.of_tokens(part, output, here, there, bound)
    difference = largest_difference(np.asarray(found["values"]), np.asarray(expected["values"]))
    if not np.isfinite(found["largest"]):  # somewhere between the values that were kept
        difference = float("nan")
    error, identical = relative_error(difference, float(expected["largest"])), expected["sha256"] == found["sha256"]
    if bound == 0 and not identical:
        error = max(error, float(np.finfo(np.float32).eps))  # the values that differ are not among those kept
    return Comparison(part, output, difference, error, bound, identical)
