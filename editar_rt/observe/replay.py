"""Runs a trace again and reports the first token that differs, if any.

The traced tokens are drafts, so that a pass verifies many of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from editar_rt.errors import TraceError
from editar_rt.generation.decoding import decode
from editar_rt.generation.sampling import Sampling
from editar_rt.generation.sequence import Inputs, Sequence
from editar_rt.generation.strategy import USUAL, Given
from editar_rt.model import Model
from editar_rt.observe.trace import Trace, states_digest, uncertainty


@dataclass(frozen=True)
class Difference:
    """The first token of a replay that differs from the trace."""

    variant: int
    position: int
    traced: int
    found: int
    margin: float
    """Guided logit of the token found minus that of the traced token: a small margin means a near tie."""


@dataclass(frozen=True)
class Replay:
    """The outcome of running a trace again."""

    backend: str  # that ran the replay
    compared: int  # sampled positions that are equal, up to the first difference
    difference: Difference | None
    largest_error: float  # largest difference of log-probabilities among equal tokens
    seconds: float


def replay(
    model: Model,
    trace: Trace,
    text_states: NDArray[np.float32] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Replay:
    """Sample a trace's tokens again, up to the first difference.

    Args:
        text_states: [1, T, C], if the edit was given text states.

    Raises:
        TraceError: the trace was made with another bundle or with other text states.
        MissingPartError, BackendError.
    """
    header = trace.header
    if header.bundle != model.bundle.fingerprint:
        raise TraceError(
            f"the trace was made with another bundle (fingerprint {header.bundle[:12]}…) than {model.bundle.folder} "
            f"({model.bundle.fingerprint[:12]}…); replay it on the bundle that made it"
        )
    if header.text_states is not None and (text_states is None or states_digest(text_states) != header.text_states):
        raise TraceError("the trace was made with a file of text states; give the same file with --text-states")
    states = model.encode_text([header.instruction], header.task) if text_states is None else text_states
    begun = time.perf_counter()
    (inputs,) = model.inputs(states, np.asarray([header.condition_tokens]))
    compared, difference, error = _compare(model, trace, inputs, True, on_progress)
    if difference is not None and header.speculate is None:
        # Rounding may differ between chunks and the single steps that made the trace.
        compared, difference, error = _compare(model, trace, inputs, False, on_progress)
    return Replay(model.backend.name, compared, difference, error, time.perf_counter() - begun)


def _compare(
    model: Model, trace: Trace, inputs: Inputs, drafted: bool, on_progress: Callable[[int, int], None] | None
) -> tuple[int, Difference | None, float]:
    """Sample the tokens again.

    Args:
        drafted: with the traced ones as drafts, in passes of the trace's size, or of a usual one.

    Returns:
        the number of sampled positions that are equal, the first difference, and the largest error.
    """
    header = trace.header
    sampling, count = Sampling(**header.sampling), trace.tokens.shape[1]
    scheduler = model.scheduler(len(header.seeds), sampling.guided)
    sizes = [size for size in scheduler.decoder.draft_chunks.sizes if size < count] if drafted else []
    given = header.speculate
    size = given if isinstance(given, int) and given in sizes else max((s for s in sizes if s <= USUAL), default=None)
    known = np.where(trace.drawn, np.int32(-1), trace.tokens)
    drafts = np.minimum(trace.tokens, (model.model.vocab_size or 1) - 1)
    sequences = []
    for seed, own, likely in zip(header.seeds, known, drafts, strict=True):
        context, speculation = scheduler.join(sampling.guided), scheduler.speculation(size, Given(likely))
        sequences.append(Sequence(context, inputs, sampling, seed, own, count, speculation))
    compared, error = 0, 0.0
    for step in decode(scheduler, sequences):
        if step.position >= header.done:
            break
        if on_progress is not None:
            on_progress(step.stop, count)
        if step.logits is None:
            continue
        traced, sampled = trace.tokens[:, step.position], step.tokens[:, 0]
        for row in np.flatnonzero(traced != sampled).tolist():
            margin = float(step.logits[row, sampled[row]] - step.logits[row, traced[row]])
            return compared, Difference(row, step.position, int(traced[row]), int(sampled[row]), margin), error
        compared += 1
        for row, token in enumerate(sampled.tolist()):
            here, _ = uncertainty(step.logits[row], token, sampling)
            error = max(error, abs(here - float(trace.log_probabilities[row, step.position])))
    return compared, None, error
